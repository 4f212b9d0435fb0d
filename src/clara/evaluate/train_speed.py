"""Speed of training, stage by stage, with the shares of time in data, forward, backward and optimiser.

The same batches, losses and optimiser as a run's, without the Trainer around them, its logging and its checkpoints.
End-to-end training is measured on both sides in turn: candidates' memories read from the cache, and the same step
with the candidates encoded by the frozen compressor (on request also with gradients reaching it). Prints nothing.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from clara.data import DataRecord, PassageQA, QAPair
from clara.model.attention import enable_packing
from clara.model.checkpoint import read_manifest
from clara.model.clara_model import find_checkpoint
from clara.model.create import Loaded
from clara.train.data import PlannedBatches, TrainingData, divide
from clara.train.loop import StageModule
from clara.train.processes import check_device
from clara.train.stages import stage_class
from clara.train.stages.base import Stage
from clara.train.stages.selecting import EndToEndStage

PASSAGE_WORDS = 110
"""Words of a made passage: some 150 tokens, between Wikipedia's mean (clara.md section 2) and a whole window."""

_STRIDE_WORDS = 25
"""Words between the beginnings of made passages: a few pages of text give enough different ones."""


_POOL = 3
"""Records to draw for each candidate of a question."""


@dataclass(frozen=True, slots=True)
class _StageSpeed:
    """Training speed of one stage: medians over the measured steps.

    Attributes:
        stage: as the command line names it.
        seconds: of a step.
        tokens_per_second: tokens and memory slots read.
        samples_per_second: examples.
        data: share of the time in which the batch is made.
        forward: share of the forward pass, the loss included.
        backward: share of the backward pass.
        optimiser: share of clipping, AdamW's step and freeing the gradients.
    """

    stage: str
    seconds: float
    tokens_per_second: float
    samples_per_second: float
    data: float
    forward: float
    backward: float
    optimiser: float


@dataclass(frozen=True, slots=True)
class _CacheGain:
    """End-to-end training with cached memories against the same step that encodes its candidates; one run, in turn.

    Attributes:
        candidates: passages a question.
        cached_seconds: of a step with the memories computed before, median.
        encoded_seconds: of the same step with the candidates encoded by the frozen compressor.
        ratio: median over the steps of encoded / cached.
        trained_seconds: of the same step with gradients to the compressor (``train_compressor``); None if left out.
        trained_ratio: median over the steps of trained / cached.
    """

    candidates: int
    cached_seconds: float
    encoded_seconds: float
    ratio: float
    trained_seconds: float | None
    trained_ratio: float | None


@dataclass(frozen=True, slots=True)
class _TrainSpeed:
    """Result of ``bench_train``.

    Attributes:
        stages: one entry a stage.
        cache: of stage ``end-to-end``; None if it was not measured.
        batch_size: examples a step.
        steps: measured steps a stage, after one to warm up.
        rate: compression rate.
        dtype: of the base and of matrix products.
        threads: torch threads.
    """

    stages: tuple[_StageSpeed, ...]
    cache: _CacheGain | None
    batch_size: int
    steps: int
    rate: int
    dtype: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TrainBench:
    """What to measure.

    Attributes:
        stages: names of the command line.
        start: checkpoint that every stage starts from.
        rate: compression rate, one of the checkpoint's.
        steps: measured steps a stage.
        batch_size: examples a step.
        candidates: passages a question in the stages that select.
        train_compressor: measure end-to-end with gradients to the compressor too; takes the memory of a forward pass
            over all candidates of a batch.
        dtype: of the base and of matrix products.
        device: for the model.
    """

    stages: Sequence[str]
    start: str
    rate: int
    steps: int
    batch_size: int
    candidates: int = 20
    train_compressor: bool = False
    dtype: Literal["bf16", "fp32"] = "bf16"
    device: str = "cpu"


