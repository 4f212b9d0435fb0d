"""The test bed: people's documents indexed and asked whole, as a user would, and each answer judged.

A bed is a folder of questions written by hand, one file a collection; its documents lie elsewhere, for they are
fetched. Answers are made by ``pipeline``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from clara.config import Settings
from clara.errors import InputError, RecordError
from clara.ingest import read_file
from clara.metrics import contains_form, is_abstention, meets, score_answer
from clara.model import ClaraModel
from clara.pipeline import Clara
from clara.prompts import passage_text
from clara.records import Answer, Document, Generation, GenerationRequest, Hit, SearchMode

_Half = Literal["tuning", "reporting"]
_Verdict = Literal["right", "wrong", "abstained"]

_DEPTH = 5
"""Hits searched for the evidence."""
_BASELINE_K = 3
_ANSWER_TOKENS = 64  # as `clara ask`


class _Evidence(Settings):
    """The stretch of a document that contains the answer, word for word except signs and white space."""

    document: str
    text: str


class _BedQuestion(Settings):
    """A question; its id is collection, hyphen, number.

    ``answers`` are accepted forms, the shortest exact one first; empty if the collection does not answer the question.
    A half is for choosing rules and thresholds, or for reporting their results.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    evidence: _Evidence | None
    half: _Half


@dataclass(frozen=True, slots=True)
class _EvidenceSpan:
    """Characters of the text of the document with this uri."""

    document: str
    start: int
    end: int

    def overlaps(self, hit: Hit) -> bool:
        passage = hit.passage
        return passage.document == self.document and passage.start < self.end and self.start < passage.end


@dataclass(frozen=True, slots=True)
class _BedCollection:
    """A folder of documents with its questions, each with its evidence (None: unanswerable)."""

    name: str
    folder: Path
    questions: tuple[tuple[_BedQuestion, _EvidenceSpan | None], ...]


@dataclass(frozen=True, slots=True)
class _BedRow:
    """A system's answer to a question.

    ``found`` is the rank of the first hit that overlaps the evidence, 1 to ``_DEPTH``. Hits are kept, best first, with
    everything in the answer (``reply``), for choosing rules without asking again.
    """

    id: str
    collection: str
    half: _Half
    system: str
    question: str
    answers: tuple[str, ...]
    answer: str
    verdict: _Verdict
    exact: bool
    found: int | None
    prompt_tokens: int
    seconds: float
    hits: tuple[dict[str, Any], ...]
    reply: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BedScore:
    """Score of a system in one collection, or in all (``collection`` is then ``total``).

    Attributes:
        right, wrong, abstained: of the answerable questions.
        exact: right by strict exact match.
        anywhere: answers that contain an accepted form, however long they are; fair to systems that write paragraphs.
        found: answerable questions whose evidence is among the first 1, 3 and 5 hits; None without a search.
        prompt_tokens, seconds: means over all questions.
    """

    system: str
    collection: str
    answerable: int
    right: int
    wrong: int
    abstained: int
    exact: int
    anywhere: int
    unanswerable: int
    refused: int
    found: tuple[int, int, int] | None
    prompt_tokens: float
    seconds: float


def read_bed(folder: Path, documents: Path, *, half: _Half | None = None) -> list[_BedCollection]:
    """Read a bed (``questions/COLLECTION.jsonl``) and check it against its documents, a folder a collection.

    Raises:
        InputError: there are no questions, or a collection's documents are missing.
        RecordError: a question is malformed, its evidence does not occur exactly once in its document, or its evidence
            lacks the answer; all faults of a file at once.
    """
    files = sorted((folder / "questions").glob("*.jsonl"))
    if not files:
        raise InputError(f"{folder} is no test bed: no questions/COLLECTION.jsonl in it; give its folder with --data")
    missing = [file.stem for file in files if not (documents / file.stem).is_dir()]
    if missing:
        raise InputError(
            f"no documents of {', '.join(missing)} in {documents}; fetch them: "
            f"python {folder / 'fetch.py'} --out {documents}"
        )
    return [_read_collection(file, documents / file.stem, half) for file in files]


