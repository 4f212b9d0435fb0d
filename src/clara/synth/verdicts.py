"""Which items of a draft a verdict means, and the draft without them.

A judge names items by label (``S2: …``). One that quotes the item instead is understood too; one that does neither
leaves nothing that can be trusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from clara.synth.drafts import Draft, Fault, Kind, Rejection, Verdict
from clara.synth.templates import labelled
from clara.synth.words import share_found, words

WRONG_REASON = "judge_wrong"
INCONSISTENT_REASON = "judge_inconsistent"
_LABEL = re.compile(r"\W*(?:item\s+)?([SC]\d+|P)\b[\s.:;,)\]–—-]*", re.IGNORECASE)
_SAME_ITEM = 0.8  # share of an item's words that a remark must repeat to mean it without naming its label
_FRAME = frozenset({"question", "answer"})  # the words that ``labelled`` adds
_KINDS: Mapping[str, Kind] = {"S": "simple_qa", "C": "complex_qa", "P": "paraphrase"}


def wrong_items(verdict: Verdict, draft: Draft) -> dict[str, Rejection]:
    """What a verdict takes out of a draft, by label; all of it if the verdict does not say what is wrong."""
    items = labelled(draft)
    if verdict.consistent and not verdict.wrong:
        return {}
    found: dict[str, str] = {}
    unclear: list[str] = []
    for remark in verdict.wrong:
        match = _LABEL.match(remark)
        label = match.group(1).upper() if match else _quoted(remark, items)
        if label in items:
            found[label] = remark[match.end() :].strip() if match else remark
        else:
            unclear.append(remark)
    taken_out = {
        label: Rejection(_KINDS[label[0]], items[label], Fault(WRONG_REASON, why or "this is wrong"))
        for label, why in found.items()
    }
    if unclear or not found:
        why = "; ".join(unclear) or "something here is not what the passage says"
        for label in items.keys() - found.keys():
            taken_out[label] = Rejection(_KINDS[label[0]], items[label], Fault(INCONSISTENT_REASON, why))
    return taken_out


def without(draft: Draft, labels: frozenset[str]) -> Draft:
    """A draft less some of its items."""
    return Draft(
        tuple(pair for place, pair in enumerate(draft.simple, start=1) if f"S{place}" not in labels),
        tuple(pair for place, pair in enumerate(draft.complex, start=1) if f"C{place}" not in labels),
        "" if "P" in labels else draft.paraphrase,
    )


def _quoted(remark: str, items: Mapping[str, str]) -> str:
    """The label of the item that a remark repeats, or the empty string."""
    said = set(words(remark))
    for label, text in items.items():
        repeated = [word for word in words(text) if word not in _FRAME]
        if share_found(repeated, said) >= _SAME_ITEM:
            return label
    return ""