def made_records(texts: Sequence[str]) -> list[DataRecord]:
    """Records for a measurement without a data file: passages of running text, each with three made questions.

    Lengths are like those of the training sets; what they say means nothing.
    """
    words = " ".join(texts).split()
    records: list[DataRecord] = []
    for first in range(0, max(1, len(words) - PASSAGE_WORDS + 1), _STRIDE_WORDS):
        passage = words[first : first + PASSAGE_WORDS]
        pairs = tuple(
            QAPair(f"Which words follow “{' '.join(passage[i : i + 4])}”?", (" ".join(passage[i + 4 : i + 7]),))
            for i in range(0, len(passage) - 8, max(1, len(passage) // 3))
        )
        records.append(PassageQA(f"made-{first}", "made", f"Words {first}", " ".join(passage), pairs))
    return records


def bench_train(
    records: Sequence[DataRecord],
    bench: TrainBench,
    *,
    cache: Path,
    progress: Callable[[str], None] | None = None,
) -> _TrainSpeed:
    """Measure every stage, and the gain of cached memories.

    Args:
        records: to train on; the same for every stage.
        bench: what to measure.
        cache: folder of base weights; memories go to a folder that is removed again.
        progress: told the name of each stage that begins.

    Raises:
        TrainingError: the records are too few, or a stage has no use for any.
        ConfigError: the device is none to train on.
    """
    check_device(bench.device)
    speeds: list[_StageSpeed] = []
    gain = None
    for name in bench.stages:
        if progress is not None:
            progress(name)
        with tempfile.TemporaryDirectory() as scratch:
            job = _job(name, records, bench, cache, Path(scratch))
            speeds.append(_speed(name, [job.step(number) for number in range(bench.steps + 1)][1:]))
            if isinstance(job.stage, EndToEndStage):
                gain = _gain(job, bench)
        del job
        gc.collect()
    return _TrainSpeed(
        stages=tuple(speeds),
        cache=gain,
        batch_size=bench.batch_size,
        steps=bench.steps,
        rate=bench.rate,
        dtype=bench.dtype,
        threads=torch.get_num_threads(),
    )


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds of the phases of a step, and what it read."""

    data: float
    forward: float
    backward: float
    optimiser: float
    tokens: int
    samples: int

    @property
    def seconds(self) -> float:
        return self.data + self.forward + self.backward + self.optimiser


@dataclass(frozen=True, slots=True)
class _Job:
    """A stage ready to train."""

    loaded: Loaded[Any, Any]
    data: TrainingData
    stage: Stage
    batches: PlannedBatches
    module: StageModule
    optimizer: torch.optim.Optimizer

    def step(self, number: int, batches: PlannedBatches | None = None) -> _Times:
        """One optimisation step, timed; on batches of another making where they are given."""
        device = self.loaded.network.adapters.bare().device
        marks = [_now(device)]
        batch = (batches or self.batches)[number].to(device)
        marks.append(_now(device))
        losses = self.module(batch)
        marks.append(_now(device))
        losses.total.backward()
        marks.append(_now(device))
        trained = [p for p in self.module.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(trained, self.stage.config.max_grad_norm)
        self.optimizer.step()
        self.module.zero_grad(set_to_none=True)
        marks.append(_now(device))
        data, forward, backward, optimiser = (after - before for before, after in pairwise(marks))
        return _Times(data, forward, backward, optimiser, batch.tokens(), len(batch.decoder_ids))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _job(name: str, records: Sequence[DataRecord], bench: TrainBench, cache: Path, scratch: Path) -> _Job:
    stage = _stage(name, bench)
    data = divide(records, stage)
    loaded = stage.network(data, cache, bench.device, None)
    stage = stage.as_loaded(loaded)
    documents = stage.documents(loaded, scratch)
    batches = PlannedBatches(data, stage, stage.collator(loaded, documents, scratch))
    if documents is not None:  # before the first step, as in a run
        shown = (
            text for number in range(bench.steps + 1) for one in batches.examples(number) for text in one.compressed
        )
        documents.prepare({bench.rate: list(dict.fromkeys(shown))})
    enable_packing(loaded.network.adapters.bare())  # as in a run
    module = StageModule(loaded.network, stage)
    module.train()
    return _Job(loaded, data, stage, batches, module, stage.optimizer(loaded.network))


def _stage(name: str, bench: TrainBench) -> Stage:
    """A stage with the settings that the measurement asks for, as far as it has them."""
    manifest = read_manifest(find_checkpoint(bench.start))
    rates = manifest.compression.rates
    manifest.compression.memory_tokens(bench.rate)  # refuses a rate that the checkpoint does not serve
    values = {
        "base": manifest.base_model,
        "start": bench.start,
        "compression": manifest.compression,
        "lora": manifest.lora,
        # A run tops candidates up from the records that it draws: enough of them for different questions.
        "steps": max(bench.steps + 1, -(-_POOL * bench.candidates // bench.batch_size)),
        "batch_size": bench.batch_size,
        "rate_weights": tuple(float(rate == bench.rate) for rate in rates),
        "candidates": bench.candidates,
        "top_k": min(5, bench.candidates),
        "held_out": 0,
        "dtype": bench.dtype,
    }
    kind = stage_class(name)
    return kind(kind.Config.model_validate({key: values[key] for key in values if key in kind.Config.model_fields}))


def _speed(name: str, times: Sequence[_Times]) -> _StageSpeed:
    whole = sum(one.seconds for one in times)
    return _StageSpeed(
        stage=name,
        seconds=median(one.seconds for one in times),
        tokens_per_second=median(one.tokens / one.seconds for one in times),
        samples_per_second=median(one.samples / one.seconds for one in times),
        data=sum(one.data for one in times) / whole,
        forward=sum(one.forward for one in times) / whole,
        backward=sum(one.backward for one in times) / whole,
        optimiser=sum(one.optimiser for one in times) / whole,
    )


def _gain(job: _Job, bench: TrainBench) -> _CacheGain:
    """The ways to have a candidate's memory, step by step in turn, on the same questions and candidates."""
    texts = PlannedBatches(job.data, job.stage, job.stage.collator(job.loaded, None))
    cached, encoded, trained = [], [], []
    for number in range(bench.steps + 1):
        cached.append(job.step(number).seconds)
        encoded.append(job.step(number, texts).seconds)
        if bench.train_compressor:
            with _compressor_under_gradient(job.loaded):
                trained.append(job.step(number, texts).seconds)
    for times in (cached, encoded, trained):
        del times[:1]  # warms up
    return _CacheGain(
        candidates=bench.candidates,
        cached_seconds=median(cached),
        encoded_seconds=median(encoded),
        ratio=median(slow / fast for slow, fast in zip(encoded, cached, strict=True)),
        trained_seconds=median(trained) if trained else None,
        trained_ratio=median(slow / fast for slow, fast in zip(trained, cached, strict=True)) if trained else None,
    )


@contextmanager
def _compressor_under_gradient(loaded: Loaded) -> Iterator[None]:
    parameters = [*loaded.network.adapters.parameters_of("compressor"), *loaded.network.table.parameters()]
    for parameter in parameters:
        parameter.requires_grad = True
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad = False
