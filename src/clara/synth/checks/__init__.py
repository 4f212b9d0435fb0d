"""The deterministic checks: each a small file with one rule and a named reason, no model, no server.

A check of a pair or a paraphrase returns why it fails, in words that the language model can act on, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clara.synth.checks import answer_in_question, answer_numbers, copied, duplicates, kept, language, lengths
from clara.synth.drafts import Fault, Pair, SourcePassage
from clara.synth.settings import CheckSettings

PairCheck = Callable[[Pair, SourcePassage, CheckSettings], str | None]
ParaphraseCheck = Callable[[str, SourcePassage, CheckSettings], str | None]

PAIR_CHECKS: tuple[tuple[str, PairCheck], ...] = (
    (lengths.REASON, lengths.check_pair),
    (language.REASON, language.check_pair),
    (answer_in_question.REASON, answer_in_question.check_pair),
)
STATED_CHECKS: tuple[tuple[str, PairCheck], ...] = ((answer_numbers.REASON, answer_numbers.check_pair),)
PARAPHRASE_CHECKS: tuple[tuple[str, ParaphraseCheck], ...] = (
    (lengths.REASON, lengths.check_paraphrase),
    (language.REASON, language.check_paraphrase),
    (copied.REASON, copied.check_paraphrase),
    (kept.NUMBERS_REASON, kept.check_numbers),
    (kept.INVENTED_REASON, kept.check_invented),
    (kept.NAMES_REASON, kept.check_names),
)


def check_pair(
    pair: Pair, passage: SourcePassage, accepted: Sequence[Pair], settings: CheckSettings, *, inferred: bool = False
) -> Fault | None:
    """The first fault of a pair.

    Args:
        pair: the pair.
        passage: what it was written about.
        accepted: pairs of any kind that the passage already has.
        settings: limits.
        inferred: the answer may follow from the passage without standing in it ("24 years later").

    Returns:
        The fault, or None if every check passes.
    """
    for reason, check in PAIR_CHECKS if inferred else PAIR_CHECKS + STATED_CHECKS:
        if detail := check(pair, passage, settings):
            return Fault(reason, detail)
    if detail := duplicates.check_pair(pair, accepted):
        return Fault(duplicates.REASON, detail)
    return None


def check_paraphrase(text: str, passage: SourcePassage, settings: CheckSettings) -> Fault | None:
    """The first fault of a paraphrase, as ``check_pair``."""
    for reason, check in PARAPHRASE_CHECKS:
        if detail := check(text, passage, settings):
            return Fault(reason, detail)
    return None
