"""Corpora that candidates come from: BEIR, DPR, KILT or our own passages, or pooled from the questions themselves.

Knows passages and files, not how they are searched (``questions``).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from clara.data import DocText, GoldRef, Question, QuestionSet, sha256_of
from clara.data.records import UnusableRecordError
from clara.errors import RecordError

_CSV_FIELD_LIMIT = 1 << 24


@dataclass(frozen=True, slots=True)
class CorpusPassage:
    """A passage and its identifier in the corpus."""

    id: str
    doc: DocText


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages to search; ``qrels``: ids of relevant passages by question id (BEIR), else empty."""

    name: str
    passages: tuple[CorpusPassage, ...]
    rejected: Mapping[str, int]
    qrels: Mapping[str, frozenset[str]]

    def __post_init__(self) -> None:
        if not self.passages:
            raise RecordError(f"the corpus {self.name} holds no passage; rejected: {dict(self.rejected)}")


def pooled(questions: Iterable[Question], *, name: str = "pool") -> Corpus:
    """The candidates of all questions, each text once, in order of first appearance (RecordError: there are none)."""
    docs = dict.fromkeys(doc for question in questions for doc in question.docs)
    passages = (CorpusPassage(str(number), doc) for number, doc in enumerate(docs))
    return Corpus(name, tuple(passages), {}, {})


def is_beir(path: Path) -> bool:
    """Test for BEIR's layout."""
    return any((path / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz"))


def read_corpus(path: Path) -> Corpus:
    """Read a BEIR folder, DPR's passages (``.tsv``), KILT's knowledge source, or our own passage records.

    Raises:
        RecordError: unreadable, of no known format, or empty.
    """
    rejected: Counter[str] = Counter()
    qrels: dict[str, frozenset[str]] = {}
    if path.is_dir():
        if not is_beir(path):
            raise RecordError(f"{path} is no corpus: expected a store of ours or a BEIR folder with corpus.jsonl")
        qrels = _read_qrels(path)
        packed = path / "corpus.jsonl.gz"
        source = packed if packed.is_file() else path / "corpus.jsonl"
    else:
        source = path
    if source.name.endswith((".tsv", ".tsv.gz")):
        passages = tuple(_dpr(source, rejected))
    else:
        passages = tuple(_json_lines(source, rejected))
    return Corpus(path.name, passages, dict(rejected), qrels)


def _read_qrels(folder: Path) -> dict[str, frozenset[str]]:
    """Relevant passage ids by question id, of all splits in ``qrels/*.tsv``; a judgement of 0 is no relevance."""
    qrels: dict[str, set[str]] = {}
    for path in sorted((folder / "qrels").glob("*.tsv")):
        with _opened(path) as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
                if number == 1 and row[:1] == ["query-id"]:
                    continue
                if len(row) != 3 or not row[2].lstrip("-").isdigit():
                    raise RecordError(f"{path}:{number}: expected query-id, corpus-id and a whole score, got {row}")
                if int(row[2]) > 0:
                    qrels.setdefault(row[0], set()).add(row[1])
    return {question: frozenset(ids) for question, ids in qrels.items()}


def beir_questions(folder: Path) -> QuestionSet:
    """Read the judged questions of a BEIR folder.

    BEIR has no answers: they are known only where ``metadata.answer`` holds one, as in its HotpotQA; elsewhere only
    rankings can be measured.

    Raises:
        RecordError: a file is missing or cannot be read, or no question is judged.
    """
    qrels = _read_qrels(folder)
    packed = folder / "queries.jsonl.gz"
    questions = []
    rejected: Counter[str] = Counter()
    for value in _objects(packed if packed.is_file() else folder / "queries.jsonl", rejected):
        if str(value.get("_id")) not in qrels:
            continue  # of another split: nothing is wrong with it
        try:
            questions.append(_judged(value, qrels[str(value["_id"])], source=folder.name))
        except UnusableRecordError as fault:
            rejected[fault.reason] += 1
    if not questions:
        counted = f"; rejected: {dict(rejected)}" if rejected else ""
        raise RecordError(
            f"{folder} has no judged question: expected queries.jsonl and qrels/*.tsv that name the same{counted}"
        )
    files = sorted((*folder.glob("*.jsonl*"), *folder.glob("qrels/*.tsv")))
    return QuestionSet(
        name=folder.name,
        path=folder,
        format="beir",
        questions=tuple(questions),
        rejected=dict(rejected),
        left_out={},
        sha256=hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest(),
    )


def _judged(value: Mapping[str, object], relevant: Iterable[str], *, source: str) -> Question:
    metadata = value.get("metadata")
    answer = metadata.get("answer") if isinstance(metadata, dict) else None
    return Question(
        id=str(value["_id"]),
        source=source,
        question=str(value.get("text", "")),
        answers=(answer,) if isinstance(answer, str) and answer.strip() else None,
        docs=(),
        gold=(),
        elsewhere=tuple(GoldRef(id=passage) for passage in sorted(relevant)),
    )


def _dpr(path: Path, rejected: Counter[str]) -> Iterator[CorpusPassage]:
    """``id, text, title`` a line (psgs_w100.tsv), quoted as spreadsheets do."""
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    with _opened(path) as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t"), start=1):
            if number == 1 and row[:1] == ["id"]:
                continue
            if len(row) != 3:
                rejected["not three columns"] += 1
            elif not row[1].strip():
                rejected["empty text"] += 1
            else:
                yield CorpusPassage(row[0], DocText(row[2], row[1]))


def _json_lines(path: Path, rejected: Counter[str]) -> Iterator[CorpusPassage]:
    for value in _objects(path, rejected):
        text = value.get("text")
        if isinstance(text, list):  # KILT's knowledge source: the article's paragraphs
            yield from _paragraphs(value, text)
        elif not isinstance(text, str):
            rejected["no text"] += 1
        elif not text.strip():
            rejected["empty text"] += 1
        else:
            name = value.get("_id", value.get("id"))
            if not isinstance(name, str | int):
                rejected["no id"] += 1
            else:
                yield CorpusPassage(str(name), DocText(str(value.get("title") or ""), text))


def _paragraphs(value: Mapping[str, object], text: Sequence[object]) -> Iterator[CorpusPassage]:
    article = str(value.get("wikipedia_id", value.get("_id", value.get("id", ""))))
    title = str(value.get("wikipedia_title") or value.get("title") or "")
    for number, paragraph in enumerate(text):
        words = str(paragraph).strip()
        # The first paragraph is the title; section headings and list items are marked and say nothing alone.
        if words and words != title and not words.startswith(("Section::::", "BULLET::::")):
            yield CorpusPassage(f"{article}:{number}", DocText(title, words))


def _objects(path: Path, rejected: Counter[str]) -> Iterator[Mapping[str, object]]:
    with _opened(path) as file:
        for line in file:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                rejected["bad JSON"] += 1
                continue
            if isinstance(value, dict):
                yield value
            else:
                rejected["not a JSON object"] += 1


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A text file, plain or gzipped, to read within the context: damage shows only there."""
    try:
        with path.open("rb") as start:
            packed = start.read(2) == b"\x1f\x8b"
        opened = gzip.open if packed else open
        with cast("TextIO", opened(path, "rt", encoding="utf-8-sig", newline="")) as file:
            yield file
    except FileNotFoundError:
        raise RecordError(f"no corpus file at {path}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{path} is damaged or cut off ({error}): fetch it anew") from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}") from None
