"""Which records make up which batch: decided once from the seed, so that any step can be made again after a crash.

A batch is a pure function of (data, settings, index): nothing is drawn from global random state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from clara.data import DataRecord, MultiHop, PassageQA, mixture
from clara.errors import TrainingError
from clara.train import instruct, scp
from clara.train.batch import Batch
from clara.train.candidates import Candidates, Neighbours, passages_of
from clara.train.config import SELECTING, Stage, TrainConfig
from clara.train.examples import Example, Question
from clara.train.processes import ALONE, Processes
from clara.train.reader import readable

NOTHING: Mapping[str, int] = MappingProxyType({})
"""No reason for which anything was left out."""

BUCKET_BATCHES = 16
"""Batches whose examples are sorted by length together; larger wastes less padding and mixes less."""

AnyExample: TypeAlias = Example | Question


class Collate(Protocol):
    """Makes a batch of examples of the stage's kind."""

    def __call__(self, examples: Sequence[Any], *, rate: int, asked: Sequence[int] | None = None) -> Batch:
        """A batch of the examples ``asked`` (all when None); the others may serve as negatives."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Records by source, with some kept back.

    Attributes:
        sources: usable records by source name.
        held_out: records for the validation loss.
        rejected: unusable records, counted by reason.
        candidates: gives questions their candidates in the stages that select; None in the others.
        near: the passages that the run draws, for distractors that are near a question in words; None where they are
            not asked for. Others would have to be compressed, too.
        passages: the passage records of all sources, for distractors at random.
    """

    sources: Mapping[str, Sequence[DataRecord]]
    held_out: Sequence[DataRecord]
    rejected: Mapping[str, int]
    candidates: Candidates | None = None
    near: Neighbours | None = None
    passages: Sequence[PassageQA] = ()


def divide(
    records: Sequence[DataRecord], stage: Stage, config: TrainConfig, *, left_out: Mapping[str, int] = NOTHING
) -> TrainingData:
    """Sort records by source, drop what the stage cannot use, keep some back.

    Args:
        records: all of them.
        stage: the stage.
        config: the run.
        left_out: what was left out of the records before, counted by reason.

    Raises:
        TrainingError: nothing is left to train on.
    """
    rng = np.random.default_rng([config.seed, 1])
    rejected: Counter[str] = Counter(left_out)
    usable = []
    for record in records:
        if config.mix.get(record.source, 1.0) <= 0:
            rejected[f"source {record.source} has weight 0 in the mix"] += 1
        elif (reason := _unusable(record, stage, config, rng)) is not None:
            rejected[reason] += 1
        else:
            usable.append(record)
    order = rng.permutation(len(usable))
    held_out = [usable[i] for i in order[: config.held_out]]
    sources: dict[str, list[DataRecord]] = {}
    for i in sorted(order[config.held_out :]):
        sources.setdefault(usable[i].source, []).append(usable[i])
    if not sources:
        raise TrainingError(f"no record is left to train stage {stage} on, out of {len(records)}: {dict(rejected)}")
    candidates = near = None
    if stage in SELECTING:
        drawn = _drawn(sources, _draws(sources, config))
        labelled = stage == "retriever"
        candidates = Candidates([*drawn, *held_out], config.candidates, labelled=labelled)
    elif config.near_distractors:
        near = Neighbours(_drawn(sources, _draws(sources, config)))
    passages = [record for rows in sources.values() for record in rows if isinstance(record, PassageQA)]
    return TrainingData(sources, held_out, rejected, candidates, near, passages)


def _unusable(record: DataRecord, stage: Stage, config: TrainConfig, rng: np.random.Generator) -> str | None:
    """Why a stage has no use for a record, in the same words for each such record; None if it has."""
    if stage not in SELECTING:
        made = make_example(record, stage, config, rng)
        return None if made is not None else f"{type(record).__name__} record has no use in stage {stage}"
    if isinstance(record, PassageQA) and not record.all_pairs:
        return f"PassageQA record without a question has no use in stage {stage}"
    if isinstance(record, MultiHop) and not record.gold and stage == "retriever":
        return "MultiHop record without a gold document has no use in stage retriever"
    return None


