"""Plain JSON values <-> records: key names, types, and what may be left out of a record without losing it.

Which bytes the values come from is ``reading``'s matter, where they go ``writing``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from clara.data.records import DataRecord, DocText, MultiHop, PassageQA, QAPair, UnusableRecordError

# The last two are synthesis's notes about a record; training has no use for them, yet they are no surprise.
_PASSAGE_KEYS = frozenset({"id", "source", "title", "text", "qa", "paraphrase", "complex_qa", "rounds", "provenance"})
_MULTI_HOP_KEYS = frozenset({"id", "source", "question", "answers", "docs", "gold"})
_NAMES: dict[type, str] = {str: "a string", list: "a list", dict: "an object", int: "an integer"}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A record, and what of its JSON value is not in it.

    Attributes:
        record: the record.
        left_out: reasons, one for each pair or blank answer that was left out.
        ignored_keys: keys that records of this kind do not have.
    """

    record: DataRecord
    left_out: tuple[str, ...]
    ignored_keys: tuple[str, ...]


def parse(value: object, *, plain_passages: bool = False) -> _Parsed:
    """Make a record of a JSON value; its keys tell the kind.

    Args:
        value: what one line of a file holds.
        plain_passages: take passages without ``qa`` too, as records without pairs.

    Raises:
        UnusableRecordError: the value cannot be used; the reason is countable.
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
    value: dict[str, object] = {"id": record.id, "source": record.source, "title": record.title, "text": record.text}
    if record.pairs:
        value["qa"] = [_pair_to_json(pair) for pair in record.pairs]
    if record.paraphrase is not None:
        value["paraphrase"] = record.paraphrase
    if record.complex_pairs:
        value["complex_qa"] = [_pair_to_json(pair) for pair in record.complex_pairs]
    return value


def _pair_to_json(pair: QAPair) -> dict[str, object]:
    return {"question": pair.question, "answers": list(pair.answers)}


def _passage_qa(value: Mapping[str, Any], left_out: list[str], *, plain: bool) -> PassageQA:
    paraphrase = value.get("paraphrase")
    if paraphrase is not None:
        paraphrase = _get(value, "paraphrase", str)
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
        id=_get(value, "id", str),
        source=_get(value, "source", str),
        title=_get(value, "title", str),
        text=_get(value, "text", str),
        pairs=pairs,
        paraphrase=paraphrase,
        complex_pairs=complex_pairs,
    )


def _multi_hop(value: Mapping[str, Any], left_out: list[str]) -> MultiHop:
    return MultiHop(
        id=_get(value, "id", str),
        source=_get(value, "source", str),
        question=_get(value, "question", str),
        answers=_answers(value, left_out),
        docs=_items(value, "docs", dict, _doc),
        gold=_items(value, "gold", int, int),
    )


def _doc(value: Mapping[str, Any]) -> DocText:
    return DocText(title=_get(value, "title", str), text=_get(value, "text", str))


def _pairs(value: Mapping[str, Any], key: str, left_out: list[str]) -> tuple[QAPair, ...]:
    """The usable pairs under ``key``; a faulty pair is left out, its record stays."""
    pairs = []
    for item in _get(value, key, list):
        try:
            if not isinstance(item, dict):
                raise _wrong_type(key, dict, item)
            blanks: list[str] = []
            pair = QAPair(question=_get(item, "question", str), answers=_answers(item, blanks))
        except UnusableRecordError as fault:
            left_out.append(f"pair with {fault.reason}")
        else:
            left_out.extend(blanks)
            pairs.append(pair)
    return tuple(pairs)


def _answers(value: Mapping[str, Any], left_out: list[str]) -> tuple[str, ...]:
    answers = _items(value, "answers", str, str)
    kept = tuple(answer for answer in answers if answer.strip())
    if kept:
        left_out.extend(["blank answer"] * (len(answers) - len(kept)))
    return kept


def _get(value: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    if key not in value:
        raise UnusableRecordError(f"missing key {key!r}")
    item = value[key]
    if not isinstance(item, kind):
        raise _wrong_type(key, kind, item)
    return item


def _items(value: Mapping[str, Any], key: str, kind: type[Any], make: Callable[[Any], _T]) -> tuple[_T, ...]:
    items = _get(value, key, list)
    for item in items:
        # JSON's true is an int to Python, and is not an index.
        if not isinstance(item, kind) or isinstance(item, bool):
            raise _wrong_type(f"{key}[]", kind, item)
    return tuple(make(item) for item in items)


def _wrong_type(key: str, kind: type, item: object) -> UnusableRecordError:
    return UnusableRecordError(f"wrong type of {key!r}", f"expected {_NAMES[kind]}, got {str(item)[:60]!r}")
