"""From a name, a file or a BEIR folder to a task: questions with candidate documents, as every system is asked them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from clara.data import Question, QuestionSet, read_questions
from clara.errors import InputError, RecordError
from clara.evaluate.corpus import (
    CANDIDATES,
    MISSING_GOLD,
    Corpus,
    CorpusSearch,
    FirstStage,
    FirstStageName,
    beir_questions,
    is_beir,
    pooled,
    read_corpus,
    settled,
)
from clara.evaluate.rankers import TextEncoder
from clara.evaluate.system import Given, Query

Setting: TypeAlias = Literal["oracle", "normal"]
"""Whether the gold documents are surely among the candidates (clara.md section 8)."""

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
    first_stage: FirstStageName = "bm25"
    candidates: int = CANDIDATES
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
            given_out = settled(
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
                left_out[MISSING_GOLD] = len(chosen) - len(whole)
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
            self._stages[name] = CorpusSearch(corpus, chosen.first_stage, encoder=chosen.encoder)
        return self._stages[name], corpus


def _unusable(found: QuestionSet, corpus: Corpus | None) -> Counter[str]:
    """Faults of a file and of the corpus that is searched for it, by reason."""
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
