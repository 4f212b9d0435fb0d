"""Answers: prompts with memories spliced in, and the loop that decodes them.

``DecodeLoop``: rows share the forward passes of one model, and join and leave between its steps. A step adds a token to
every row and reads the prompts of rows that have joined. The thread that waits for a token drives a step for all, so
threads that ask at the same time share steps, and no thread of its own runs them.

``Contrast`` is context-aware decoding (arXiv 2305.14739): a share of the logits given a null memory, which holds no
passage in particular, is taken off. The shorter a memory, the more an answer is what questions of its kind are answered
with, whatever the passage says. All tokens of the null memory are the mean of passages' tokens; its prompt is decoded
beside the request's own, with the same tokens written after both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Generator as Pieces
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Condition
from typing import TypeAlias

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer

from clara.config import Settings
from clara.errors import InputError, TooLongError
from clara.model.backbone import Tokenizer
from clara.model.decoder import splice
from clara.model.prompting import Prompt, Prompter, Quotations
from clara.records import Generation, GenerationRequest, Memory, TokenCounts

# Prompt tokens, padded, that one step reads on a CPU, and on any other device: a CPU's matrix products are no faster
# for more, and all rows wait for them. A longer prompt is read alone.
_CPU_PROMPT_TOKENS = 256
_PROMPT_TOKENS = 8192

_ROOM = 64  # tokens that a cache grows by at once

# Answers that a reader which learnt to judge them chooses among: each begins with another token. And what a nat of
# their likelihood counts beside one of the verdict.
_ANSWERS_JUDGED = 4
_LIKELIHOOD_WEIGHT = 0.4
_HOPELESS = 3.0  # nats below another: no right answer was chosen from 2 on (LOG.md, 2026-12-01)

_Scores: TypeAlias = Callable[[Tensor, Sequence[int]], Tensor]
"""From a row's scores [V] of its next token and the tokens so far to other scores [V]."""


@dataclass(slots=True, eq=False)
class DecodingRow:
    """An answer that is decoded.

    Attributes:
        prompts: [L, H] of each prompt that the answer follows: one, or several whose logits ``joined`` combines.
        longest: most tokens.
        stops: ids that end it.
        joined: from logits float32 [prompts, V] to scores [V].
        filters: change the scores, in this order.
        choose: the next token's id, int64 [], from its scores [V].
        scored: keep log-probabilities.
        refusal: first id of ``prompts.NO_ANSWER``; None where the model never learnt to refuse.
        verdict: ids of ``prompts.RIGHT`` and ``prompts.WRONG``, one of which follows an answer; None where the model
            never learnt to judge its answers.
        place: it begins with the token of this place among the likeliest, from 0 on; where there is none, it ends.
        others: rows of the same prompts and other places, which join with it.
        best: highest log-probability of an answer that has ended among it and the others, who share it.
        written: ids, without the one that ended it.
        last: the id that is read next.
        stopped: one of ``stops`` ended it.
        closed: the end of an answer that is to be judged has been written, if not read.
        free: log-probability of each token, the one that ended it included, after the first prompt; where scored.
        held: the same among the filtered scores; where scored.
        refused: log-probability of ``refusal`` as the first token; where scored.
        odds: log-odds of the verdict "right"; None before it.
    """

    prompts: tuple[Tensor, ...]
    longest: int
    stops: frozenset[int]
    joined: Callable[[Tensor], Tensor] = lambda logits: logits[0]
    filters: tuple[_Scores, ...] = ()
    choose: Callable[[Tensor], Tensor] = lambda scores: scores.argmax(dim=-1)
    scored: bool = False
    refusal: int | None = None
    verdict: tuple[int, int] | None = None
    place: int = 0
    others: tuple[DecodingRow, ...] = ()
    best: list[float] = field(default_factory=lambda: [-math.inf])
    written: list[int] = field(default_factory=list)
    last: int = -1
    stopped: bool = False
    closed: bool = False
    free: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    refused: float | None = None
    odds: float | None = None

    @property
    def ended(self) -> bool:
        """Nothing more is written, or judged."""
        if self.verdict is None:
            return self.stopped or self.full
        hopeless = not self.closed and sum(self.free) < self.best[0] - _HOPELESS
        return hopeless or self.odds is not None or (self.closed and not self.written)

    @property
    def full(self) -> bool:
        """As many tokens are written as may be."""
        return len(self.written) >= self.longest

    def scores(self, logits: Tensor) -> Tensor:
        """Scores of its next token [V], given the logits [prompts, V]."""
        scores = self.joined(logits)
        for change in self.filters:
            scores = change(scores, self.written)
        return scores

    def next_token(self, scores: Tensor) -> Tensor:
        """The id of its next token, int64 [], from its scores [V]."""
        if not self.place or self.written:
            return self.choose(scores)
        likeliest, ids = scores.topk(self.place + 1)
        return torch.where(likeliest[-1].isfinite(), ids[-1], min(self.stops))

    def write(self, token: int, logits: Tensor, scores: Tensor) -> None:
        """Append its next token; in its place, of an answer to be judged, a token that ends it, and the verdict."""
        if self.verdict is not None and self.closed:
            right, wrong = self.verdict
            self.odds = float(logits[0, right] - logits[0, wrong])
            return
        if self.full:
            self.last, self.closed = min(self.stops), True
            return
        self.last = token
        if self.scored:
            free = logits[0].log_softmax(dim=-1)
            if self.refusal is not None and not self.free:
                self.refused = float(free[self.refusal])
            self.free.append(float(free[token]))
            self.held.append(float(scores.log_softmax(dim=-1)[token]))
        if token in self.stops:
            self.stopped = self.closed = True
            self.best[0] = max(self.best[0], sum(self.free))
        else:
            self.written.append(token)


