"""Speed, as ratios with both sides measured in one run.

Bulk compression against the machine's own peak; the time to the first token from memories against the same passages as
text; and from candidates whose memories an index holds against candidates that are compressed when asked. Absolute
seconds are given beside the ratios because they are cheap, not because they compare between machines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Protocol

import torch
from transformers import GenerationConfig
from transformers.generation import BaseStreamer

from clara.model.generator import DecodeLoop, DecodingRow
from clara.records import Generation, GenerationRequest, Memory, QueryMemory
from clara.similarity import ranking

PEAK_SIZE = 2048
"""Side of the square matrices whose product stands for the machine's peak: large enough to be bound by arithmetic."""

PEAK_SECONDS = 1.0

_DECODED_ROWS = (1, 8)
_DECODED_TOKENS = 24
_DECODED_TIMES = 3
"""How often the sides are measured in turn."""
_PROMPT_POSITIONS = 64


class _SpeedModel(Protocol):
    """What the benchmarks ask of a model."""

    @property
    def default_rate(self) -> int:
        """The rate used when none is asked for."""

    def decoder(self, request: GenerationRequest) -> DecodeLoop:
        """What writes with the weights of a request's reader."""

    def compress(
        self, texts: Sequence[str], *, rate: int | None = None, progress: Callable[[int], None] | None = None
    ) -> list[Memory]:
        """One memory a text."""

    def encode_queries(self, questions: Sequence[str], *, rate: int | None = None) -> list[QueryMemory]:
        """One memory a question, in the space of the texts'."""

    def compression_flops(self, token_count: int, *, rate: int | None = None) -> int:
        """Arithmetic of compressing one text."""

    def generate_many(self, requests: Sequence[GenerationRequest], *, max_new_tokens: int = 64) -> list[Generation]:
        """One greedy answer a request."""


@dataclass(frozen=True, slots=True)
class _CompressSpeed:
    """Result of ``bench_compress``.

    Attributes:
        passages: texts compressed.
        tokens: their tokens.
        rate: compression rate.
        seconds: wall clock.
        tokens_per_second: text tokens.
        gflops: model arithmetic a second, useful work only: no padding, no masked attention.
        peak_gflops: matrix product of the same process, median of a measurement before and one after.
        share_of_peak: ``gflops / peak_gflops``.
        threads: torch threads.
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
    """Result of ``_bench_decode``: medians over the tokens after the first, the sides measured in turn.

    Attributes:
        rows: answers written together.
        prompt: positions before them.
        token_ms: milliseconds from one token of all rows to the next.
        transformers_ms: the same by ``transformers.generate``.
        ratio: transformers' time / ours.
    """

    rows: int
    prompt: int
    token_ms: float
    transformers_ms: float
    ratio: float


@dataclass(frozen=True, slots=True)
class _AskSpeed:
    """Result of ``bench_ask``: medians over the questions, the sides measured in turn.

    Attributes:
        questions: questions asked.
        passages: passages a question.
        rate: compression rate of the memories.
        memory_seconds: to the first token from memories.
        text_seconds: to the first token from the text of the same passages.
        memory_prompt: prompt positions with memories.
        text_prompt: prompt positions with text.
        ratio: text seconds / memory seconds.
        decoding: a token's time, for some numbers of rows.
    """

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
    """Result of ``bench_candidates``: medians over the questions, the sides measured in turn.

    Attributes:
        questions: questions asked.
        candidates: passages that each question is to choose from.
        k: passages that it chooses.
        rate: compression rate.
        docs_per_second: candidates compressed a second, all questions together.
        indexed_seconds: to the first token where the candidates' memories are there already.
        compressed_seconds: to the first token where they are compressed first, as one call.
        ratio: compressed seconds / indexed seconds.
    """

    questions: int
    candidates: int
    k: int
    rate: int
    docs_per_second: float
    indexed_seconds: float
    compressed_seconds: float
    ratio: float


def bench_compress(
    model: _SpeedModel,
    texts: Sequence[str],
    *,
    rate: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    progress: Callable[[int], None] | None = None,
) -> _CompressSpeed:
    """Compress texts and compare the arithmetic done a second with the machine's peak.

    Args:
        model: warmed up here with a few of the texts.
        texts: each fits the model's window.
        rate: compression rate; the model's default when None.
        dtype: of the peak's matrices; that of the model's weights.
        progress: called with the number of texts that each batch finished.
    """
    rate = rate or model.default_rate
    model.compress(texts[:8], rate=rate)
    before = _matmul_peak(dtype)
    started = time.perf_counter()
    memories = model.compress(texts, rate=rate, progress=progress)
    seconds = time.perf_counter() - started
    peak = median([before, _matmul_peak(dtype)])
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
    model: _SpeedModel, questions: Sequence[str], passages: Sequence[Sequence[str]], *, rate: int = 16
) -> _AskSpeed:
    """Time to the first token from memories against the full text, same questions, same passages, same backbone.

    Memories are made beforehand, as an index does; both readers run as merged weights or the bare backbone.

    Args:
        model: the model.
        questions: at least one.
        passages: the texts each question is answered from.
        rate: compression rate of the memories.
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


def _bench_decode(model: _SpeedModel, rows: int) -> _DecodeSpeed:
    """A token's time by our loop against ``transformers.generate``, with the weights that read memories.

    Prompts and answers mean nothing: they are of equal length on both sides, and only the seconds count.

    Args:
        model: the model.
        rows: answers written together.
    """
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
    """Notes when transformers' loop has a token."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take a token of each row."""
        del value
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """There are no more."""


def bench_candidates(
    model: _SpeedModel,
    questions: Sequence[str],
    candidates: Sequence[Sequence[str]],
    *,
    k: int,
    rate: int | None = None,
) -> _CandidateSpeed:
    """Time to the first token from indexed candidates against candidates compressed at question time.

    Both sides encode the question, rank the candidates by cosine and answer from the best ``k``; they differ in when
    the candidates are compressed. That is done without padding and in batches on either side, so the ratio is what an
    index saves, not what a slow loop would add.

    Args:
        model: the model.
        questions: at least one.
        candidates: the passages of each question.
        k: passages to answer from.
        rate: compression rate; the model's default when None.
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
    """The questions with their texts, the first one twice: its first time only loads and merges weights."""
    return [(questions[0], texts[0]), *zip(questions, texts, strict=True)]


def _matmul_peak(dtype: torch.dtype) -> float:
    """Billions of floating-point operations a second of a large square matrix product, median over a second."""
    a, b = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype), torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype)
    torch.mm(a, b)
    rates: list[float] = []
    until = time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(a, b)
        rates.append(2 * PEAK_SIZE**3 / (time.perf_counter() - started) / 1e9)
    return median(rates)
