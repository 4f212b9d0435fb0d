"""Which records make up which batch: decided once from the seed, so that any step can be made again after a crash.

A batch is a pure function of (data, settings, index): nothing is drawn from global random state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from clara import prompts
from clara.data import DataRecord, PassageQA, mixture
from clara.errors import TrainingError
from clara.train import instruct, scp
from clara.train.batch import Batch, Collator
from clara.train.config import Stage, TrainConfig
from clara.train.examples import Example

BUCKET_BATCHES = 16
"""Batches whose examples are sorted by length together; larger wastes less padding and mixes less."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Records by source, with some kept back.

    Attributes:
        sources: usable records by source name.
        held_out: records for the validation loss.
        rejected: unusable records, counted by reason.
    """

    sources: Mapping[str, Sequence[DataRecord]]
    held_out: Sequence[DataRecord]
    rejected: Mapping[str, int]


def divide(records: Sequence[DataRecord], stage: Stage, config: TrainConfig) -> TrainingData:
    """Sort records by source, drop what the stage cannot use, keep some back.

    Raises:
        TrainingError: nothing is left to train on.
    """
    rng = np.random.default_rng([config.seed, 1])
    rejected: Counter[str] = Counter()
    usable = []
    for record in records:
        if config.mix.get(record.source, 1.0) <= 0:
            rejected[f"source {record.source} has weight 0 in the mix"] += 1
        elif make_example(record, stage, config, rng) is None:
            rejected[f"{type(record).__name__} record has no use in stage {stage}"] += 1
        else:
            usable.append(record)
    order = rng.permutation(len(usable))
    held_out = [usable[i] for i in order[: config.held_out]]
    sources: dict[str, list[DataRecord]] = {}
    for i in sorted(order[config.held_out :]):
        sources.setdefault(usable[i].source, []).append(usable[i])
    if not sources:
        raise TrainingError(f"no record is left to train stage {stage} on, out of {len(records)}: {dict(rejected)}")
    return TrainingData(sources, held_out, rejected)


def make_example(
    record: DataRecord,
    stage: Stage,
    config: TrainConfig,
    rng: np.random.Generator,
    *,
    others: Callable[[], list[str]] = list,
) -> Example | None:
    """A record's example in a stage; None where the stage has no use for it."""
    if stage == "scp":
        return scp.example(record, config, rng)
    return instruct.example(record, config, rng, others=others())


class PlannedBatches(Dataset[Batch]):
    """All batches of a run, each made when it is asked for."""

    def __init__(self, data: TrainingData, stage: Stage, config: TrainConfig, collator: Collator) -> None:
        self._sources = [data.sources[name] for name in sorted(data.sources)]
        self._stage, self._config, self._collator = stage, config, collator
        self._size = config.batch_size // config.accumulation
        weights = [config.mix.get(name, 1.0) for name in sorted(data.sources)]
        length = config.steps * config.batch_size
        drawn = mixture([len(s) for s in self._sources], weights, seed=config.seed, length=length)
        self._order = self._bucketed(drawn)
        self._passages = [r for source in self._sources for r in source if isinstance(r, PassageQA)]
        rates = np.array(config.rate_weights or [1.0] * len(config.compression.rates))
        picks = np.random.default_rng([config.seed, 2]).choice(len(rates), size=len(self), p=rates / rates.sum())
        self._rates = [config.compression.rates[i] for i in picks]

    def __len__(self) -> int:
        return self._config.steps * self._config.accumulation

    def __getitem__(self, index: int) -> Batch:
        rows = self._order[index * self._size : (index + 1) * self._size]
        examples = []
        for place, (source, item) in enumerate(rows):
            rng = np.random.default_rng([self._config.seed, 3, index, place])
            made = make_example(
                self._sources[source][item], self._stage, self._config, rng, others=partial(self._others, rng)
            )
            if made is None:
                raise TrainingError(f"record {self._sources[source][item].id} gave no example; divide() let it through")
            examples.append(made)
        return self._collator(examples, rate=self._rates[index])

    def _others(self, rng: np.random.Generator) -> list[str]:
        if len(self._passages) < 2:
            return []
        picks = rng.choice(len(self._passages), size=min(self._config.distractors, len(self._passages)), replace=False)
        return [prompts.passage_text(self._passages[i].title, self._passages[i].text) for i in picks]

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


def held_out_batches(data: TrainingData, stage: Stage, config: TrainConfig, collator: Collator) -> list[Batch]:
    """Batches for the validation loss, at the default rate, the same at each call."""
    rng = np.random.default_rng([config.seed, 5])
    records = sorted(data.held_out, key=_length)
    examples = [e for r in records if (e := make_example(r, stage, config, rng)) is not None]
    size = config.batch_size // config.accumulation
    rate = config.compression.default_rate
    return [collator(examples[i : i + size], rate=rate) for i in range(0, len(examples), size)]


def _length(record: DataRecord) -> int:
    if isinstance(record, PassageQA):
        return len(record.text)
    return sum(len(record.docs[i].text) for i in record.gold)