@dataclass(frozen=True, slots=True)
class _Step:
    """A token of a row, which may be one that ends it; ``last``: the row has ended."""

    row: DecodingRow
    token: int
    last: bool


_Events: TypeAlias = deque[_Step | BaseException]


class DecodeLoop:
    """Decodes rows with one model, those of all threads together."""

    def __init__(self, acting: Callable[[], AbstractContextManager[PreTrainedModel]]) -> None:
        self.acting = acting
        self._changed = Condition()
        self._driven = False
        self._joining: deque[DecodingRow] = deque()
        self._events: dict[DecodingRow, _Events] = {}
        self._batch = _WrittenRows()

    @property
    def rows(self) -> int:
        """Rows whose tokens somebody waits for."""
        return len(self._events)

    def steps(self, rows: Sequence[DecodingRow]) -> Pieces[_Step, None, None]:
        """The tokens of rows as they come, until all have ended. Closing it removes the rows before the next step.

        Raises:
            BaseException: the error of a step, in every thread that had a row in it.
        """
        events: _Events = deque()
        led = {other for row in rows for other in row.others}
        with self._changed:
            self._events.update(dict.fromkeys(rows, events))
            self._joining.extend(row for row in rows if row not in led)
        unfinished = len(rows)
        try:
            while unfinished:
                if self._waits(events):
                    self._drive()
                while events:
                    step = events.popleft()
                    if isinstance(step, BaseException):
                        raise step
                    unfinished -= step.last
                    yield step
        finally:
            with self._changed:
                for row in rows:
                    self._events.pop(row, None)

    def _waits(self, events: _Events) -> bool:
        """Wait for a token; returns whether to drive a step for it."""
        with self._changed:
            self._changed.wait_for(lambda: events or not self._driven)
            drives = not events
            self._driven = self._driven or drives
        return drives

    def _drive(self) -> None:
        try:
            with self.acting() as model, torch.inference_mode():
                budget = _CPU_PROMPT_TOKENS if model.device.type == "cpu" else _PROMPT_TOKENS
                with self._changed:
                    wanted = set(self._events)
                    joining = self._next_to_join(budget)
                self._batch.keep(wanted)
                self._send(self._batch.advance(model))
                if joining:
                    self._send(self._batch.read(model, joining))
        except BaseException as error:
            with self._changed:  # the cache may be half written: nobody's row can go on
                for events in {id(events): events for events in self._events.values()}.values():
                    events.append(error)
                self._joining.clear()
                self._batch = _WrittenRows()
            raise
        finally:
            with self._changed:
                self._driven = False
                self._changed.notify_all()

    def _next_to_join(self, budget: int) -> list[DecodingRow]:
        """The rows that have waited longest, as many as fit the budget and at least one."""
        taken: list[DecodingRow] = []
        longest = prompts = 0
        while self._joining:
            row = self._joining[0]
            if row in self._events:  # else it is not wanted any more
                longest = max(longest, *map(len, row.prompts))
                prompts += len(row.prompts)
                if taken and longest * prompts > budget:
                    break
                taken.append(row)
            self._joining.popleft()
        return taken

    def _send(self, steps: Sequence[_Step]) -> None:
        with self._changed:
            for step in steps:
                if step.row in self._events:
                    self._events[step.row].append(step)
            self._changed.notify_all()


