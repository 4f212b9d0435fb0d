"""JSON Lines of Apple's published CLaRa code, both ways: ``{"data_type", "question", "answers", "docs"}``.

A row holds the questions about one document (``"qa"``) or its paraphrase (``"paraphrase"``), in lists of equal length.
It has no place for id, source, rounds, provenance, further answers, and which questions are complex. The title is the
document's first line there; on the way in, quotation marks around it go.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clara.config import refuse_special
from clara.data.reading import RecordSet, read_records, write_jsonl, write_records
from clara.data.records import PassageQA, QAPair
from clara.errors import RecordError

_SOURCE = "official_jsonl"
_TITLE_CHARACTERS = 120  # a first line up to this length that does not end like a sentence is a title
_SENTENCE_ENDS = (".", "!", "?", ":", ";", ",")


def export_official(source: Path, target: Path) -> tuple[int, RecordSet]:
    """Write a file of ``passage_qa`` records as official rows; returns their number, and the content of the source.

    Questions over several documents have no rows.

    Raises:
        RecordError: the source holds no usable record, or a file cannot be read or written.
    """
    reading = read_records(source)
    passages = reading.passage_qa
    if not passages:
        raise RecordError(f"{source} holds no passage records: expected {{'id', 'source', 'title', 'text', 'qa'}}")
    return write_jsonl(target, (row for passage in passages for row in _to_official(passage))), reading


def import_official(source: Path, target: Path) -> int:
    """Write a file of official rows as ``passage_qa`` records, one for each document; returns their number.

    Raises:
        RecordError: a row is wrong (the message names its line), or a file cannot be read or written.
    """
    refuse_special(source)
    try:
        with (
            gzip.open(source, "rt", encoding="utf-8-sig")
            if source.suffix == ".gz"
            else source.open(encoding="utf-8-sig") as file
        ):
            lines = file.read().split("\n")  # not splitlines: JSON may hold U+2028 and its like as they are
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RecordError(f"{source} cannot be read: {error}") from None
    return write_records(target, _from_official(_rows(source, lines)))


def _to_official(passage: PassageQA) -> list[dict[str, Any]]:
    """The rows of one record: its questions, simple and complex, and its paraphrase."""
    doc = f"{passage.title}\n{passage.text}" if passage.title.strip() else passage.text
    pairs = passage.all_pairs
    rows = []
    if pairs:
        questions, answers = [pair.question for pair in pairs], [pair.answers[0] for pair in pairs]
        rows.append({"data_type": "qa", "question": questions, "answers": answers, "docs": [doc]})
    if passage.paraphrase:
        rows.append({"data_type": "paraphrase", "question": [""], "answers": [passage.paraphrase], "docs": [doc]})
    return rows


def _from_official(rows: Iterable[dict[str, Any]]) -> list[PassageQA]:
    """Records from rows, one for each document, in the order of first appearance."""
    gathered: dict[str, _Gathered] = {}
    for number, row in enumerate(rows, start=1):
        fault = _fault(row)
        if fault:
            raise RecordError(f"row {number}: {fault}")
        (doc,) = row["docs"]
        known = gathered.setdefault(doc, _Gathered())
        if row["data_type"] == "paraphrase":
            known.paraphrase = known.paraphrase or row["answers"][0]
        else:
            for question, answer in zip(row["question"], row["answers"], strict=True):
                known.pairs.append(QAPair(question, (answer,)))
    return [known.record(doc) for doc, known in gathered.items()]


@dataclass
class _Gathered:
    """The rows' content about one document."""

    pairs: list[QAPair] = field(default_factory=list)
    paraphrase: str | None = None

    def record(self, doc: str) -> PassageQA:
        first, _, rest = doc.partition("\n")
        first = first.strip().strip('"')
        titled = 0 < len(first) <= _TITLE_CHARACTERS and not first.endswith(_SENTENCE_ENDS) and bool(rest.strip())
        title, text = (first, rest) if titled else ("", doc)
        digest = hashlib.sha256(doc.encode("utf-8", "replace")).hexdigest()[:16]
        return PassageQA(f"{_SOURCE}:{digest}", _SOURCE, title, text, tuple(self.pairs), self.paraphrase)


def _fault(row: object) -> str:
    """The fault of a row, or the empty string."""
    if not isinstance(row, dict) or row.get("data_type") not in ("qa", "paraphrase"):
        got = row.get("data_type") if isinstance(row, dict) else row
        return f'expected an object with "data_type" "qa" or "paraphrase", got {got!r:.80}'
    # A paraphrase answers no question: rows have an empty one there, or none.
    for key in ("answers", "docs") if row["data_type"] == "paraphrase" else ("question", "answers", "docs"):
        value = row.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return f'"{key}" must be a list of strings, got {value!r:.80}'
    if len(row["docs"]) != 1 or not row["docs"][0].strip():
        return f'"docs" must hold one document, got {len(row["docs"])}'
    blank = [item for item in row["answers"] if not item.strip()]
    if not row["answers"] or blank:
        return '"answers" must not be empty'
    if row["data_type"] == "qa" and (
        len(row["question"]) != len(row["answers"]) or not all(item.strip() for item in row["question"])
    ):
        return f"{len(row['question'])} questions for {len(row['answers'])} answers: there must be one for each"
    return ""


def _rows(source: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise RecordError(f"{source}, line {number} is not JSON: {error}") from None
