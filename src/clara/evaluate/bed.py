"""The test bed: people's documents indexed and asked whole, as a user would, and each answer judged.

A bed is a folder of questions written by hand, one file a collection; its documents lie elsewhere, for they are
fetched. Knows what a right answer is, not how one is made: that is ``pipeline``'s work.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import regex
from pydantic import ValidationError

from clara.config import Settings
from clara.errors import InputError, RecordError
from clara.ingest import read_file
from clara.metrics import is_abstention, normalize_answer, score_answer
from clara.model import ClaraModel
from clara.pipeline import Clara
from clara.prompts import passage_text
from clara.records import Document, GenerationRequest, Hit, SearchMode

_Half = Literal["tuning", "reporting"]
_Verdict = Literal["right", "wrong", "abstained"]

_MOST_MORE_TOKENS = 10
"""Tokens that an answer may have beside the accepted form: a sentence around it, not a paragraph that has it too."""
_DEPTH = 5
"""Hits looked at for the evidence, whatever a system reads."""
_BASELINE_K = 3
_SIGNS = regex.compile(r"\p{P}")
_ANSWER_TOKENS = 64  # as `clara ask`


class _Evidence(Settings):
    """The stretch of a document that holds the answer, word for word; signs and white space between do not count."""

    document: str
    text: str


class _BedQuestion(Settings):
    """One question; its id is collection, hyphen, number.

    Attributes:
        answers: accepted forms, the shortest exact one first; empty if the collection does not answer the question.
        half: for choosing rules and thresholds, or for reporting what they give.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    evidence: _Evidence | None
    half: _Half


@dataclass(frozen=True, slots=True)
class _EvidenceSpan:
    """Where a question's evidence stands: characters of the text of the document of that uri."""

    document: str
    start: int
    end: int

    def overlaps(self, hit: Hit) -> bool:
        passage = hit.passage
        return passage.document == self.document and passage.start < self.end and self.start < passage.end


@dataclass(frozen=True, slots=True)
class _BedCollection:
    """A folder of documents with its questions, each beside the place of its evidence (None: unanswerable)."""

    name: str
    folder: Path
    questions: tuple[tuple[_BedQuestion, _EvidenceSpan | None], ...]


@dataclass(frozen=True, slots=True)
class _BedRow:
    """One question, one system.

    Attributes:
        found: rank of the first hit that overlaps the evidence, 1 to ``_DEPTH``; None if none does.
        seconds: from the question to its answer, the model being loaded.
        hits: what the system's search found, best first, for choosing rules without asking again.
        reply: all else that the system says of its answer.
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
    """What a system got in one collection, or in all (``collection`` is then ``total``).

    Attributes:
        right, wrong, abstained: of the answerable questions.
        exact: right by strict exact match.
        anywhere: an accepted form stands in an answer that was given, however long it is; what a system that writes
            paragraphs is to be compared by.
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
        InputError: there are no questions, or a collection's documents are not there.
        RecordError: a question is malformed, its evidence does not stand exactly once in its document, or its evidence
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
    chosen = (item for item in placed if half is None or item[0].half == half)
    return _BedCollection(file.stem, documents, tuple(chosen))


def _place(question: _BedQuestion, read: Callable[[str], list[Document]]) -> _EvidenceSpan | None:
    evidence = question.evidence
    if evidence is None or not question.answers:
        if evidence is not None or question.answers:
            raise InputError(f"{question.id}: answers and evidence go together; give both, or neither")
        return None
    form = question.answers[0]
    if form not in {"yes", "no"} and not _contains(evidence.text, form):
        raise InputError(f"{question.id}: {form!r} is not in its evidence")
    # By its words alone: how a list or a heading is marked in plain text is the reader's affair.
    pattern = re.compile(r"[\W_]+".join(re.findall(r"[^\W_]+", evidence.text)))
    places = [
        _EvidenceSpan(document.uri, match.start(), match.end())
        for document in read(evidence.document)
        for match in pattern.finditer(document.text)
    ]
    if len(places) != 1:
        raise InputError(f"{question.id}: its evidence stands {len(places)} times in {evidence.document}, not once")
    return places[0]


def judge(answer: str, answers: Sequence[str], *, answered: bool = True) -> _Verdict:
    """Judge an answer.

    Compared are SQuAD's normal forms, token by token. An answer is right if an accepted form stands in it as a run of
    whole tokens with at most ``_MOST_MORE_TOKENS`` others; ``yes`` and ``no`` have to be its first token. What is not
    right and says of itself that there is no answer is an abstention, all else wrong.

    No answer meets an unanswerable question, which has no accepted forms. ``answered`` is false if the system marks its
    answer as none.
    """
    if answered and any(_meets(answer, form) for form in answers):
        return "right"
    return "abstained" if not answered or is_abstention(answer) else "wrong"


def _meets(answer: str, form: str) -> bool:
    tokens, wanted = _normal(answer).split(), _normal(form).split()
    if len(tokens) > len(wanted) + _MOST_MORE_TOKENS:
        return False
    return tokens[:1] == wanted if wanted in (["yes"], ["no"]) else _contains(answer, form)


def _contains(text: str, form: str) -> bool:
    wanted = _normal(form)
    return bool(wanted) and f" {wanted} " in f" {_normal(text)} "


def _normal(text: str) -> str:
    """SQuAD's normal form, typographic signs left out as ASCII's are."""
    return normalize_answer(_SIGNS.sub("", text))


def _anywhere(row: _BedRow) -> bool:
    return any(form not in {"yes", "no"} and _contains(row.answer, form) for form in row.answers)


