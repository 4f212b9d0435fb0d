"""Speed, as ratios with both sides measured in one run, in turn; seconds do not compare between machines.

Bulk compression against the machine's peak; the first token from memories against full text, and from indexed
candidates against candidates compressed when asked. Training stage by stage, with a run's batches, losses and optimiser
but without its loop; end-to-end also with the candidates encoded in each step, against memories from the cache.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from transformers import GenerationConfig
from transformers.generation import BaseStreamer

from clara.data import DataRecord, PassageQA, QAPair
from clara.model import ClaraModel
from clara.model.attention import enable_packing
from clara.model.checkpoint import read_manifest
from clara.model.clara_model import find_checkpoint
from clara.model.create import Loaded
from clara.model.generator import DecodingRow
from clara.records import GenerationRequest, Memory
from clara.similarity import ranking
from clara.train.data import PlannedBatches, TrainingData, divide
from clara.train.loop import StageModule
from clara.train.processes import check_device
from clara.train.stages import stage_class
from clara.train.stages.base import Stage
from clara.train.stages.selecting import EndToEndStage

_PEAK_SIZE = 2048
"""Side of the square matrices whose product stands for the machine's peak: bound by arithmetic."""

_PEAK_SECONDS = 1.0

_DECODED_ROWS = (1, 8)
_DECODED_TOKENS = 24
_DECODED_TIMES = 3
_PROMPT_POSITIONS = 64

_PASSAGE_WORDS = 110
"""Words of a made passage: some 150 tokens, between Wikipedia's mean (clara.md section 2) and a whole window."""
_STRIDE_WORDS = 25
"""Words between the beginnings of made passages: a few pages of text give enough different ones."""
_POOL = 3
"""Records to draw for each candidate of a question."""


@dataclass(frozen=True, slots=True)
class _CompressSpeed:
    """Bulk compression; ``gflops`` count model arithmetic without padding and masked attention.

    The peak is that of a matrix product in the same process, median of a measurement before and one after.
    """

    passages: int
    tokens: int
    rate: int
    seconds: float
    tokens_per_second: float
    gflops: float
    peak_gflops: float
    share_of_peak: float
    threads: int


@dataclass(frozen=True, slots=True)
class _DecodeSpeed:
    """Time a token with ``rows`` answers in a batch, after prompts of so many positions; medians."""

    rows: int
    prompt: int
    token_ms: float
    transformers_ms: float
    ratio: float


@dataclass(frozen=True, slots=True)
class _AskSpeed:
    """Medians over the questions: seconds to the first token, prompts in positions; ratio is text / memory."""

    questions: int
    passages: int
    rate: int
    memory_seconds: float
    text_seconds: float
    memory_prompt: float
    text_prompt: float
    ratio: float
    decoding: tuple[_DecodeSpeed, ...]


@dataclass(frozen=True, slots=True)
class _CandidateSpeed:
    """Medians over the questions: seconds to the first token; ratio is compressed / indexed."""

    questions: int
    candidates: int
    k: int
    rate: int
    docs_per_second: float
    indexed_seconds: float
    compressed_seconds: float
    ratio: float