def _read_collection(file: Path, documents: Path, half: _Half | None) -> _BedCollection:

    @cache
    def read(name: str) -> list[Document]:
        return [item for item in read_file(documents / name) if isinstance(item, Document)]

    placed: list[tuple[_BedQuestion, _EvidenceSpan | None]] = []
    faults: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            question = _BedQuestion.model_validate_json(line)
            placed.append((question, _place(question, read)))
        except ValidationError as error:
            faults.append(f"line {number}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}")
        except InputError as error:
            faults.append(f"line {number}: {error}")
    ids = [question.id for question, _ in placed]
    faults.extend(f"{name} occurs {ids.count(name)} times" for name in dict.fromkeys(ids) if ids.count(name) > 1)
    if faults:
        raise RecordError(f"{file}: {'; '.join(faults)}")
    kept = tuple(item for item in placed if half is None or item[0].half == half)
    return _BedCollection(file.stem, documents, kept)


def _place(question: _BedQuestion, read: Callable[[str], list[Document]]) -> _EvidenceSpan | None:
    evidence = question.evidence
    if evidence is None or not question.answers:
        if evidence is not None or question.answers:
            raise InputError(f"{question.id}: answers and evidence go together; give both, or neither")
        return None
    form = question.answers[0]
    if form not in {"yes", "no"} and not contains_form(evidence.text, form):
        raise InputError(f"{question.id}: {form!r} is not in its evidence")
    # By its words alone: how a list or a heading is marked in plain text is the reader's affair.
    pattern = re.compile(r"[\W_]+".join(re.findall(r"[^\W_]+", evidence.text)))
    spans = [
        _EvidenceSpan(document.uri, match.start(), match.end())
        for document in read(evidence.document)
        for match in pattern.finditer(document.text)
    ]
    if len(spans) != 1:
        raise InputError(f"{question.id}: its evidence stands {len(spans)} times in {evidence.document}, not once")
    return spans[0]


def judge(answer: str, answers: Sequence[str], *, answered: bool = True) -> _Verdict:
    """Judge an answer.

    Right: it ``meets`` an accepted form. Otherwise an answer that says there is none is an abstention, all else is
    wrong. ``answered`` is false if the system marks its answer as none.
    """
    if answered and any(meets(answer, form) for form in answers):
        return "right"
    return "abstained" if not answered or is_abstention(answer) else "wrong"


SYSTEMS: dict[str, dict[str, Any]] = {
    "default": {},
    "memory": {"context": "memory"},
    "text": {"context": "text"},
    "bm25-plain": {"mode": "text"},
    "closed-book": {"mode": None},
}
"""``clara ask`` as shipped, from memories alone, from text: options of ``Clara.ask``; with ``mode``, the plain backbone
zero-shot on the best passages of this search as text, or closed-book."""