class _WrittenRows:
    """Rows under way with their cache.

    A row has a line of the cache for each of its prompts. Lines are padded on the left and end in the same column, so
    that a further column is a token more for all.
    """

    def __init__(self) -> None:
        self._rows: list[DecodingRow] = []
        self._cache = _new_cache()
        self._mask = torch.empty(0, 0, dtype=torch.int64)  # [lines, columns]

    def keep(self, wanted: set[DecodingRow]) -> None:
        """Drop rows that have ended or are not ``wanted``."""
        stay = [row in wanted and not row.ended for row in self._rows]
        if all(stay):
            return
        lines = [kept for row, kept in zip(self._rows, stay, strict=True) for _ in row.prompts]
        self._rows = [row for row, kept in zip(self._rows, stay, strict=True) if kept]
        if not self._rows:
            self._cache = _new_cache()
            return
        mask = self._mask[torch.tensor(lines, device=self._mask.device)]
        first = int(mask.any(dim=0).int().argmax())
        self._mask = mask[:, first:]
        for layer in self._cache.layers:
            layer.hold(*(states[lines, :, first:] for states in (layer.keys, layer.values)))

    def advance(self, model: PreTrainedModel) -> list[_Step]:
        """A token more for every row."""
        if not self._rows:
            return []
        last = [[row.last] for row in self._rows for _ in row.prompts]
        positions = self._mask.sum(dim=1, keepdim=True)
        self._mask = pad(self._mask, (0, 1), value=1)
        ids = torch.tensor(last, device=model.device)
        verdicts = sorted({token for row in self._rows if row.closed for token in row.verdict or ()})
        logits = _forward(model, self._cache, self._mask, positions, exactly=verdicts, input_ids=ids)
        return _written(self._rows, logits)

    def read(self, model: PreTrainedModel, rows: Sequence[DecodingRow]) -> list[_Step]:
        """Prefill rows that join, and write their first token."""
        prompts = [prompt for row in rows for prompt in row.prompts]
        longest = max(map(len, prompts))
        embeds = torch.stack([pad(prompt, (0, 0, longest - len(prompt), 0)) for prompt in prompts])
        ones = [torch.ones(len(prompt), dtype=torch.int64, device=embeds.device) for prompt in prompts]
        mask = torch.stack([pad(one, (longest - len(one), 0)) for one in ones])
        cache = _new_cache()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = _forward(model, cache, mask, positions, inputs_embeds=embeds)
        if any(row.others for row in rows):
            rows, lines = _with_others(rows)
            for layer in cache.layers:
                layer.hold(layer.keys[lines], layer.values[lines])
            logits, mask = logits[lines], mask[lines]
        steps = _written(rows, logits)
        if self._rows:
            for ours, theirs in zip(self._cache.layers, cache.layers, strict=True):
                ours.hold(_under(ours.keys, theirs.keys), _under(ours.values, theirs.values))
            self._mask = _under(self._mask[:, None, :, None], mask[:, None, :, None])[:, 0, :, 0]
        else:
            self._cache, self._mask = cache, mask
        self._rows = [*self._rows, *rows]
        return steps


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values [lines, heads, columns, D] with room: a token is written in place, without copying all others."""

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Replace the content."""
        self._rooms = [pad(states, (0, 0, 0, _ROOM)) for states in (keys, values)]
        self._show(keys.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append columns; returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.hold(key_states, value_states)
            return key_states, value_states
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self._rooms[0].shape[2]:
            self.hold(self.keys, self.values)
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def _show(self, end: int) -> None:
        self.keys, self.values = (room[:, :, :end] for room in self._rooms)


def _new_cache() -> Cache:
    # One that holds all columns, of sliding layers too: their window is in the mask.
    return Cache(layer_class_to_replicate=_GrowingLayer)


def _under(upper: Tensor, lower: Tensor) -> Tensor:
    """Two blocks of lines [lines, heads, columns, D] as one, aligned on the right."""
    columns = max(upper.shape[2], lower.shape[2])
    return torch.cat([pad(block, (0, 0, columns - block.shape[2], 0)) for block in (upper, lower)])


def _forward(
    model: PreTrainedModel,
    cache: Cache,
    mask: Tensor,
    positions: Tensor,
    *,
    exactly: Sequence[int] = (),
    **read: Tensor,
) -> Tensor:
    """Logits float32 [lines, V] of the next token.

    Those of the ids in ``exactly`` are computed in fp32: bf16 rounds the difference of two to a quarter or an eighth.
    """
    out = model(
        **read,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        output_hidden_states=bool(exactly),
    )
    logits: Tensor = out.logits[:, -1].float()
    if exactly:
        weight = model.get_output_embeddings().weight[exactly].float()
        states = out.hidden_states[-1][:, -1].float()
        logits[:, exactly] = (states[:, None] * weight).sum(dim=-1)  # autocast would take a matrix product to bf16
    return logits


def _with_others(rows: Sequence[DecodingRow]) -> tuple[list[DecodingRow], list[int]]:
    """Rows that join, each with its others, and the line of the prompts read that each line of them begins with."""
    joined, lines, first = list[DecodingRow](), list[int](), 0
    for row in rows:
        own = range(first, first + len(row.prompts))
        first += len(row.prompts)
        for each in (row, *row.others):
            joined.append(each)
            lines.extend(own)
    return joined, lines


def _written(rows: Sequence[DecodingRow], logits: Tensor) -> list[_Step]:
    """The next token of each row, written; ``logits`` [lines, V]."""
    own: tuple[Tensor, ...] = torch.split(logits, [len(row.prompts) for row in rows])
    scores = [row.scores(each) for row, each in zip(rows, own, strict=True)]
    # One transfer from the device for all.
    tokens = torch.stack([row.next_token(each) for row, each in zip(rows, scores, strict=True)]).tolist()
    for row, token, before, after in zip(rows, tokens, own, scores, strict=True):
        row.write(token, before, after)
    return [_Step(row, token, row.ended) for row, token in zip(rows, tokens, strict=True)]


def _contrasted(logits: Tensor, *, weight: float) -> Tensor:
    """Log-probabilities [V] after the passages less a share of those after the null memory.

    ``logits`` [2, V] of both.
    """
    scores = logits.log_softmax(dim=-1)
    return scores[0] - weight * scores[1]


class Sampling(Settings):
    """Sampling settings; temperature 0 is greedy, ``top_p`` the nucleus. Without a seed each answer is drawn anew."""

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)


