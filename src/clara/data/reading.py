"""Read records from JSON Lines, plain or gzipped, or from a public format; count what cannot be used, by reason.

Knows bytes and lines; what a record must hold is ``parsing``'s and ``records``' matter, what a public format holds
``formats``'.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from clara.config import refuse_special
from clara.data.parsing import parse
from clara.data.questions import Question
from clara.data.reading_questions import LOOKED_AT, TABLES, check_surrogates, format_of, read_questions
from clara.data.records import DataRecord, MultiHop, PassageQA, QAPair, UnusableRecordError
from clara.errors import RecordError

_GZIP_MAGIC = b"\x1f\x8b"
_KEPT_FAULTS = 10
_LINES = (".jsonl", ".jsonl.gz")
_PUBLIC = (".json", ".json.gz", *TABLES)
_OWN = "clara"
"""Name of our own format among ``formats.FORMATS``."""


@dataclass(frozen=True, slots=True)
class RecordFault:
    """One line that gave no record.

    Attributes:
        line: line number, from 1.
        reason: as counted in ``RecordSet.rejected``.
        detail: what came.
    """

    line: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class RecordSet:
    """What a data file holds, and what of it cannot be used.

    Attributes:
        path: the file.
        records: the usable records, at least one, in file order.
        rejected: lines that gave no record, counted by reason.
        left_out: parts of usable records that were left out (a pair without answers, a blank answer), by reason.
        ignored_keys: keys that the records' kind does not have, with the number of records that hold them.
        faults: the first few rejected lines.
        sha256: of the file's bytes, hex.
        format: as in ``formats.FORMATS``.
    """

    path: Path
    records: tuple[DataRecord, ...]
    rejected: Mapping[str, int]
    left_out: Mapping[str, int]
    ignored_keys: Mapping[str, int]
    faults: tuple[RecordFault, ...]
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
        """One line for a person: how many records, and each count of what was rejected, left out or ignored."""
        origin = "" if self.format == _OWN else f" ({self.format})"
        parts = [f"{self.path.name}: {len(self.records)} records{origin}"]
        for label, counts in (("rejected", self.rejected), ("left out", self.left_out), ("ignored", self.ignored_keys)):
            if counts:
                parts.append(f"{label} {sum(counts.values())} ({_listed(counts)})")
        return "; ".join(parts)


def read_records(path: Path, *, plain_passages: bool = False) -> RecordSet:
    """Read a ``.jsonl`` or ``.jsonl.gz`` file of our records, or a file of any format that ``read_questions`` reads.

    Of ours each line's keys tell which kind of record it is; blank lines are not records. Of a public format a question
    over several documents becomes a ``MultiHop``; questions that have one document, and it is gold, are gathered by it
    into a ``PassageQA``. What gives no record is counted by reason and the reading goes on.

    Args:
        path: the file.
        plain_passages: take passages without ``qa`` too, as ``PassageQA`` without pairs.

    Raises:
        RecordError: the file is missing, unreadable, cut off, not gzip in spite of its name, or empty, or no line of
            it gives a record; the message counts the reasons.
    """
    if _is_public(path):
        return _read_public(path)
    records: list[DataRecord] = []
    rejected: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    faults: list[RecordFault] = []
    for number, line in _lines(path):
        try:
            parsed = parse(_decode(line), plain_passages=plain_passages)
        except UnusableRecordError as fault:
            rejected[fault.reason] += 1
            if len(faults) < _KEPT_FAULTS:
                faults.append(RecordFault(number, fault.reason, fault.detail))
            continue
        records.append(parsed.record)
        left_out.update(parsed.left_out)
        ignored.update(parsed.ignored_keys)
    if not records and not rejected:
        raise RecordError(f"{path} is empty: expected one JSON record a line")
    if not records:
        first = faults[0]
        raise RecordError(
            f"{path} has no usable record; rejected {sum(rejected.values())} lines ({_listed(rejected)}), first line "
            f"{first.line}: {first.detail or first.reason}. Expected passages with 'qa', questions with 'docs', or a "
            "format of docs/evaluation.md"
        )
    return RecordSet(
        path=path,
        records=tuple(records),
        rejected=MappingProxyType(dict(rejected)),
        left_out=MappingProxyType(dict(left_out)),
        ignored_keys=MappingProxyType(dict(ignored)),
        faults=tuple(faults),
        sha256=sha256_of(path),
    )


def _is_public(path: Path) -> bool:
    """Whether a file is of a public format, by its name or by the keys of its first objects."""
    if path.name.endswith(_PUBLIC):
        return True
    values = []
    for _, line in islice(_lines(path), LOOKED_AT):
        try:
            values.append(_decode(line))
        except UnusableRecordError:
            continue
    return format_of(values) not in (None, _OWN)


def _read_public(path: Path) -> RecordSet:
    found = read_questions(path)
    rejected = Counter(found.rejected)
    records = _records(found.questions, rejected)
    if not records:
        raise RecordError(
            f"{path} ({found.format}) has no question to train on; rejected: {dict(rejected)}. A question needs "
            "answers and documents: give a file that holds both"
        )
    return RecordSet(
        path=path,
        records=tuple(records),
        rejected=MappingProxyType(dict(rejected)),
        left_out=found.left_out,
        ignored_keys=MappingProxyType({}),
        faults=(),
        sha256=found.sha256,
        format=found.format,
    )


def _records(questions: Iterable[Question], rejected: Counter[str]) -> list[DataRecord]:
    """Records of questions, in the order of first appearance."""
    made: list[MultiHop | str] = []
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
    return [_passage(gathered[one]) if isinstance(one, str) else one for one in made]


def _passage(asked: list[MultiHop]) -> PassageQA:
    """The questions about one document."""
    first = asked[0]
    pairs = tuple(QAPair(record.question, record.answers) for record in asked)
    return PassageQA(first.id, first.source, first.docs[0].title, first.docs[0].text, pairs)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes as they lie on disk, compressed or not.

    Raises:
        RecordError: the file cannot be read.
    """
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        try:
            with gzip.open(file) if packed else nullcontext(file) as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield number, line
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
        check_surrogates(value)
    return value


def _listed(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)