def _draws(sources: Mapping[str, Sequence[DataRecord]], config: TrainConfig) -> npt.NDArray[np.int64]:
    """What the run draws, in order: [examples, 2], number of the source among the sorted names, and item."""
    names = sorted(sources)
    weights = [config.mix.get(name, 1.0) for name in names]
    length = config.steps * config.batch_size
    return mixture([len(sources[name]) for name in names], weights, seed=config.seed, length=length)


def _drawn(sources: Mapping[str, Sequence[DataRecord]], draws: npt.NDArray[np.int64]) -> list[DataRecord]:
    """The records of a run's draws, each once, by source and item."""
    names = sorted(sources)
    return [sources[names[s]][int(i)] for s, i in np.unique(draws, axis=0)]


def make_example(
    record: DataRecord,
    stage: Stage,
    config: TrainConfig,
    rng: np.random.Generator,
    *,
    others: Callable[[], list[str]] = list,
    candidates: Candidates | None = None,
) -> AnyExample | None:
    """A record's example in a stage; None where the stage has no use for it.

    Args:
        record: the record.
        stage: the stage; one that selects needs ``candidates``.
        config: the run.
        rng: of all draws.
        others: passages of other records, for distractors.
        candidates: of ``TrainingData``.
    """
    if candidates is not None:
        return candidates.example(record, rng)
    if stage == "reader":
        return readable(_compressed(record, config.reader_examples, config, rng, others), config)
    return _compressed(record, stage, config, rng, others)


def _compressed(
    record: DataRecord, stage: Stage, config: TrainConfig, rng: np.random.Generator, others: Callable[[], list[str]]
) -> Example | None:
    if stage == "scp":
        return scp.example(record, config, rng)
    return instruct.example(record, config, rng, others=others())


