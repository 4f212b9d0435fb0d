"""A run's records: cut to the window, divided, and planned into batches from the seed.

A batch is a pure function of (data, stage, index), so any step can be made again after a crash: nothing is drawn from
global random state.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from clara.data import DataRecord, DocText, MultiHop, PassageQA, QAPair
from clara.data.neighbours import Neighbours, holds_answer
from clara.errors import TrainingError
from clara.metrics import normalize_answer
from clara.model.backbone import Tokenizer, encoded, load_tokenizer
from clara.model.hub.base import Progress as HubProgress
from clara.prompts import passage_text
from clara.train.batch import Batch, Collate
from clara.train.config import TrainConfig
from clara.train.examples import CandidateExample, Example
from clara.train.processes import ALONE, Processes

if TYPE_CHECKING:
    from clara.train.stages.base import Stage

_BUCKET_BATCHES = 16
"""Steps a bucket; larger wastes less padding and mixes less."""

_RECORDS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Window:
    """The compressor's window: ``tokens`` of the base model's tokenizer, at some rates."""

    base: str
    tokens: int
    rates: tuple[int, ...]

    @property
    def memory_tokens(self) -> int:
        """Most memory tokens of a text."""
        return self.tokens // min(self.rates)


@dataclass(frozen=True, slots=True)
class _WithinWindow:
    """Records cut to the window; the longest question in tokens."""

    records: list[DataRecord]
    left_out: Mapping[str, int]
    longest_question: int


def within_window(
    records: Sequence[DataRecord], window: Window, cache: Path, progress: HubProgress | None = None
) -> _WithinWindow:
    """Cut every passage to the window, and drop questions whose answer stands beyond it.

    They would teach the generator to guess, and a paraphrase to invent. Questions longer than the window are dropped
    too: the query reasoner would not see their end.
    """
    tokenizer = load_tokenizer(window.base, cache, progress=progress)
    left_out: Counter[str] = Counter()
    kept: list[DataRecord] = []
    longest = 0
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        part = records[start : start + _RECORDS_AT_ONCE]
        cut = iter(_cut([doc for record in part for doc in record.docs], tokenizer, window.tokens))
        asked = [pair.question for record in part for pair in record.all_pairs]
        lengths = dict(zip(asked, map(len, encoded(tokenizer, asked).encodings), strict=True)) if asked else {}
        for record in part:
            docs = [next(cut) for _ in record.docs]
            short = _asked(record, lengths, left_out, window.tokens)
            usable = None if short is None else _with(short, docs, left_out, window.tokens)
            if usable is not None:
                kept.append(usable)
                longest = max([longest, *(lengths[pair.question] for pair in usable.all_pairs)])
    return _WithinWindow(kept, left_out, longest)


def _asked(record: DataRecord, lengths: Mapping[str, int], left_out: Counter[str], window: int) -> DataRecord | None:
    """A record without questions longer than the window; None if none is left of a single-question record."""
    over = sum(lengths[pair.question] > window for pair in record.all_pairs)
    if not over:
        return record
    left_out[f"question longer than the window of {window} tokens"] += over
    return None if isinstance(record, MultiHop) else _keeping(record, lambda pair: lengths[pair.question] <= window)


def _keeping(record: PassageQA, keep: Callable[[QAPair], bool]) -> PassageQA:
    pairs, complex_pairs = (tuple(filter(keep, some)) for some in (record.pairs, record.complex_pairs))
    return replace(record, pairs=pairs, complex_pairs=complex_pairs)


def _cut(docs: Sequence[DocText], tokenizer: Tokenizer, window: int) -> list[DocText]:
    """Documents with their texts cut to the window beside the title."""
    texts = [passage_text(doc.title, doc.text) for doc in docs]
    cut = []
    for doc, text, encoding in zip(docs, texts, encoded(tokenizer, texts).encodings, strict=True):
        end = encoding.offsets[window - 1][1] if len(encoding) > window else len(text)
        cut.append(replace(doc, text=doc.text[: max(0, len(doc.text) - (len(text) - end))]))
    return cut


def _with(record: DataRecord, docs: Sequence[DocText], left_out: Counter[str], window: int) -> DataRecord | None:
    """A record with its documents cut; None if no question is left."""
    shorter = sum(len(one.text) < len(other.text) for one, other in zip(docs, record.docs, strict=True))
    if not shorter:
        return record
    left_out[f"text beyond the window of {window} tokens"] += shorter
    before, after = ("\n".join(texts[i].text for i in record.gold) for texts in (record.docs, docs))

    def answerable(answers: Sequence[str]) -> bool:
        normal = [normalize_answer(answer) for answer in answers]
        if not holds_answer(before, normal) or holds_answer(after, normal):
            return True
        left_out[f"question whose answer stands beyond the window of {window} tokens"] += 1
        return False

    if isinstance(record, MultiHop):
        return replace(record, docs=tuple(docs)) if answerable(record.answers) else None
    if not docs[0].text.strip():
        return None
    if record.paraphrase is not None:
        left_out[f"paraphrase of a text longer than the window of {window} tokens"] += 1
    kept = _keeping(record, lambda pair: answerable(pair.answers))
    return replace(kept, text=docs[0].text, paraphrase=None)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Records by source, with some held out.

    Attributes:
        near: BM25 over the passages of the run's own draws (others would have to be compressed too), for candidates or
            distractors; None where the stage needs none.
        passages: the passage records of all sources, for random distractors.
    """

    sources: Mapping[str, Sequence[DataRecord]]
    held_out: Sequence[DataRecord]
    rejected: Mapping[str, int]
    near: Neighbours | None = None
    passages: Sequence[PassageQA] = ()

    def texts(self) -> list[str]:
        """All training passages, each once."""
        return list(dict.fromkeys(t for rows in self.sources.values() for row in rows for t in row.passages))

    def some_texts(self, count: int) -> list[str]:
        """About ``count`` passages, from all sources alike."""
        texts = [record.passages[0] for rows in self.sources.values() for record in rows[:count]]
        return texts[:: max(1, len(texts) // count)][:count]

    def some_questions(self, count: int) -> list[str]:
        """About ``count`` questions, from all sources alike."""
        each = -(-count // len(self.sources))
        records = [record for rows in self.sources.values() for record in rows[:each]]
        return [pair.question.strip() for record in records for pair in record.all_pairs[:1]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The run's other passages; ``batch``: the other records of the batch, None for a held-out record."""

    data: TrainingData
    batch: Sequence[DataRecord] | None = None


def divide(records: Sequence[DataRecord], stage: Stage, *, left_out: Mapping[str, int] | None = None) -> TrainingData:
    """Sort records by source, drop those the stage cannot use, hold some out; adds the counts of ``left_out``.

    Raises:
        TrainingError: nothing is left to train on.
    """
    config = stage.config
    rng = np.random.default_rng([config.seed, 1])
    rejected: Counter[str] = Counter(left_out)
    usable = []
    for record in records:
        if config.mix.get(record.source, 1.0) <= 0:
            rejected[f"source {record.source} has weight 0 in the mix"] += 1
        elif (reason := stage.unusable(record, rng)) is not None:
            rejected[reason] += 1
        else:
            usable.append(record)
    order = rng.permutation(len(usable))
    held_out = [usable[i] for i in order[: config.held_out]]
    sources: dict[str, list[DataRecord]] = {}
    for i in sorted(order[config.held_out :]):
        sources.setdefault(usable[i].source, []).append(usable[i])
    if not sources:
        raise TrainingError(
            f"no record is left to train stage {stage.name} on, out of {len(records)}: {dict(rejected)}"
        )
    names, draws = sorted(sources), _draws(sources, stage.in_steps(sum(map(len, sources.values()))).config)
    drawn = [sources[names[source]][int(item)] for source, item in np.unique(draws, axis=0)]
    near = stage.neighbours(drawn, held_out)
    passages = [record for rows in sources.values() for record in rows if isinstance(record, PassageQA)]
    return TrainingData(sources, held_out, rejected, near, passages)


def _draws(sources: Mapping[str, Sequence[DataRecord]], config: TrainConfig) -> npt.NDArray[np.int64]:
    """The run's draws in order: int64 [examples, 2], source (index of the sorted names) and item."""
    names = sorted(sources)
    weights = [config.mix.get(name, 1.0) for name in names]
    length = config.steps * config.batch_size
    return _mixture([len(sources[name]) for name in names], weights, seed=config.seed, length=length)


def _mixture(sizes: Sequence[int], weights: Sequence[float], *, seed: int, length: int) -> npt.NDArray[np.int64]:
    """Draws from several sources in the proportions of ``weights``: int64 [length, 2], source and item.

    Each draw picks a source at random, then that source's next item. A source is traversed in a shuffled order, anew
    each time, so small sources repeat evenly. Draw i does not depend on ``length``: a run that is resumed or prolonged
    sees the same records at the same indices.
    """
    heap = np.cumsum(np.asarray(weights, dtype=np.float64))
    drawn = np.random.default_rng([seed, 0]).random(length) * heap[-1]
    # side="right" keeps a source of weight 0 out: a draw equal to its bound falls to the next source. Rounding can
    # carry the product up to the last bound itself, hence the step below it.
    sources = np.searchsorted(heap, np.minimum(drawn, np.nextafter(heap[-1], 0)), side="right").astype(np.int64)
    items = np.empty(length, dtype=np.int64)
    for source, size in enumerate(sizes):
        places = np.flatnonzero(sources == source)
        epochs = range(math.ceil(len(places) / size))
        orders = [np.random.default_rng([seed, 1, source, epoch]).permutation(size) for epoch in epochs]
        items[places] = np.concatenate(orders)[: len(places)] if orders else []
    return np.stack([sources, items], axis=1)


class PlannedBatches(Dataset[Batch]):
    """All batches of a run, each made on demand; of several processes, this one's part of each.

    A step is planned whole, then divided into passes: its records and its rate do not depend on ``accumulation``.
    """

    def __init__(self, data: TrainingData, stage: Stage, collator: Collate, *, processes: Processes = ALONE) -> None:
        self._data, self._stage, self._collator, self._processes = data, stage, collator, processes
        self._config = config = stage.config
        self._sources = [data.sources[name] for name in sorted(data.sources)]
        self._size = config.batch_size // config.accumulation
        drawn = _draws(data.sources, config)
        self._order = self._bucketed(drawn) if stage.by_length else drawn
        shares = np.array(stage.rate_shares())
        picks = np.random.default_rng([config.seed, 2]).choice(len(shares), size=config.steps, p=shares / shares.sum())
        self._rates: list[int] = [config.compression.rates[int(i)] for i in picks]

    def __len__(self) -> int:
        return self._config.steps * self._config.accumulation

    def __getitem__(self, index: int) -> Batch:
        """The batch of a forward pass: examples of this process; the whole step's may be negatives."""
        step, number = divmod(index, self._config.accumulation)
        part = [number * self._size + place for place in self._processes.part(self._size)]
        if self._stage.contrasts:
            return self._collator(self.examples(step), rate=self.rate(step), asked=part)
        return self._collator(self.examples(step, part), rate=self.rate(step))

    def rate(self, step: int) -> int:
        """Compression rate of a step."""
        return self._rates[step]

    def examples(self, step: int, places: Sequence[int] | None = None) -> list[Example | CandidateExample]:
        """The examples of a step, or those at some of its places."""
        size = self._config.batch_size
        records = [self._sources[source][item] for source, item in self._order[step * size : (step + 1) * size]]
        made = []
        for place in range(len(records)) if places is None else places:
            rng = np.random.default_rng([self._config.seed, 3, step, place])
            around = Surroundings(self._data, [*records[:place], *records[place + 1 :]])
            example = self._stage.example(records[place], rng, around)
            if example is None:
                raise TrainingError(f"record {records[place].id} gave no example; divide() let it through")
            made.append(example)
        return made

    def _bucketed(self, drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The draws, sorted by length within buckets of ``_BUCKET_BATCHES`` steps, those steps then shuffled."""
        size = self._config.batch_size
        lengths = np.array([_length(self._sources[s][i]) for s, i in drawn])
        rng = np.random.default_rng([self._config.seed, 4])
        out: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(drawn), _BUCKET_BATCHES * size):
            rows = drawn[start : start + _BUCKET_BATCHES * size]
            rows = rows[np.argsort(lengths[start : start + len(rows)], kind="stable")]
            steps = np.split(rows, range(size, len(rows), size))
            out.extend(steps[i] for i in rng.permutation(len(steps)))
        return np.concatenate(out)


def held_out_examples(data: TrainingData, stage: Stage) -> list[Example | CandidateExample]:
    """Examples of the held-out loss, by length, with distractors as in training; the same at each call."""
    rng = np.random.default_rng([stage.config.seed, 5])
    around = Surroundings(data)
    made = (stage.example(record, rng, around) for record in sorted(data.held_out, key=_length))
    return [example for example in made if example is not None]


def _length(record: DataRecord) -> int:
    return sum(len(record.docs[i].text) for i in record.gold)
