"""The decode loop: rows that share the forward passes of one model, and join and leave between its steps.

A step adds a token to every row that is being written, and reads the prompts of rows that have joined. Whoever waits
for a token drives a step for all: threads that ask at the same time share steps, and no thread is needed to run them.
Knows embeddings, logits and token ids. What a prompt says, and which tokens an answer may have, is decided elsewhere
(``generator``, ``quoting``, ``contrast``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Condition
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

CPU_PROMPT_TOKENS = 256
"""Prompt tokens, padded, that one step reads on a CPU: its matrix products are no faster for more, and all rows wait
for them. A longer prompt is read alone."""
_PROMPT_TOKENS = 8192
"""As above, on any other device."""

_ROOM = 64  # tokens that a cache grows by at once

_Scores: TypeAlias = Callable[[Tensor, Sequence[int]], Tensor]
"""From a row's scores [V] of its next token and the tokens written so far to other scores [V]."""


@dataclass(slots=True, eq=False)
class DecodingRow:
    """An answer that is written.

    Attributes:
        prompts: [L, H] of each prompt that the answer follows: one, or more whose logits ``joined`` makes one of.
        longest: most tokens.
        stops: ids that end it.
        joined: from logits float32 [prompts, V] to scores [V].
        filters: what changes the scores, in this order.
        choose: the next token's id, int64 [], from its scores [V].
        scored: keep log-probabilities.
        written: ids, without the one that ended it.
        stopped: whether one of ``stops`` ended it.
        free: of each token, the one that ended it included: log-probability after the first prompt; where scored.
        held: the same among the scores that it was chosen from; where scored.
    """

    prompts: tuple[Tensor, ...]
    longest: int
    stops: frozenset[int]
    joined: Callable[[Tensor], Tensor] = lambda logits: logits[0]
    filters: tuple[_Scores, ...] = ()
    choose: Callable[[Tensor], Tensor] = lambda scores: scores.argmax(dim=-1)
    scored: bool = False
    written: list[int] = field(default_factory=list)
    stopped: bool = False
    free: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether nothing more is written."""
        return self.stopped or len(self.written) >= self.longest

    def scores(self, logits: Tensor) -> Tensor:
        """What its next token is chosen from [V], given the logits [prompts, V]."""
        scores = self.joined(logits)
        for change in self.filters:
            scores = change(scores, self.written)
        return scores

    def write(self, token: int, logits: Tensor, scores: Tensor) -> None:
        """Take its next token."""
        if self.scored:
            self.free.append(float(logits[0].log_softmax(dim=-1)[token]))
            self.held.append(float(scores.log_softmax(dim=-1)[token]))
        if token in self.stops:
            self.stopped = True
        else:
            self.written.append(token)


@dataclass(frozen=True, slots=True)
class Step:
    """A token of a row.

    Attributes:
        row: whose.
        token: its id, which may be one that ends the row.
        last: whether the row has ended.
    """

    row: DecodingRow
    token: int
    last: bool


_Told: TypeAlias = deque[Step | BaseException]


class DecodeLoop:
    """Writes rows with one model, those of all threads together."""

    def __init__(self, acting: Callable[[], AbstractContextManager[PreTrainedModel]]) -> None:
        """Take the model.

        Args:
            acting: gives it, for the length of a step.
        """
        self.acting = acting
        self._changed = Condition()
        self._driven = False
        self._joining: deque[DecodingRow] = deque()
        self._told: dict[DecodingRow, _Told] = {}
        self._batch = _WrittenRows()

    @property
    def rows(self) -> int:
        """Rows that somebody waits for."""
        return len(self._told)

    def steps(self, rows: Sequence[DecodingRow]) -> Generator[Step, None, None]:
        """The tokens of rows as they come, until all have ended. Closing it takes them out before the next step.

        Raises:
            BaseException: whatever a step raised, in every thread that had a row in it.
        """
        told: _Told = deque()
        with self._changed:
            self._told.update(dict.fromkeys(rows, told))
            self._joining.extend(rows)
        unfinished = len(rows)
        try:
            while unfinished:
                if self._waits(told):
                    self._drive()
                while told:
                    step = told.popleft()
                    if isinstance(step, BaseException):
                        raise step
                    unfinished -= step.last
                    yield step
        finally:
            with self._changed:
                for row in rows:
                    self._told.pop(row, None)

    def _waits(self, told: _Told) -> bool:
        """Wait for a token; returns whether to drive a step for it."""
        with self._changed:
            self._changed.wait_for(lambda: told or not self._driven)
            drives = not told
            self._driven = self._driven or drives
        return drives

    def _drive(self) -> None:
        """Do one step for all rows."""
        try:
            with self.acting() as model, torch.inference_mode():
                budget = CPU_PROMPT_TOKENS if model.device.type == "cpu" else _PROMPT_TOKENS
                with self._changed:
                    wanted = set(self._told)
                    joining = self._next_to_join(budget)
                self._batch.keep(wanted)
                self._tell(self._batch.advance(model))
                if joining:
                    self._tell(self._batch.read(model, joining))
        except BaseException as error:
            with self._changed:  # the cache may be half written: nobody's row can go on
                for told in {id(told): told for told in self._told.values()}.values():
                    told.append(error)
                self._joining.clear()
                self._batch = _WrittenRows()
            raise
        finally:
            with self._changed:
                self._driven = False
                self._changed.notify_all()

    def _next_to_join(self, budget: int) -> list[DecodingRow]:
        """The rows that have waited longest, as many as the budget takes and at least one."""
        taken: list[DecodingRow] = []
        longest = prompts = 0
        while self._joining:
            row = self._joining[0]
            if row in self._told:  # else nobody wants it any more
                longest = max(longest, *map(len, row.prompts))
                prompts += len(row.prompts)
                if taken and longest * prompts > budget:
                    break
                taken.append(row)
            self._joining.popleft()
        return taken

    def _tell(self, steps: Sequence[Step]) -> None:
        with self._changed:
            for step in steps:
                told = self._told.get(step.row)
                if told is not None:
                    told.append(step)
            self._changed.notify_all()


class _WrittenRows:
    """Rows that are being written, with what the model has read of them.

    A row has a line of the cache for each of its prompts. Lines end in the same column, so that one column more is one
    token more for all; what a line lacks on the left is masked.
    """

    def __init__(self) -> None:
        self._rows: list[DecodingRow] = []
        self._cache = _new_cache()
        self._mask = torch.empty(0, 0, dtype=torch.int64)  # [lines, columns]

    def keep(self, wanted: set[DecodingRow]) -> None:
        """Drop rows that have ended or are not wanted."""
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

    def advance(self, model: PreTrainedModel) -> list[Step]:
        """A token more for every row."""
        if not self._rows:
            return []
        last = [[row.written[-1]] for row in self._rows for _ in row.prompts]
        positions = self._mask.sum(dim=1, keepdim=True)
        self._mask = pad(self._mask, (0, 1), value=1)
        logits = _forward(
            model,
            self._cache,
            self._mask,
            positions,
            input_ids=torch.tensor(last, device=model.device),
        )
        return _written(self._rows, logits)

    def read(self, model: PreTrainedModel, rows: Sequence[DecodingRow]) -> list[Step]:
        """The first token of rows that join."""
        prompts = [prompt for row in rows for prompt in row.prompts]
        longest = max(map(len, prompts))
        embeds = torch.stack([pad(prompt, (0, 0, longest - len(prompt), 0)) for prompt in prompts])
        ones = [torch.ones(len(prompt), dtype=torch.int64, device=embeds.device) for prompt in prompts]
        mask = torch.stack([pad(one, (longest - len(one), 0)) for one in ones])
        cache = _new_cache()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        steps = _written(rows, _forward(model, cache, mask, positions, inputs_embeds=embeds))
        if self._rows:
            for ours, theirs in zip(self._cache.layers, cache.layers, strict=True):
                ours.hold(_under(ours.keys, theirs.keys), _under(ours.values, theirs.values))
            self._mask = _under(self._mask[:, None, :, None], mask[:, None, :, None])[:, 0, :, 0]
        else:
            self._cache, self._mask = cache, mask
        self._rows = [*self._rows, *rows]
        return steps


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values [lines, heads, columns, D] with room: a token is written in place, not by copying all others."""

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Hold these and nothing else."""
        self._rooms = [pad(states, (0, 0, 0, _ROOM)) for states in (keys, values)]
        self._show(keys.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Take more columns; returns all."""
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
    """Two blocks of lines [lines, heads, columns, D] as one, ending in the same column."""
    columns = max(upper.shape[2], lower.shape[2])
    return torch.cat([pad(block, (0, 0, columns - block.shape[2], 0)) for block in (upper, lower)])


def _forward(model: PreTrainedModel, cache: Cache, mask: Tensor, positions: Tensor, **read: Tensor) -> Tensor:
    """Logits float32 [lines, V] of the next token."""
    out = model(
        **read,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = out.logits[:, -1].float()
    return logits


def _written(rows: Sequence[DecodingRow], logits: Tensor) -> list[Step]:
    """The next token of each row, written; ``logits`` [lines, V]."""
    own: tuple[Tensor, ...] = torch.split(logits, [len(row.prompts) for row in rows])
    scores = [row.scores(each) for row, each in zip(rows, own, strict=True)]
    # One transfer from the device for all.
    tokens = torch.stack([row.choose(each) for row, each in zip(rows, scores, strict=True)]).tolist()
    for row, token, before, after in zip(rows, tokens, own, scores, strict=True):
        row.write(token, before, after)
    return [Step(row, token, row.ended) for row, token in zip(rows, tokens, strict=True)]
