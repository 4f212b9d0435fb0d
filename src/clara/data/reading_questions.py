"""Read questions to measure on from a file of any known public format; count what cannot be used, by reason.

Knows bytes and JSON; what a record must hold is ``formats``' matter.
"""

from __future__ import annotations

import ast
import csv
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from clara.config import refuse_special
from clara.data.formats import FORMATS, QuestionFormat, two_wiki
from clara.data.questions import Question
from clara.data.records import UnusableRecordError
from clara.errors import RecordError

_GZIP_MAGIC = b"\x1f\x8b"
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
"""Endings of files that are read as tables."""
_POPQA_HEAD = b"possible_answers"
LOOKED_AT = 20
"""Records whose keys may tell the format; the first ones may be faulty."""


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of a file.

    Attributes:
        name: what results call the data.
        path: the file.
        format: name of its format, as in ``formats.FORMATS``.
        questions: the usable ones, at least one, in file order.
        rejected: items that gave no question, by reason.
        left_out: parts of usable questions that were left out, by reason.
        sha256: of the file's bytes, hex.
    """

    name: str
    path: Path
    format: str
    questions: tuple[Question, ...]
    rejected: Mapping[str, int]
    left_out: Mapping[str, int]
    sha256: str

    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.name}: {len(self.questions)} questions ({self.format})"]
        for label, counts in (("rejected", self.rejected), ("left out", self.left_out)):
            if counts:
                listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
                parts.append(f"{label} {sum(counts.values())} ({listed})")
        return "; ".join(parts)


def read_questions(path: Path, *, name: str | None = None, limit: int | None = None) -> QuestionSet:
    """Read a ``.json`` or ``.jsonl`` file, plain or gzipped, of any format in ``FORMATS``, or a table.

    Args:
        path: the file: a JSON array, one JSON object, or one object a line; or, where it is named ``*.csv`` or
            ``*.tsv``, a table: PopQA's, or a question, a tab and a Python list of its answers a line (DPR).
        name: what results call it; the file's name without its endings by default.
        limit: stop after so many usable questions.

    Raises:
        RecordError: the file is missing, unreadable or damaged, of no known format, or holds no usable question.
    """
    stored = _bytes(path)
    content = _unpacked(stored, path)
    rejected: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    questions: list[Question] = []
    escaped = b"\\u" in content
    values = list(_rows(content, rejected) if path.name.endswith(TABLES) else _values(content, path, rejected))
    label = _detect(values, path, rejected)
    kind = FORMATS[label]
    aliases = two_wiki.Aliases(path) if kind.parse is two_wiki.parse else None
    for item in _items(values, kind, rejected):
        parts: list[str] = []
        try:
            if escaped:
                check_surrogates(item)
            question = kind.parse(aliases.added(item) if aliases is not None else item, parts)
        except UnusableRecordError as fault:
            rejected[fault.reason] += 1
            continue
        questions.append(question)
        left_out.update(parts)
        if limit is not None and len(questions) == limit:
            break
    if not questions:
        raise RecordError(f"{path} has no usable question in format {label}; rejected: {dict(rejected)}")
    return QuestionSet(
        name=name or path.name.removesuffix(".gz").rpartition(".")[0] or path.name,
        path=path,
        format=label,
        questions=tuple(questions),
        rejected=MappingProxyType(dict(rejected)),
        left_out=MappingProxyType(dict(left_out)),
        sha256=hashlib.sha256(stored).hexdigest(),
    )


def check_surrogates(value: object) -> None:
    """JSON can spell half a character (a lone surrogate), which no tokenizer and no file takes.

    Raises:
        UnusableRecordError: a text holds one.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UnusableRecordError("half a Unicode character", f"\\u{ord(error.object[error.start]):04x}") from None


def _bytes(path: Path) -> bytes:
    refuse_special(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RecordError(f"no data file at {path}") from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}") from None


def _unpacked(stored: bytes, path: Path) -> bytes:
    if stored[:2] != _GZIP_MAGIC:
        return stored
    try:
        return gzip.decompress(stored)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecordError(f"{path} is damaged or cut off ({error}): fetch it anew") from None


def _values(content: bytes, path: Path, rejected: Counter[str]) -> Iterator[object]:
    """The top-level JSON values: the items of an array, one object, or one object a line."""
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    first_line = start.partition(b"\n")[0]
    if start[:1] == b"[" or (start[:1] == b"{" and not _is_json(first_line)):
        try:
            whole = json.loads(start)
        except (ValueError, RecursionError) as error:
            if start[:1] == b"[":
                raise RecordError(f"{path} is not valid JSON: {error}") from None
        else:
            yield from whole if isinstance(whole, list) else [whole]
            return
    for line in content.splitlines():
        if not line.strip():
            continue
        try:
            yield json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            rejected["not UTF-8"] += 1
        except (ValueError, RecursionError):
            rejected["bad JSON"] += 1


def _rows(content: bytes, rejected: Counter[str]) -> Iterator[object]:
    """The lines of a table with a head as records; of DPR's, which have none, as records of Natural Questions open."""
    lines = content.splitlines()
    if lines and _POPQA_HEAD in lines[0]:
        text = (line.decode("utf-8-sig", "replace") for line in lines)
        try:
            yield from csv.DictReader(text, delimiter="\t")
        except csv.Error:
            rejected["damaged table"] += 1
        return
    for line in lines:
        if not line.strip():
            continue
        try:
            question, listed = next(csv.reader([line.decode("utf-8-sig")], delimiter="\t"))
            answers = ast.literal_eval(listed)
        except UnicodeDecodeError:
            rejected["not UTF-8"] += 1
        except (ValueError, SyntaxError, RecursionError, MemoryError, csv.Error):
            rejected["not a question, a tab and a list of answers"] += 1
        else:
            yield {"question": question, "answer": answers}


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def format_of(values: Iterable[object]) -> str | None:
    """The name of the format of the first of some JSON values that has one."""
    for value in values:
        if isinstance(value, dict):
            for name, kind in FORMATS.items():
                if kind.matches(value):
                    return name
    return None


def _detect(values: list[object], path: Path, rejected: Counter[str]) -> str:
    known = format_of(values[:LOOKED_AT])
    if known is not None:
        return known
    first = next((value for value in values if isinstance(value, dict)), None)
    keys = ", ".join(map(repr, first)) if first else "no JSON object"
    counted = f"; rejected: {dict(rejected)}" if rejected else ""
    raise RecordError(
        f"{path}: its format is not known: expected one of {', '.join(FORMATS)} (docs/evaluation.md shows their keys), "
        f"got {keys}{counted}"
    )


def _items(values: list[object], kind: QuestionFormat, rejected: Counter[str]) -> Iterator[Mapping[str, object]]:
    for value in values:
        if not isinstance(value, dict):
            rejected["not a JSON object"] += 1
            continue
        try:
            for item in kind.items(value):
                if isinstance(item, UnusableRecordError):
                    rejected[item.reason] += 1
                else:
                    yield item
        except UnusableRecordError as fault:
            rejected[fault.reason] += 1
