"""A paraphrase that loses the passage's numbers or names, or brings in numbers of its own."""

from __future__ import annotations

from clara.synth.drafts import SourcePassage
from clara.synth.settings import CheckSettings
from clara.synth.words import names, numbers, share_found, stem, stems

NUMBERS_REASON = "numbers_lost"
NAMES_REASON = "names_lost"
INVENTED_REASON = "number_invented"
_SHOWN = 8


def check_numbers(text: str, passage: SourcePassage, settings: CheckSettings) -> str | None:
    """Enough of the passage's numbers are kept, written as digits or words."""
    wanted, present = sorted(numbers(passage.text)), set(stems(text))
    if share_found(wanted, present) >= settings.numbers_kept:
        return None
    return "these numbers of the passage are lost: " + _listed([word for word in wanted if word not in present])


def check_invented(text: str, passage: SourcePassage, settings: CheckSettings) -> str | None:  # noqa: ARG001
    """No number of two or more digits that the passage and its title do not have."""
    known = set(stems(passage.text)) | set(stems(passage.title))
    invented = sorted(word for word in numbers(text) - known if len(word) > 1)
    return "these numbers are not in the passage: " + _listed(invented) if invented else None


def check_names(text: str, passage: SourcePassage, settings: CheckSettings) -> str | None:
    """Enough of the words that the passage capitalises inside its sentences are kept."""
    wanted, present = sorted(names(passage.text)), set(stems(text))
    lost = [name for name in wanted if stem(name) not in present]
    if len(lost) <= (1 - settings.names_kept) * len(wanted):
        return None
    return "these names of the passage are lost: " + _listed(lost)


def _listed(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (" …" if len(items) > _SHOWN else "")
