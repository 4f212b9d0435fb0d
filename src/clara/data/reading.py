"""Records and questions in files: read, with unusable ones counted by reason, and written whole or not at all.

Knows bytes, lines and JSON; fields of a record are the matter of ``parsing`` and ``records``, public formats of
``formats``.
"""

from __future__ import annotations

import ast
import csv
import gzip
import hashlib
import json
import os
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from clara.config import refuse_special
from clara.data.formats import FORMATS, Aliases, QuestionFormat
from clara.data.parsing import parse, to_json
from clara.data.records import DataRecord, MultiHop, PassageQA, QAPair, Question, UnusableRecordError
from clara.errors import RecordError

_GZIP_MAGIC = b"\x1f\x8b"
_LINES = (".jsonl", ".jsonl.gz")
_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_PUBLIC = (".json", ".json.gz", *_TABLES)
_OWN = "clara"  # name of our own format among ``FORMATS``
_POPQA_HEAD = b"possible_answers"
_LOOKED_AT = 20  # records whose keys may tell the format; the first ones may be faulty


@dataclass(frozen=True, slots=True)
class RecordSet:
    """The records of a data file, and the unusable parts.

    Attributes:
        records: the usable records, at least one, in file order.
        rejected: lines without a record, counted by reason.
        left_out: parts of usable records that were left out (a pair without answers, a blank answer), by reason.
        ignored_keys: keys that the records' kind does not have, with the number of records that hold them.
        format: as in ``formats.FORMATS``.
    """

    path: Path
    records: tuple[DataRecord, ...]
    rejected: Mapping[str, int]
    left_out: Mapping[str, int]
    ignored_keys: Mapping[str, int]
    sha256: str
    format: str = _OWN

    @property
    def passage_qa(self) -> tuple[PassageQA, ...]:
        """The records of the passage kind."""
        return tuple(record for record in self.records if isinstance(record, PassageQA))

    @property
    def multi_hop(self) -> tuple[MultiHop, ...]:
        """The records of the question-over-documents kind."""
        return tuple(record for record in self.records if isinstance(record, MultiHop))

    def summary(self) -> str:
        """A line for a person: the number of records, and each count of unusable parts."""
        origin = "" if self.format == _OWN else f" ({self.format})"
        counts = {"rejected": self.rejected, "left out": self.left_out, "ignored": self.ignored_keys}
        return _summary(f"{self.path.name}: {len(self.records)} records{origin}", counts)


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of a file.

    Attributes:
        name: of the data in results.
        format: as in ``formats.FORMATS``.
        questions: the usable ones, at least one, in file order.
        left_out: parts of usable questions that were left out, by reason.
    """

    name: str
    path: Path
    format: str
    questions: tuple[Question, ...]
    rejected: Mapping[str, int]
    left_out: Mapping[str, int]
    sha256: str

    def summary(self) -> str:
        """A line for a person."""
        counts = {"rejected": self.rejected, "left out": self.left_out}
        return _summary(f"{self.name}: {len(self.questions)} questions ({self.format})", counts)


def _summary(line: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    parts = [f"{label} {sum(own.values())} ({_listed(own)})" for label, own in counts.items() if own]
    return "; ".join([line, *parts])


def read_records(path: Path, *, plain_passages: bool = False) -> RecordSet:
    """Read a ``.jsonl`` or ``.jsonl.gz`` file of our records, or a file of any format that ``read_questions`` reads.

    The keys of our records tell their kind. Of a public format a question over several documents becomes a
    ``MultiHop``; questions with one document, a gold one, are gathered by it into a ``PassageQA``. Unusable lines are
    counted by reason. With ``plain_passages`` passages without ``qa`` are taken too, as ``PassageQA`` without pairs.

    Raises:
        RecordError: the file is missing, unreadable, cut off, not gzip in spite of its name, or empty, or no line of it
            gives a record; the message counts the reasons.
    """
    if _is_public(path):
        return _read_public(path)
    records: list[DataRecord] = []
    rejected: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    first = ""
    for number, line in _lines(path):
        try:
            parsed = parse(_decode(line), plain_passages=plain_passages)
        except UnusableRecordError as fault:
            rejected[fault.reason] += 1
            first = first or f"{number}: {fault.detail or fault.reason}"
            continue
        records.append(parsed.record)
        left_out.update(parsed.left_out)
        ignored.update(parsed.ignored_keys)
    if not records and not rejected:
        raise RecordError(f"{path} is empty: expected one JSON record a line")
    if not records:
        raise RecordError(
            f"{path} has no usable record; rejected {sum(rejected.values())} lines ({_listed(rejected)}), first line "
            f"{first}. Expected passages with 'qa', questions with 'docs', or a "
            "format of docs/evaluation.md"
        )
    return RecordSet(
        path=path,
        records=tuple(records),
        rejected=dict(rejected),
        left_out=dict(left_out),
        ignored_keys=dict(ignored),
        sha256=sha256_of(path),
    )


def _is_public(path: Path) -> bool:
    """The file is of a public format, by its name or by the keys of its first objects."""
    if path.name.endswith(_PUBLIC):
        return True
    values = []
    for _, line in islice(_lines(path), _LOOKED_AT):
        try:
            values.append(_decode(line))
        except UnusableRecordError:
            continue
    return _format_of(values) not in (None, _OWN)


def _read_public(path: Path) -> RecordSet:
    read = read_questions(path)
    rejected = Counter(read.rejected)
    records = _records(read.questions, rejected)
    if not records:
        raise RecordError(
            f"{path} ({read.format}) has no question to train on; rejected: {dict(rejected)}. A question needs "
            "answers and documents: give a file that holds both"
        )
    return RecordSet(
        path=path,
        records=tuple(records),
        rejected=dict(rejected),
        left_out=read.left_out,
        ignored_keys={},
        sha256=read.sha256,
        format=read.format,
    )


def _records(questions: Iterable[Question], rejected: Counter[str]) -> list[DataRecord]:
    """Records of questions, in the order of first appearance."""
    made: list[DataRecord | str] = []
    gathered: dict[str, list[MultiHop]] = {}
    for question in questions:
        try:
            record = question.record()
        except UnusableRecordError as fault:
            rejected[fault.reason] += 1
            continue
        if len(record.docs) > 1 or not record.gold:
            made.append(record)
            continue
        text = record.docs[0].text
        if text not in gathered:
            made.append(text)
        gathered.setdefault(text, []).append(record)
    for place, one in enumerate(made):
        if isinstance(one, str):
            first = gathered[one][0]
            pairs = tuple(QAPair(record.question, record.answers) for record in gathered[one])
            made[place] = PassageQA(first.id, first.source, first.docs[0].title, one, pairs)
    return [one for one in made if not isinstance(one, str)]


def read_questions(path: Path, *, name: str | None = None) -> QuestionSet:
    """Read questions of any format in ``FORMATS``, plain or gzipped.

    A ``.json`` or ``.jsonl`` file is a JSON array, one JSON object, or one object a line; a ``.csv`` or ``.tsv`` file
    is a table: PopQA's, or a question, a tab and a Python list of its answers a line (DPR). ``name`` is of the data in
    results; the file's name without its endings by default.

    Raises:
        RecordError: the file is missing, unreadable or damaged, of no known format, or holds no usable question.
    """
    with _opened(path) as file:
        stored = file.read()
    content = stored
    if stored[:2] == _GZIP_MAGIC:
        with _damage_named(path):
            content = gzip.decompress(stored)
    rejected: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    questions: list[Question] = []
    escaped = b"\\u" in content
    values = list(_rows(content, rejected) if path.name.endswith(_TABLES) else _values(content, path, rejected))
    label = _detect(values, path, rejected)
    kind = FORMATS[label]
    aliases = Aliases(path) if label == "2wiki" else None
    for item in _items(values, kind, rejected):
        parts: list[str] = []
        try:
            if escaped:
                _check_surrogates(item)
            question = kind.parse(aliases.added(item) if aliases is not None else item, parts)
        except UnusableRecordError as fault:
            rejected[fault.reason] += 1
            continue
        questions.append(question)
        left_out.update(parts)
    if not questions:
        raise RecordError(f"{path} has no usable question in format {label}; rejected: {dict(rejected)}")
    return QuestionSet(
        name=name or path.name.removesuffix(".gz").rpartition(".")[0] or path.name,
        path=path,
        format=label,
        questions=tuple(questions),
        rejected=dict(rejected),
        left_out=dict(left_out),
        sha256=hashlib.sha256(stored).hexdigest(),
    )


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes on disk, compressed or not."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_records(path: Path, records: Iterable[DataRecord]) -> int:
    """Write records to a ``.jsonl`` or ``.jsonl.gz`` file that ``read_records`` reads back equal; see ``write_jsonl``.

    Passages without pairs and paraphrase are read back with ``plain_passages`` only.
    """
    return write_jsonl(path, (to_json(record) for record in records))


def write_jsonl(path: Path, values: Iterable[Mapping[str, object]]) -> int:
    """Write JSON objects, one a line, UTF-8, gzipped if the name ends in ``.gz``; returns their number.

    The file appears only when complete: an error or a kill leaves the old one. Equal values give equal bytes (the gzip
    header holds no time). Missing folders are made.

    Raises:
        RecordError: the file cannot be written, or is not named ``*.jsonl`` or ``*.jsonl.gz``.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise RecordError(f"{path}: expected a file named *.jsonl or *.jsonl.gz")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            count = _write(file, values, packed=path.suffix == ".gz")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        # Nothing is left to remove after success, and an error on the way must not be replaced by one of the clean-up.
        with suppress(OSError):
            part.unlink()
    return count