@dataclass(frozen=True, slots=True)
class _Said:
    text: str
    prompt_tokens: int
    seconds: float
    reply: dict[str, Any]
    answered: bool = True


@dataclass(frozen=True, slots=True)
class _System:
    """How a question is answered, and where its evidence is looked for (None: the system searches nothing)."""

    ask: Callable[[Clara, str], _Said]
    search: Callable[[Clara, str], list[Hit]] | None


def _shipped(**how: Any) -> _System:  # noqa: ANN401 - options of ``Clara.ask``
    def ask(rag: Clara, question: str) -> _Said:
        answer = rag.ask(question, **how)
        facts = {name: value for name, value in asdict(answer).items() if name not in {"text", "citations"}}
        return _Said(answer.text, answer.tokens.prompt, answer.seconds.total, facts, answer.answered)

    return _System(ask, lambda rag, question: rag.search(question, _DEPTH))


def _plain(mode: SearchMode | None) -> _System:
    """The backbone without us: zero-shot, on the best passages by BM25 as text, or on nothing."""

    def ask(rag: Clara, question: str) -> _Said:
        started = time.perf_counter()
        hits = rag.search(question, _BASELINE_K, mode=mode) if mode is not None else []
        texts = tuple(passage_text(hit.passage.title, hit.passage.text) for hit in hits)
        request = GenerationRequest(question, texts=texts, reader="base")
        made = rag.model.generate_many([request], max_new_tokens=_ANSWER_TOKENS)[0]
        seconds = time.perf_counter() - started
        return _Said(made.text, made.tokens.prompt, seconds, {"tokens": asdict(made.tokens)})

    return _System(ask, None if mode is None else lambda rag, question: rag.search(question, _DEPTH, mode=mode))


SYSTEMS: dict[str, _System] = {
    "default": _shipped(),
    "memory": _shipped(context="memory"),
    "text": _shipped(context="text"),
    "bm25-plain": _plain("text"),
    "closed-book": _plain(None),
}
"""By name: ``clara ask`` as shipped, from memories alone, from text; BM25 and the plain backbone; nothing read."""


def run_bed(
    collections: Sequence[_BedCollection],
    model: ClaraModel,
    stores: Path,
    systems: Sequence[str] = tuple(SYSTEMS),
    *,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[_BedRow]:
    """Index each collection and ask its questions of each system, named as in ``SYSTEMS``.

    ``stores`` is a folder for a store a collection; one that is there already is brought up to date. ``on_progress`` is
    told (done, total, words) before each step.

    Raises:
        InputError: there is no such system; said before anything is indexed.
        StoreModelError: another model filled a store that is there.
    """
    unknown = [name for name in systems if name not in SYSTEMS]
    if unknown:
        raise InputError(f"no such system: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    return _rows(collections, model, stores, systems, on_progress or (lambda *_: None))


def _rows(
    collections: Sequence[_BedCollection],
    model: ClaraModel,
    stores: Path,
    systems: Sequence[str],
    tell: Callable[[int, int, str], None],
) -> Iterator[_BedRow]:
    total = len(systems) * sum(len(collection.questions) for collection in collections)
    done = 0
    for collection in collections:
        tell(done, total, f"indexing {collection.name}")
        with Clara.open(stores / collection.name, model=model) as rag:
            rag.add(collection.folder, prune=True)
            for name in systems:
                for question, place in collection.questions:
                    tell(done, total, f"{collection.name}, {name}")
                    yield _row(rag, name, collection.name, question, place)
                    done += 1


def _row(rag: Clara, name: str, collection: str, question: _BedQuestion, place: _EvidenceSpan | None) -> _BedRow:
    system = SYSTEMS[name]
    said = system.ask(rag, question.question)
    hits = system.search(rag, question.question) if system.search is not None else []
    overlapping = [rank for rank, hit in enumerate(hits, start=1) if place is not None and place.overlaps(hit)]
    return _BedRow(
        id=question.id,
        collection=collection,
        half=question.half,
        system=name,
        question=question.question,
        answers=question.answers,
        answer=said.text,
        verdict=judge(said.text, question.answers, answered=said.answered),
        exact=bool(question.answers) and said.answered and score_answer(said.text, question.answers).em == 1.0,
        found=overlapping[0] if overlapping else None,
        prompt_tokens=said.prompt_tokens,
        seconds=said.seconds,
        hits=tuple(_hit_facts(hit, place) for hit in hits),
        reply=said.reply,
    )


def _hit_facts(hit: Hit, place: _EvidenceSpan | None) -> dict[str, Any]:
    passage = hit.passage
    return {
        "document": passage.document,
        "start": passage.start,
        "end": passage.end,
        "score": hit.score,
        "evidence": place is not None and place.overlaps(hit),
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

    def within(depth: int) -> int:
        return sum(rank <= depth for rank in ranks)

    return BedScore(
        system=rows[0].system,
        collection=rows[0].collection,
        answerable=len(asked),
        right=verdicts.count("right"),
        wrong=verdicts.count("wrong"),
        abstained=verdicts.count("abstained"),
        exact=sum(row.exact for row in asked),
        anywhere=sum(row.verdict == "right" or (row.verdict == "wrong" and _anywhere(row)) for row in asked),
        unanswerable=len(rows) - len(asked),
        refused=sum(row.verdict == "abstained" for row in rows if not row.answers),
        found=None if SYSTEMS[rows[0].system].search is None else (within(1), within(3), within(5)),
        prompt_tokens=sum(row.prompt_tokens for row in rows) / len(rows),
        seconds=sum(row.seconds for row in rows) / len(rows),
    )
