"""Measuring answers: questions with gold answers in, scores with intervals out.

Reaches a model only through ``AnswerModel``; which model and which files is the command line's choice.
"""

from clara.evaluate.protocol import AnswerModel, Splitter
from clara.evaluate.result import EvalResult, EvalRow, Intervals
from clara.evaluate.runner import Progress, evaluate
from clara.evaluate.settings import EvalConfig

__all__ = [
    "AnswerModel",
    "EvalConfig",
    "EvalResult",
    "EvalRow",
    "Intervals",
    "Progress",
    "Splitter",
    "evaluate",
]
