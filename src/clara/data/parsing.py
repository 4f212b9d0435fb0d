"""JSON values to our own records and back, and typed access to the fields of any.

Key names, types, and optional parts; a fault is an ``UnusableRecordError`` with a countable reason. Bytes are
``reading``'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from clara.data.records import DataRecord, DocText, MultiHop, PassageQA, QAPair, UnusableRecordError

# The last two are synthesis's notes, of no use for training.
_PASSAGE_KEYS = frozenset({"id", "source", "title", "text", "qa", "paraphrase", "complex_qa", "rounds", "provenance"})
_MULTI_HOP_KEYS = frozenset({"id", "source", "question", "answers", "docs", "gold"})
_NAMES: dict[type, str] = {
    str: "a string",
    list: "a list",
    dict: "an object",
    int: "an integer",
    bool: "true or false",
}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A record, and the parts of its JSON value that are not in it: reasons of those left out, and unknown keys."""

    record: DataRecord
    left_out: tuple[str, ...]
    ignored_keys: tuple[str, ...]


def parse(value: object, *, plain_passages: bool = False) -> _Parsed:
    """Make a record of a JSON value; its keys tell the kind.

    With ``plain_passages`` passages without ``qa`` are taken too, as records without pairs.
    """
    if not isinstance(value, dict):
        raise UnusableRecordError("not a JSON object", type(value).__name__)
    left_out: list[str] = []
    record: DataRecord
    if "docs" in value or "question" in value:
        record, known = _multi_hop(value, left_out), _MULTI_HOP_KEYS
    elif "qa" in value or "text" in value:
        record, known = _passage_qa(value, left_out, plain=plain_passages), _PASSAGE_KEYS
    else:
        raise UnusableRecordError("unknown kind of record", "keys " + ", ".join(map(repr, value)))
    return _Parsed(record, tuple(left_out), tuple(key for key in value if key not in known))


def to_json(record: DataRecord) -> dict[str, object]:
    """The JSON value that ``parse`` reads back to an equal record."""
    if isinstance(record, MultiHop):
        return {
            "id": record.id,
            "source": record.source,
            "question": record.question,
            "answers": list(record.answers),
            "docs": [{"title": doc.title, "text": doc.text} for doc in record.docs],
            "gold": list(record.gold),
        }
    qa, complex_qa = (
        [{"question": pair.question, "answers": list(pair.answers)} for pair in pairs]
        for pairs in (record.pairs, record.complex_pairs)
    )
    optional = {"qa": qa or None, "paraphrase": record.paraphrase, "complex_qa": complex_qa or None}
    value: dict[str, object] = {"id": record.id, "source": record.source, "title": record.title, "text": record.text}
    return value | {key: part for key, part in optional.items() if part is not None}


def _passage_qa(value: Mapping[str, Any], left_out: list[str], *, plain: bool) -> PassageQA:
    paraphrase = value.get("paraphrase")
    if paraphrase is not None:
        paraphrase = field(value, "paraphrase", str)
        if not paraphrase.strip():
            left_out.append("empty paraphrase")
            paraphrase = None
    complex_pairs = _pairs(value, "complex_qa", left_out) if value.get("complex_qa") is not None else ()
    # A misspelt "qa" must not turn a file of questions into a file of plain passages, unless that is asked for or the
    # record has another target.
    asked = "qa" in value or not (plain or paraphrase or complex_pairs)
    pairs = _pairs(value, "qa", left_out) if asked else ()
    if not (pairs or complex_pairs or paraphrase or plain):
        raise UnusableRecordError("no usable question-answer pair", ", ".join(sorted(set(left_out))))
    return PassageQA(
        id=field(value, "id", str),
        source=field(value, "source", str),
        title=field(value, "title", str),
        text=field(value, "text", str),
        pairs=pairs,
        paraphrase=paraphrase,
        complex_pairs=complex_pairs,
    )


def _multi_hop(value: Mapping[str, Any], left_out: list[str]) -> MultiHop:
    return MultiHop(
        id=field(value, "id", str),
        source=field(value, "source", str),
        question=field(value, "question", str),
        answers=_answers(value, left_out),
        docs=tuple(
            DocText(title=field(doc, "title", str), text=field(doc, "text", str))
            for doc in [typed(item, "docs[]", dict) for item in field(value, "docs", list)]
        ),
        # JSON's true is an int to Python, and is not an index; ``typed`` words the fault.
        gold=tuple(
            typed(str(item) if isinstance(item, bool) else item, "gold[]", int) for item in field(value, "gold", list)
        ),
    )


def _pairs(value: Mapping[str, Any], key: str, left_out: list[str]) -> tuple[QAPair, ...]:
    """The usable pairs under ``key``; a faulty pair is left out, its record stays."""
    pairs = []
    for item in field(value, key, list):
        try:
            asked = typed(item, key, dict)
            blanks: list[str] = []
            pair = QAPair(question=field(asked, "question", str), answers=_answers(asked, blanks))
        except UnusableRecordError as fault:
            left_out.append(f"pair with {fault.reason}")
        else:
            left_out.extend(blanks)
            pairs.append(pair)
    return tuple(pairs)


def _answers(value: Mapping[str, Any], left_out: list[str]) -> tuple[str, ...]:
    answers = strings(value, "answers")
    kept = tuple(answer for answer in answers if answer.strip())
    if kept:
        left_out.extend(["blank answer"] * (len(answers) - len(kept)))
    return kept


def field(value: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    """The field ``key``, which has to be there and of that type."""
    if key not in value:
        raise UnusableRecordError(f"missing key {key!r}")
    return typed(value[key], key, kind)


def typed(item: object, label: str, kind: type[_T]) -> _T:
    """``item``, which has to be of that type."""
    if not isinstance(item, kind):
        expected = _NAMES.get(kind, kind.__name__)
        raise UnusableRecordError(f"wrong type of {label!r}", f"expected {expected}, got {str(item)[:60]!r}")
    return item


def strings(value: Mapping[str, Any], key: str) -> list[str]:
    """The field ``key``, a list of strings."""
    return [typed(item, f"{key}[]", str) for item in field(value, key, list)]