def run_bed(
    collections: Sequence[_BedCollection],
    model: ClaraModel,
    stores: Path,
    systems: Sequence[str] = tuple(SYSTEMS),
    *,
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Iterator[_BedRow]:
    """Index each collection and ask its questions of each system.

    ``stores`` is a folder for a store a collection; a store from an earlier run is brought up to date. ``on_progress``
    is called with (done, total, label) before each step.

    Raises:
        InputError: there is no such system; raised before anything is indexed.
        StoreModelError: another model filled a store from an earlier run.
    """
    unknown = [name for name in systems if name not in SYSTEMS]
    if unknown:
        raise InputError(f"no such system: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    total = len(systems) * sum(len(collection.questions) for collection in collections)

    def rows() -> Iterator[_BedRow]:
        done = 0
        for collection in collections:
            on_progress(done, total, f"indexing {collection.name}")
            with Clara.open(stores / collection.name, model=model) as rag:
                rag.add(collection.folder, prune=True)
                for name in systems:
                    for question, span in collection.questions:
                        on_progress(done, total, f"{collection.name}, {name}")
                        yield _row(rag, name, collection.name, question, span)
                        done += 1

    return rows()


def _row(rag: Clara, name: str, collection: str, question: _BedQuestion, span: _EvidenceSpan | None) -> _BedRow:
    options = SYSTEMS[name]
    mode: SearchMode | None = options.get("mode", "hybrid")
    started = time.perf_counter()
    answer: Answer | Generation = (
        _ask_plain(rag, question.question, mode) if "mode" in options else rag.ask(question.question, **options)
    )
    seconds = time.perf_counter() - started
    answered, left_out = True, {"text", "token_ids", "finish_reason", "evidence"}
    if isinstance(answer, Answer):
        answered, left_out = answer.answered, {"text", "citations"}
    hits = rag.search(question.question, _DEPTH, mode=mode) if mode is not None else []
    overlapping = [rank for rank, hit in enumerate(hits, start=1) if span is not None and span.overlaps(hit)]
    return _BedRow(
        id=question.id,
        collection=collection,
        half=question.half,
        system=name,
        question=question.question,
        answers=question.answers,
        answer=answer.text,
        verdict=judge(answer.text, question.answers, answered=answered),
        exact=bool(question.answers) and answered and score_answer(answer.text, question.answers).em == 1.0,
        found=overlapping[0] if overlapping else None,
        prompt_tokens=answer.tokens.prompt,
        seconds=seconds,
        hits=tuple(_hit_facts(hit, span) for hit in hits),
        reply={key: value for key, value in asdict(answer).items() if key not in left_out},
    )


def _ask_plain(rag: Clara, question: str, mode: SearchMode | None) -> Generation:
    """The backbone without us: zero-shot, on the best passages by BM25 as text, or on nothing."""
    hits = rag.search(question, _BASELINE_K, mode=mode) if mode is not None else []
    texts = tuple(passage_text(hit.passage.title, hit.passage.text) for hit in hits)
    request = GenerationRequest(question, texts=texts, reader="base")
    return rag.model.generate_many([request], max_new_tokens=_ANSWER_TOKENS)[0]


def _hit_facts(hit: Hit, span: _EvidenceSpan | None) -> dict[str, Any]:
    passage = hit.passage
    return {
        "document": passage.document,
        "start": passage.start,
        "end": passage.end,
        "score": hit.score,
        "evidence": span is not None and span.overlaps(hit),
    }


def score_bed(rows: Iterable[_BedRow]) -> list[BedScore]:
    """Scores of each system: each collection's in the rows' order, then its total."""
    by_system: dict[str, dict[str, list[_BedRow]]] = {}
    for row in rows:
        by_system.setdefault(row.system, {}).setdefault(row.collection, []).append(row)
    scores: list[BedScore] = []
    for collections in by_system.values():
        scores.extend(_score(group) for group in collections.values())
        scores.append(replace(_score([row for group in collections.values() for row in group]), collection="total"))
    return scores


def _score(rows: Sequence[_BedRow]) -> BedScore:
    asked = [row for row in rows if row.answers]
    verdicts = [row.verdict for row in asked]
    ranks = [row.found or _DEPTH + 1 for row in asked]
    searches = SYSTEMS[rows[0].system].get("mode", "") is not None
    return BedScore(
        system=rows[0].system,
        collection=rows[0].collection,
        answerable=len(asked),
        right=verdicts.count("right"),
        wrong=verdicts.count("wrong"),
        abstained=verdicts.count("abstained"),
        exact=sum(row.exact for row in asked),
        anywhere=sum(
            row.verdict == "right"
            or (
                row.verdict == "wrong"
                and any(contains_form(row.answer, form) for form in {*row.answers} - {"yes", "no"})
            )
            for row in asked
        ),
        unanswerable=len(rows) - len(asked),
        refused=sum(row.verdict == "abstained" for row in rows if not row.answers),
        found=(ranks.count(1), sum(rank <= 3 for rank in ranks), sum(rank <= 5 for rank in ranks))
        if searches
        else None,
        prompt_tokens=sum(row.prompt_tokens for row in rows) / len(rows),
        seconds=sum(row.seconds for row in rows) / len(rows),
    )