class PlannedBatches(Dataset[Batch]):
    """All batches of a run, each made when it is asked for; of several processes, this one's part of each."""

    def __init__(
        self,
        data: TrainingData,
        stage: Stage,
        config: TrainConfig,
        collator: Collate,
        *,
        processes: Processes = ALONE,
    ) -> None:
        self._processes = processes
        self._sources = [data.sources[name] for name in sorted(data.sources)]
        self._stage, self._config, self._collator = stage, config, collator
        self._size = config.batch_size // config.accumulation
        self._candidates = data.candidates
        drawn = _draws(data.sources, config)
        # Texts of memories that are there already have no length to sort by, and mixed batches hold harder negatives.
        self._order = drawn if stage in SELECTING else self._bucketed(drawn)
        self._data = data
        rates = np.array(config.rate_weights or [1.0] * len(config.compression.rates))
        picks = np.random.default_rng([config.seed, 2]).choice(len(rates), size=len(self), p=rates / rates.sum())
        self._rates = [config.compression.rates[int(i)] for i in picks]

    def __len__(self) -> int:
        return self._config.steps * self._config.accumulation

    def __getitem__(self, index: int) -> Batch:
        """The batch of a forward pass: examples of this process, beside which the others' serve as negatives."""
        part = self._processes.part(self._size)
        if self._stage == "retriever":
            return self._collator(self.examples(index), rate=self.rate(index), asked=part)
        return self._collator(self.examples(index, part), rate=self.rate(index))

    def rate(self, index: int) -> int:
        """Compression rate of a forward pass."""
        rate: int = self._rates[index]
        return rate

    def examples(self, index: int, places: Sequence[int] | None = None) -> list[AnyExample]:
        """The examples of a forward pass, or those at some of its places."""
        rows = self._order[index * self._size : (index + 1) * self._size]
        made = []
        for place in range(len(rows)) if places is None else places:
            source, item = rows[place]
            rng = np.random.default_rng([self._config.seed, 3, index, place])
            example = make_example(
                self._sources[source][item],
                self._stage,
                self._config,
                rng,
                others=partial(self._others, rng, rows, place),
                candidates=self._candidates,
            )
            if example is None:
                raise TrainingError(f"record {self._sources[source][item].id} gave no example; divide() let it through")
            made.append(example)
        return made

    def _others(self, rng: np.random.Generator, rows: npt.NDArray[np.int64], place: int) -> list[str]:
        """Distractors for the example at a place of a batch."""
        if self._config.shared_distractors:
            beside = sorted({text for at in range(len(rows)) if at != place for text in self._passage(*rows[at])})
            own = self._passage(*rows[place])
            kept = [text for text in beside if text not in own]
            return [kept[i] for i in rng.permutation(len(kept))[: self._config.distractors]]
        source, item = rows[place]
        return distractors(self._sources[source][item], self._data, self._config, rng)

    def _passage(self, source: int, item: int) -> list[str]:
        """The text of a passage record; nothing of other records."""
        record = self._sources[source][item]
        return passages_of(record) if isinstance(record, PassageQA) else []

    def _bucketed(self, drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The draws, sorted by length within runs of ``BUCKET_BATCHES`` batches, those batches then shuffled."""
        lengths = np.array([_length(self._sources[s][i]) for s, i in drawn])
        rng = np.random.default_rng([self._config.seed, 4])
        out: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(drawn), BUCKET_BATCHES * self._size):
            rows = drawn[start : start + BUCKET_BATCHES * self._size]
            rows = rows[np.argsort(lengths[start : start + len(rows)], kind="stable")]
            batches = np.split(rows, range(self._size, len(rows), self._size))
            out.extend(batches[i] for i in rng.permutation(len(batches)))
        return np.concatenate(out)


def distractors(record: DataRecord, data: TrainingData, config: TrainConfig, rng: np.random.Generator) -> list[str]:
    """Passages of other training records to read beside a passage record's own: its nearest, or any.

    None for other records, which bring their own.
    """
    if not isinstance(record, PassageQA):
        return []
    if data.near is not None:
        return data.near.of(record, config.distractors)
    own = passages_of(record)
    # One more than needed, as it may be the record's own.
    picks = rng.choice(len(data.passages), size=min(config.distractors + 1, len(data.passages)), replace=False)
    drawn = [text for i in picks for text in passages_of(data.passages[i]) if text not in own]
    return drawn[: config.distractors]


def held_out_batches(
    data: TrainingData, stage: Stage, config: TrainConfig, collator: Collate, *, rate: int | None = None
) -> list[Batch]:
    """Batches for the validation loss, at the default rate unless another is given, the same at each call."""
    examples = held_out_examples(data, stage, config)
    size = config.batch_size // config.accumulation
    rate = rate or config.compression.default_rate
    return [collator(examples[i : i + size], rate=rate) for i in range(0, len(examples), size)]


def held_out_examples(data: TrainingData, stage: Stage, config: TrainConfig) -> list[AnyExample]:
    """The examples of ``held_out_batches``, by length."""
    rng = np.random.default_rng([config.seed, 5])
    records = sorted(data.held_out, key=_length)
    made = (held_out_example(record, data, stage, config, rng) for record in records)
    return [example for example in made if example is not None]


def held_out_example(
    record: DataRecord, data: TrainingData, stage: Stage, config: TrainConfig, rng: np.random.Generator
) -> AnyExample | None:
    """A held-out record's example, among distractors as in training; arguments as ``make_example``."""
    others = partial(distractors, record, data, config, rng)
    return make_example(record, stage, config, rng, others=others, candidates=data.candidates)


def _length(record: DataRecord) -> int:
    if isinstance(record, PassageQA):
        return len(record.text)
    return sum(len(record.docs[i].text) for i in record.gold)
