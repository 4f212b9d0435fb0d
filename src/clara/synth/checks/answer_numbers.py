"""A number in an answer that stands neither in the passage nor in the question: invented, or misread."""

from __future__ import annotations

from clara.synth.drafts import Pair, SourcePassage
from clara.synth.settings import CheckSettings
from clara.synth.words import numbers, stems

REASON = "number_not_in_passage"


def check_pair(pair: Pair, passage: SourcePassage, settings: CheckSettings) -> str | None:  # noqa: ARG001
    """Every number of two or more digits in the answer is in the passage, its title or the question.

    One-digit numbers may be counts ("three of them"), and stay a matter for the judge.
    """
    known = set(stems(passage.text)) | set(stems(passage.title)) | set(stems(pair.question))
    invented = sorted(number for number in numbers(pair.answer) - known if len(number) > 1)
    return f"the passage does not state the number {', '.join(invented)}" if invented else None