def bench_compress(
    model: ClaraModel,
    texts: Sequence[str],
    *,
    rate: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> _CompressSpeed:
    """Compress texts, each in the model's window, and compare the arithmetic a second with the machine's bf16 peak."""
    rate = rate or model.default_rate
    model.compress(texts[:8], rate=rate)
    before = _matmul_peak()
    started = time.perf_counter()
    memories = model.compress(texts, rate=rate, progress=progress)
    seconds = time.perf_counter() - started
    peak = median([before, _matmul_peak()])
    tokens = sum(memory.token_count for memory in memories)
    gflops = sum(model.compression_flops(memory.token_count, rate=rate) for memory in memories) / seconds / 1e9
    return _CompressSpeed(
        passages=len(texts),
        tokens=tokens,
        rate=rate,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        gflops=gflops,
        peak_gflops=peak,
        share_of_peak=gflops / peak,
        threads=torch.get_num_threads(),
    )


def bench_ask(
    model: ClaraModel, questions: Sequence[str], passages: Sequence[Sequence[str]], *, rate: int = 16
) -> _AskSpeed:
    """Time to the first token from memories against full text: same questions, passages and backbone.

    Memories are made beforehand, as in an index; both readers run as merged weights or the bare backbone.
    """

    def side(request: GenerationRequest) -> tuple[float, int]:
        started = time.perf_counter()
        generation = model.generate_many([request], max_new_tokens=1)[0]
        return time.perf_counter() - started, generation.tokens.prompt

    rows = []
    for question, texts in _after_a_warm_up(questions, passages):
        memory = side(GenerationRequest(question, memories=tuple(model.compress(texts, rate=rate))))
        rows.append((memory, side(GenerationRequest(question, texts=tuple(texts), reader="base"))))
    measured = rows[1:]
    return _AskSpeed(
        questions=len(questions),
        passages=len(passages[0]),
        rate=rate,
        memory_seconds=median(memory[0] for memory, _ in measured),
        text_seconds=median(text[0] for _, text in measured),
        memory_prompt=median(memory[1] for memory, _ in measured),
        text_prompt=median(text[1] for _, text in measured),
        ratio=median(text[0] / memory[0] for memory, text in measured),
        decoding=tuple(_bench_decode(model, rows) for rows in _DECODED_ROWS),
    )


def _bench_decode(model: ClaraModel, rows: int) -> _DecodeSpeed:
    """Time a token of our loop against ``transformers.generate``, on random prompts."""
    decoder = model.decoder(GenerationRequest(""))
    ours: list[float] = []
    theirs: list[float] = []
    with decoder.acting() as lm, torch.inference_mode():
        drawn = torch.Generator().manual_seed(rows)
        ids = torch.randint(lm.config.vocab_size, (rows, _PROMPT_POSITIONS), generator=drawn).to(lm.device)
        prompts = lm.get_input_embeddings()(ids)
        settings = GenerationConfig(max_new_tokens=_DECODED_TOKENS, do_sample=False)
        settings.eos_token_id = None
        for _ in range(_DECODED_TIMES):
            answers = [DecodingRow((prompt,), _DECODED_TOKENS, stops=frozenset()) for prompt in prompts]
            at = [time.perf_counter() for step in decoder.steps(answers) if step.row is answers[0]]
            ours += [after - before for before, after in pairwise(at)]
            clock = _Clock()
            lm.generate(
                inputs_embeds=prompts,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                streamer=clock,
            )
            theirs += [after - before for before, after in pairwise(clock.at[1:])]  # the first is told of no token
    return _DecodeSpeed(
        rows=rows,
        prompt=_PROMPT_POSITIONS,
        token_ms=1e3 * median(ours),
        transformers_ms=1e3 * median(theirs),
        ratio=median(theirs) / median(ours),
    )


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is untyped here
    """Times of transformers' tokens."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        del value
        self.at.append(time.perf_counter())

    def end(self) -> None:
        pass


def bench_candidates(
    model: ClaraModel,
    questions: Sequence[str],
    candidates: Sequence[Sequence[str]],
    *,
    k: int,
    rate: int | None = None,
) -> _CandidateSpeed:
    """Time to the first token from indexed candidates against candidates compressed at question time.

    Both sides encode the question, rank the candidates by cosine and answer from the best ``k``, and compress without
    padding and in batches: the ratio is what an index saves.
    """
    rate = rate or model.default_rate

    def answer(question: str, memories: Sequence[Memory]) -> None:
        query = model.encode_queries([question], rate=rate)[0]
        best = tuple(memories[i] for i in ranking(query, memories)[:k])
        model.generate_many([GenerationRequest(question, memories=best)], max_new_tokens=1)

    rows = []
    for question, texts in _after_a_warm_up(questions, candidates):
        started = time.perf_counter()
        memories = model.compress(texts, rate=rate)
        compressed = time.perf_counter()
        answer(question, memories)
        late = time.perf_counter()
        answer(question, memories)
        rows.append((compressed - started, late - started, time.perf_counter() - late))
    measured = rows[1:]
    return _CandidateSpeed(
        questions=len(questions),
        candidates=len(candidates[0]),
        k=k,
        rate=rate,
        docs_per_second=sum(map(len, candidates)) / sum(compressing for compressing, _, _ in measured),
        indexed_seconds=median(indexed for _, _, indexed in measured),
        compressed_seconds=median(late for _, late, _ in measured),
        ratio=median(late / indexed for _, late, indexed in measured),
    )


def _after_a_warm_up(questions: Sequence[str], texts: Sequence[Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    """The questions with their texts, the first one twice: weights are loaded and merged in its first time."""
    return [(questions[0], texts[0]), *zip(questions, texts, strict=True)]


def _matmul_peak() -> float:
    """bf16 GFLOP/s of a large square matrix product, median over a second."""
    a, b = torch.randn(2, _PEAK_SIZE, _PEAK_SIZE).to(torch.bfloat16)
    torch.mm(a, b)
    rates: list[float] = []
    until = time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(a, b)
        rates.append(2 * _PEAK_SIZE**3 / (time.perf_counter() - started) / 1e9)
    return median(rates)


@dataclass(frozen=True, slots=True)
class _StageSpeed:
    """Training speed of one stage: medians over the measured steps, phases as shares of the time.

    Tokens include memory slots. The loss is part of ``forward``; ``optimiser`` is clipping, AdamW's step and freeing
    the gradients.
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
    """End-to-end steps with cached memories, with encoded candidates, and with gradients to the compressor."""

    candidates: int
    cached_seconds: float
    encoded_seconds: float
    ratio: float
    trained_seconds: float | None
    trained_ratio: float | None


@dataclass(frozen=True, slots=True)
class _TrainSpeed:
    """``cache`` is of stage ``end-to-end``."""

    stages: tuple[_StageSpeed, ...]
    cache: _CacheGain | None
    batch_size: int
    steps: int
    rate: int
    dtype: str
    threads: int


@dataclass(frozen=True, slots=True)
class TrainBench:
    """Settings of ``bench_train``.

    Attributes:
        start: checkpoint that every stage starts from; ``rate`` is one of its rates.
        candidates: passages a question in the stages that select.
        train_compressor: measure end-to-end with gradients to the compressor too, over all candidates of a batch.
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
    """Records of running text, each passage with three made questions, for a measurement without a data file."""
    words = " ".join(texts).split()
    records: list[DataRecord] = []
    for first in range(0, max(1, len(words) - _PASSAGE_WORDS + 1), _STRIDE_WORDS):
        passage = words[first : first + _PASSAGE_WORDS]
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
    progress: Callable[[str], None] = lambda _: None,
) -> _TrainSpeed:
    """Measure every stage on the same records, and the gain of cached memories.

    ``cache`` is the folder of base weights; memories go to a temporary folder.

    Raises:
        TrainingError: the records are too few, or a stage has no use for any.
        ConfigError: the device cannot be trained on.
    """
    check_device(bench.device)
    speeds: list[_StageSpeed] = []
    gain = None
    for name in bench.stages:
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
    """Seconds of a step's phases (data, forward, backward, optimiser), and its size."""

    phases: tuple[float, ...]
    tokens: int
    samples: int

    @property
    def seconds(self) -> float:
        return sum(self.phases)


@dataclass(frozen=True, slots=True)
class _Job:
    loaded: Loaded[Any, Any]
    data: TrainingData
    stage: Stage
    batches: PlannedBatches
    module: StageModule
    optimizer: torch.optim.Optimizer

    def step(self, number: int, batches: PlannedBatches | None = None) -> _Times:
        """Time an optimisation step, on other ``batches`` if given."""
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
        phases = tuple(after - before for before, after in pairwise(marks))
        return _Times(phases, batch.tokens(), len(batch.decoder_ids))


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
    """A stage with those of the bench's settings that it has."""
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
        name,
        median(one.seconds for one in times),
        median(one.tokens / one.seconds for one in times),
        median(one.samples / one.seconds for one in times),
        *(sum(phase) / whole for phase in zip(*(one.phases for one in times), strict=True)),
    )


def _gain(job: _Job, bench: TrainBench) -> _CacheGain:
    """Steps with cached and with encoded candidates in turn, on the same questions."""
    texts = PlannedBatches(job.data, job.stage, job.stage.collator(job.loaded, None))
    network = job.loaded.network
    compressor = [*network.adapters.parameters_of("compressor"), *network.table.parameters()]
    cached, encoded, trained = [], [], []
    for number in range(bench.steps + 1):
        cached.append(job.step(number).seconds)
        encoded.append(job.step(number, texts).seconds)
        if bench.train_compressor:
            for parameter in compressor:
                parameter.requires_grad = True
            trained.append(job.step(number, texts).seconds)
            for parameter in compressor:
                parameter.requires_grad = False
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