def _write(file: BinaryIO, values: Iterable[Mapping[str, object]], *, packed: bool) -> int:
    if packed:
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as target:
            return _write(cast("BinaryIO", target), values, packed=False)
    count = 0
    for value in values:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        count += 1
    return count


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    refuse_special(path)
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise RecordError(f"no data file at {path}") from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    if not path.name.endswith(_LINES):
        raise RecordError(f"{path}: expected a file named *.jsonl or *.jsonl.gz, or of a public format *.json or *.tsv")
    with _opened(path) as file:
        packed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if path.suffix == ".gz" and not packed:
            raise RecordError(f"{path} is not gzip in spite of its name: rename it to *.jsonl or fetch it anew")
        with _damage_named(path), gzip.open(file) if packed else nullcontext(file) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecordError(f"{path} is damaged or cut off ({error}): fetch it anew") from None


def _decode(line: bytes) -> object:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableRecordError("not UTF-8", f"byte {error.start}") from None
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableRecordError("bad JSON", str(error)) from None
    if b"\\u" in line:
        _check_surrogates(value)
    return value


def _check_surrogates(value: object) -> None:
    """Refuse a lone surrogate, which JSON can spell, and no tokenizer and no file takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UnusableRecordError("half a Unicode character", f"\\u{ord(error.object[error.start]):04x}") from None


def _values(content: bytes, path: Path, rejected: Counter[str]) -> Iterator[object]:
    """The top-level JSON values: the items of an array, one object, or one object a line."""
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] in (b"[", b"{"):
        try:
            whole = json.loads(start)
        except (ValueError, RecursionError) as error:
            if start[:1] == b"[":
                raise RecordError(f"{path} is not valid JSON: {error}") from None
        else:
            yield from whole if isinstance(whole, list) else [whole]
            return
    for line in filter(bytes.strip, content.splitlines()):
        try:
            yield json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            rejected["not UTF-8"] += 1
        except (ValueError, RecursionError):
            rejected["bad JSON"] += 1


def _rows(content: bytes, rejected: Counter[str]) -> Iterator[object]:
    """Lines of a table with a head as records; of DPR's, without one, as records of Natural Questions open."""
    lines = content.splitlines()
    if lines and _POPQA_HEAD in lines[0]:
        text = (line.decode("utf-8-sig", "replace") for line in lines)
        try:
            yield from csv.DictReader(text, delimiter="\t")
        except csv.Error:
            rejected["damaged table"] += 1
        return
    for line in filter(bytes.strip, lines):
        try:
            question, listed = next(csv.reader([line.decode("utf-8-sig")], delimiter="\t"))
            answers = ast.literal_eval(listed)
        except UnicodeDecodeError:
            rejected["not UTF-8"] += 1
        except (ValueError, SyntaxError, RecursionError, MemoryError, csv.Error):
            rejected["not a question, a tab and a list of answers"] += 1
        else:
            yield {"question": question, "answer": answers}


def _format_of(values: Iterable[object]) -> str | None:
    """The format of the first of some JSON values that has one."""
    objects = (value for value in values if isinstance(value, dict))
    return next((name for value in objects for name, kind in FORMATS.items() if kind.matches(value)), None)


def _detect(values: list[object], path: Path, rejected: Counter[str]) -> str:
    known = _format_of(values[:_LOOKED_AT])
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


def _listed(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)