def sampling(**values: float | None) -> Sampling:
    """Settings from a user's values (InputError: names every bad value)."""
    try:
        return Sampling.model_validate(values)
    except ValidationError as error:
        faults = [f"{fault['loc'][0]}: {fault['msg']}, got {fault['input']!r}" for fault in error.errors()]
        raise InputError("; ".join(faults)) from None


@dataclass(frozen=True, slots=True)
class Contrast:
    """The null memory of context-aware decoding, and its weight, above 0."""

    blank: Memory
    weight: float


@dataclass(frozen=True, slots=True)
class _Answering:
    """A request under way, of whose rows one is its answer; ``quotations`` constrain them, None for free ones."""

    request: GenerationRequest
    rows: tuple[DecodingRow, ...]
    quotations: Quotations | None

    @property
    def row(self) -> DecodingRow:
        """Its row; once several have ended, the one that is the answer."""
        return max(self.rows, key=lambda row: _evidence(row) if row.odds is not None else -math.inf)


class Generator:
    """Turns requests into answers with a causal LM that acts as the wanted reader."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompter: Prompter,
        contrast: Callable[[GenerationRequest], Contrast | None] = lambda _: None,
        judges: Callable[[GenerationRequest], bool] = lambda _: False,
    ) -> None:
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._contrast = contrast  # None for a request without
        self._judges = judges  # whether the reader of a request learnt to judge its answers

    def prompt(self, request: GenerationRequest) -> Prompt:
        """The request's prompt."""
        memories = [len(memory.values) for memory in request.memories]
        return self._prompter.from_passages(request.question, [*request.texts, *memories])

    def generate(
        self, decoder: DecodeLoop, requests: Sequence[GenerationRequest], sampling: Sampling, *, scored: bool = False
    ) -> list[Generation]:
        """Answers to requests, all by the reader of ``decoder``, in order; ``scored``: with ``evidence``.

        Raises:
            InputError: a prompt is longer than the model's context.
        """
        ended = self._ended(decoder, requests, sampling, scored=scored)
        return [self._generation(answer, answer.row) for answer in ended]

    def candidates(
        self, decoder: DecodeLoop, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> list[list[Generation]]:
        """The answers among which ``generate`` chooses each request's, in the order of their first tokens' likelihood.

        Without those that were given up for another's sake.

        Errors as ``generate``.
        """
        ended = self._ended(decoder, requests, sampling, scored=False)
        return [[self._generation(answer, row) for row in answer.rows if row.odds is not None] for answer in ended]

    def _ended(
        self, decoder: DecodeLoop, requests: Sequence[GenerationRequest], sampling: Sampling, *, scored: bool
    ) -> list[_Answering]:
        answers = self._answers(decoder, requests, sampling, scored=scored)
        for _ in decoder.steps([row for answer in answers for row in answer.rows]):
            pass
        return answers

    def stream(
        self, decoder: DecodeLoop, request: GenerationRequest, sampling: Sampling, *, scored: bool = False
    ) -> Pieces[str, None, Generation]:
        """An answer in pieces of its text, one a token, empty where nothing can be shown yet; returns the answer.

        Closing it ends the answer. Arguments and errors as ``generate``.
        """
        (answer,) = self._answers(decoder, [request], sampling, scored=scored)
        shown = ""
        with closing(decoder.steps(answer.rows)) as steps:
            for _ in steps:
                text = self._showable(answer, shown)
                yield text[len(shown) :]
                shown = text
        yield self._text(self._kept(answer, answer.row))[len(shown) :]
        return self._generation(answer, answer.row)

    def question_likelihoods(self, decoder: DecodeLoop, question: str, memories: Sequence[Memory]) -> list[float]:
        """Log-probability of a question after each memory alone, in nats; memories are of one rate.

        Raises:
            TooLongError: the prompt is longer than the model's context.
        """
        if not memories:
            return []
        prompt, asked = self._prompter.asked(question, len(memories[0].values))
        with decoder.acting() as model, torch.inference_mode():
            check_length(model, len(prompt.ids), Sampling(max_new_tokens=1))
            rows = prompt_embeds(model, prompt, memory_vectors(model, memories), count=len(memories))
            states = model.get_decoder()(inputs_embeds=rows, use_cache=False).last_hidden_state
            logits = model.get_output_embeddings()(states[:, -asked - 1 : -1]).float()
            ids = torch.tensor(prompt.ids[-asked:], device=logits.device).expand(len(rows), -1)
            likelihoods: list[float] = logits.log_softmax(dim=-1).gather(2, ids[..., None]).sum(dim=(1, 2)).tolist()
        return likelihoods

    def embeds(self, model: PreTrainedModel, request: GenerationRequest, sampling: Sampling) -> Tensor:
        """Input embeddings of a request's prompt: [L, H].

        Raises:
            InputError: the prompt is longer than the model's context.
        """
        prompt = self.prompt(request)
        check_length(model, len(prompt.ids), sampling)
        return prompt_embeds(model, prompt, memory_vectors(model, request.memories))[0]

    def _answers(
        self, decoder: DecodeLoop, requests: Sequence[GenerationRequest], sampling: Sampling, *, scored: bool
    ) -> list[_Answering]:
        with decoder.acting() as model, torch.inference_mode():
            return [self._answering(model, request, sampling, scored=scored) for request in requests]

    def _answering(
        self, model: PreTrainedModel, request: GenerationRequest, sampling: Sampling, *, scored: bool
    ) -> _Answering:
        stops = stop_ids(model, self._tokenizer)
        row = DecodingRow((self.embeds(model, request, sampling),), sampling.max_new_tokens, stops=stops, scored=scored)
        contrast = self._contrast(request)
        if contrast is not None:
            null = GenerationRequest(request.question, memories=(contrast.blank,))
            row.prompts += (self.embeds(model, null, sampling),)
            row.joined = partial(_contrasted, weight=contrast.weight)
        quotations = None
        if request.quote_from:
            quotations = self._prompter.quotations(request.quote_from)
            row.refusal = self._prompter.refusal
        if quotations is not None:
            row.filters = (partial(quotations.only, stops=sorted(stops)),)
        if sampling.temperature:
            row.choose = _draws(sampling, model.device)
        elif quotations is not None and self._judges(request):
            row.verdict, row.scored = self._prompter.verdict, True
            row.others = tuple(
                replace(row, place=place, written=[], free=[], held=[]) for place in range(1, _ANSWERS_JUDGED)
            )
        return _Answering(request, (row, *row.others), quotations)

    def _showable(self, answer: _Answering, shown: str) -> str:
        """The text of an unfinished answer that can be shown."""
        if len(answer.rows) > 1:
            return shown  # which one is the answer is not known before the end
        written = list(answer.row.written)
        if answer.quotations is not None and not answer.quotations.may_end(written):
            return shown  # cut off within a word, it would be no quotation
        text = self._text(written)
        return shown if text.endswith("\N{REPLACEMENT CHARACTER}") else text  # within a character

    def _kept(self, answer: _Answering, row: DecodingRow) -> list[int]:
        """The ids of a row of an answer that has ended; a quotation that was cut off ends with a word."""
        kept = list(row.written)
        if answer.quotations is not None and not row.stopped:
            while kept and not answer.quotations.may_end(kept):
                kept.pop()
        return kept

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _generation(self, answer: _Answering, row: DecodingRow) -> Generation:
        evidence = _evidence(row) if row.scored else None
        return self.written(answer.request, self._kept(answer, row), stopped=row.stopped, evidence=evidence)

    def written(
        self, request: GenerationRequest, ids: Sequence[int], *, stopped: bool, evidence: float | None = None
    ) -> Generation:
        """The answer with these ids; ``stopped``: it ended by itself."""
        prompt = self.prompt(request)
        memory = len(prompt.slots)
        return Generation(
            text=self._text(ids).strip(),
            token_ids=tuple(ids),
            tokens=TokenCounts(
                prompt=len(prompt.ids),
                memory=memory,
                text_equivalent=len(prompt.ids) - memory + sum(m.token_count for m in request.memories),
                generated=len(ids),
            ),
            finish_reason="stop" if stopped else "length",
            evidence=evidence,
        )


def _draws(sampling: Sampling, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A sampler of tokens."""
    source = torch.Generator(device)
    if sampling.seed is None:
        source.seed()
    else:
        source.manual_seed(sampling.seed)
    warpers = [TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)]

    def choose(scores: Tensor) -> Tensor:
        scores = scores[None]
        for warper in warpers:
            scores = warper(None, scores)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=source)[0, 0]

    return choose


def _evidence(row: DecodingRow) -> float:
    """The model's confidence in its answer (``Generation.evidence``).

    Of a model that cannot refuse, the mean over tokens of the log of the probability mass that the allowed tokens have:
    a token's log-probability among all tokens, less that among those allowed. A token that is rare in itself, as in an
    identifier, is then no doubt.
    """
    if row.odds is None and row.refused is None:
        return sum(one - other for one, other in zip(row.free, row.held, strict=True)) / len(row.free)
    against_refusing = sum(row.free) - (row.refused or 0.0)
    return against_refusing if row.odds is None else row.odds + _LIKELIHOOD_WEIGHT * against_refusing


def stop_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's end token and those of the model's generation settings."""
    named = model.generation_config.eos_token_id
    listed = named if isinstance(named, list) else [named]
    return frozenset({int(tokenizer.eos_token_id), *(int(i) for i in listed if i is not None)})


def memory_vectors(model: PreTrainedModel, memories: Sequence[Memory]) -> Tensor:
    """Vectors of memories in reading order, on the model's device: float32 [sum of N, H]; no rows for a closed book."""
    if not memories:
        return torch.zeros(0, model.get_input_embeddings().weight.shape[1], device=model.device)
    return torch.from_numpy(np.concatenate([memory.values for memory in memories])).to(model.device)


def prompt_embeds(
    model: PreTrainedModel, prompt: Prompt, vectors: Tensor, *, count: int = 1, more: Sequence[int] = ()
) -> Tensor:
    """Input embeddings [count, L, H] of prompts of the same tokens and their own memories, then of ``more`` ids."""
    row = [*prompt.ids, *more]
    ids = torch.tensor([row] * count, device=model.device)
    slots = torch.zeros(count, len(row), dtype=torch.bool, device=model.device)
    slots[:, list(prompt.slots)] = True
    return splice(model.get_input_embeddings()(ids), slots, vectors)


def check_length(model: PreTrainedModel, length: int, sampling: Sampling) -> None:
    """Refuse a prompt of so many tokens that a model cannot read to the end of its answer.

    Raises:
        TooLongError: says what would make it fit.
    """
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    if limit is None or length + sampling.max_new_tokens <= limit:
        return
    said = f"the prompt has {length} tokens and {sampling.max_new_tokens} may follow, the model takes {limit}; "
    if length < limit:
        raise TooLongError(f"{said}let at most {limit - length} follow (max_new_tokens)")
    raise TooLongError(f"{said}use fewer passages (k) or memories instead of text (context memory)")
