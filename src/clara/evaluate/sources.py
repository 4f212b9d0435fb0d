"""From a name or a file to the questions of a run: which file, which candidates, how many.

Knows where questions and candidates come from, not what is asked of whom.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from clara.data import Question, QuestionSet, read_questions, sha256_of
from clara.errors import InputError, RecordError
from clara.evaluate.contest import Exam, askable
from clara.evaluate.corpus import Corpus, GoldSupply, beir_questions, is_beir, pooled, read_corpus
from clara.evaluate.first_stage import (
    CANDIDATES,
    MISSING_GOLD,
    CorpusSearch,
    Encoder,
    FirstStage,
    FirstStageName,
    settled,
)
from clara.evaluate.system_result import Given, Setting

NAMES = ("nq", "hotpotqa", "musique", "2wiki", "squad")
"""Data sets that are found by name, as ``NAME.SETTING.jsonl.gz`` under the data folder."""

POOL = "pool"
"""Stands for the corpus that is pooled from the file's own candidates."""


@dataclass(frozen=True, slots=True)
class Candidacy:
    """Where candidates come from.

    Attributes:
        corpus: path of a BEIR folder or corpus file, ``pool``, or None: the file's own candidates where it is in our
            own format (they are ready as they are) or the setting is ``oracle``, else the pool.
        stage: a first stage that is ready made (a store's); it takes the place of ``corpus``.
        first_stage: how a corpus is searched.
        candidates: documents a question.
        encoder: vectors for ``dense`` and ``hybrid``.
        typed: options about searching that the user typed (``--candidates``), refused where nothing is searched.
    """

    corpus: str | None = None
    stage: FirstStage | None = None
    first_stage: FirstStageName = "bm25"
    candidates: int = CANDIDATES
    encoder: Encoder | None = None
    typed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """Questions of one data set in one setting.

    Attributes:
        exam: the questions as they are asked.
        left_out: questions that are not asked, by reason, and what of the file and the corpus cannot be used.
    """

    exam: Exam
    left_out: Mapping[str, int]


@dataclass(slots=True)
class Sources:
    """Reads data sets; a corpus is read and indexed once.

    Attributes:
        data_dir: folder of the named data sets, or None.
        candidacy: where candidates come from.
    """

    data_dir: Path | None
    candidacy: Candidacy = Candidacy()
    _corpora: dict[str, Corpus] = field(default_factory=dict)
    _stages: dict[str, FirstStage] = field(default_factory=dict)

    def load(
        self, data: str, setting: Setting, *, given: Given, k: int, max_new_tokens: int, limit: int | None = None
    ) -> Loaded:
        """The questions of a data set, ready to be asked.

        Args:
            data: one of ``NAMES``, a file, or a BEIR folder.
            setting: ``oracle`` or ``normal``.
            given: what systems see of the candidates.
            k: documents in the prompt.
            max_new_tokens: longest answer.
            limit: questions, counted from the first of the file.

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
                qrels=corpus.qrels if corpus is not None else MappingProxyType({}),
                supply=GoldSupply(corpus.passages) if corpus is not None and setting == "oracle" else None,
            )
            chosen = given_out.questions
            left_out.update(given_out.without)
            label = f"first {self.candidacy.candidates} of {stage.name}"
        elif setting == "oracle":
            # The file's own candidates; a supporting document known to lack (HotpotQA fullwiki) breaks the promise.
            whole = tuple(question for question in chosen if question.unanswerable or not _lacks_gold(question))
            if len(whole) < len(chosen):
                left_out[MISSING_GOLD] = len(chosen) - len(whole)
            chosen = whole
        if not chosen:
            listed = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            raise RecordError(f"nothing to ask in {data}: {listed}")
        questions, unasked = askable(chosen, given)
        return Loaded(
            Exam(
                data=found.name,
                data_sha256=found.sha256,
                setting=setting,
                candidates=label,
                given=given,
                questions=questions,
                k=k,
                max_new_tokens=max_new_tokens,
            ),
            MappingProxyType(dict(left_out + Counter(unasked))),
        )

    def _read(self, data: str, setting: Setting) -> QuestionSet:
        path = Path(data)
        if path.is_dir() and is_beir(path):
            return _beir_set(path)
        if path.is_file() or data not in NAMES:
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
        if (name is None or name == POOL) and not any(question.docs for question in found.questions):
            raise InputError(
                f"{found.path} brings no documents that could be pooled: give --corpus PATH, a store, a BEIR folder or "
                "a passage file"
            )
        if name is None or name == POOL:
            name = f"pool of {found.name}.{found.sha256[:8]}"
            corpus = self._corpora.setdefault(name, pooled(found.questions, name=name))
        elif name not in self._corpora:
            corpus = self._corpora[name] = read_corpus(Path(name))
        else:
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


def _lacks_gold(question: Question) -> bool:
    """Whether a supporting document is known not to be among the candidates that the question brings."""
    return bool(question.docs and question.elsewhere)


def _beir_set(folder: Path) -> QuestionSet:
    judged = beir_questions(folder)
    return QuestionSet(
        name=folder.name,
        path=folder,
        format="beir",
        questions=judged.questions,
        rejected=judged.rejected,
        left_out=MappingProxyType({}),
        sha256=_folder_sha256(folder),
    )


def _folder_sha256(folder: Path) -> str:
    files = sorted((*folder.glob("*.jsonl*"), *folder.glob("qrels/*.tsv")))
    return hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()
