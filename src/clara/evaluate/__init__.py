"""Measuring answers: questions with gold answers in, scores with intervals out.

Reaches a model only through ``AnswerModel``, and whatever is compared with it only through ``System``; which model,
which systems and which files is the command line's choice.
"""

from clara.evaluate.protocol import AnswerModel, Splitter, TextReader
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
    "TextReader",
    "evaluate",
]
