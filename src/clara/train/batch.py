"""Examples to tensors: texts for the compressor, and one decoder sequence an example for all of its targets.

The targets of an example share the prompt up to the question and then stand side by side: each sees the shared part
and itself, at the position ids it would have alone, so the loss is that of separate sequences at a fraction of the
tokens.
Shape letters: D texts in the batch, S text tokens, B examples, L decoder positions, N memory tokens, T labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from clara import prompts
from clara.model.backbone import padded, padded_texts
from clara.model.prompting import Prompt, Prompter
from clara.train.examples import Example, Target

Memories = Callable[[Sequence[str], int], Tensor]
"""Memories float16 [U, N, H] of texts at a rate."""


class Collate(Protocol):
    """Makes a batch of examples of the stage's kind."""

    def __call__(self, examples: Sequence[Any], *, rate: int, asked: Sequence[int] | None = None) -> Batch:
        """A batch of the examples ``asked`` (all when None); the others may serve as negatives."""


REPLY_TOKENS = 96
"""Longest reply by default: answers are far shorter, restatements teach little more."""


@dataclass(frozen=True, slots=True)
class _Tensors:
    """A record of tensors, and of records of them, that moves to a device as a whole."""

    def to(self, device: torch.device) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {n: v.to(device) for n, v in values.items() if isinstance(v, Tensor | _Tensors)}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Batch(_Tensors):
    """A forward pass's input.

    Attributes:
        text_ids: int64 [D, S]; the texts of example 0, then of example 1, …, each once.
        text_mask: bool [D, S].
        text_index: int64 [memories in the prompts, in reading order]: row of the text.
        decoder_ids: int64 [B, L].
        slots: bool [B, L], positions of memory vectors.
        segments: int64 [B, L]: 0 the shared part, 1, 2, … the targets, -1 padding.
        positions: int64 [B, L].
        label_index: int64 [T], flat positions in [B * L] whose next token is a label.
        labels: int64 [T].
        weights: float32 [T].
        label_share: label weight of this part of a step (a pass, a process) over the parts' mean; 1 for a whole step. A
            mean over labels times this, averaged over the parts, is the mean over the step's labels.
        text_share: the same for means over texts.
        teaching: the teacher's input for the same replies; None without one.
        memories: precomputed, float16 [D, N, H]; ``text_ids`` has no rows then.
        states: float16 [D, N, 1 + L, H] of the texts, where only the read-out is to be done (``ReadOut.states``).
        quotable: alternatives of labels under extractive decoding; None where they are not used.
    """

    text_ids: Tensor
    text_mask: Tensor
    text_index: Tensor
    decoder_ids: Tensor
    slots: Tensor
    segments: Tensor
    positions: Tensor
    label_index: Tensor
    labels: Tensor
    weights: Tensor
    rate: int
    label_share: float = 1.0
    text_share: float = 1.0
    teaching: Teaching | None = None
    memories: Tensor | None = None
    states: Tensor | None = None
    quotable: Quotable | None = None

    def tokens(self) -> int:
        """Real tokens and memory slots that a forward pass reads, the teacher's included."""
        taught = 0 if self.teaching is None else self.teaching.sequences.tokens()
        return int(self.text_mask.sum()) + int((self.segments >= 0).sum()) + taught


@dataclass(frozen=True, slots=True)
class Teaching(_Tensors):
    """The same replies after a teacher's prompts, which hold the passages as text; T' labels.

    ``rows``, int64 [T'], are their places among the student's labels.
    """

    sequences: Batch
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Quotable(_Tensors):
    """Labels of answers that can be quoted, with all tokens that extractive decoding would allow in their place.

    ``rows``, int64 [Q], are places among the batch's labels; of each allowed token, the label among them, ``places``
    has the place in ``rows`` and ``ids`` the id, int64 [P].
    """

    rows: Tensor
    places: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class _Sequence:
    ids: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    label_positions: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


_NO_PROMPT = Prompt((), ())


class Collator:
    """Builds batches for one tokenizer and window."""

    def __init__(
        self,
        prompter: Prompter,
        *,
        window_tokens: int,
        memories: Memories | None = None,
        states: Memories | None = None,
        quoted: bool = False,
        reply_tokens: int = REPLY_TOKENS,
    ) -> None:
        """Fix the settings that all batches share.

        ``memories`` and ``states`` give computed ones of texts, None encodes the texts in the forward pass; states go
        beside the texts. ``quoted`` adds the alternatives that could be quoted. A reply longer than ``reply_tokens`` is
        cut and has no end token.
        """
        self.window_tokens = window_tokens
        self._prompter, self._longest = prompter, reply_tokens
        self._memories, self._states, self._quoted = memories, states, quoted

    def __call__(self, examples: Sequence[Example], *, rate: int, asked: Sequence[int] | None = None) -> Batch:
        """Make a batch; texts longer than the window are cut at their end."""
        taken = examples if asked is None else [examples[i] for i in asked]
        rows = [self._sequence(self._background(example, rate), example.targets) for example in taken]
        texts = [text for example in taken for text in example.compressed]
        places = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        batch = self._batch(list(places) if self._memories is None else [], rows, rate)
        return replace(
            batch,
            text_index=torch.tensor([places[t] for t in texts], dtype=torch.int64),
            memories=None if self._memories is None else self._memories(list(places), rate),
            states=None if self._states is None or not places else self._states(list(places), rate),
            quotable=self.quotable(taken) if self._quoted else None,
        )

    def of_texts(self, examples: Sequence[Example]) -> Batch:
        """A batch whose decoder reads the passages as text, each cut to the window: no slots."""
        whole = [replace(example, as_text=frozenset(range(len(example.texts)))) for example in examples]
        return self._batch([], [self._sequence(self._background(e, 1), e.targets) for e in whole], rate=1)

    def closed_book(self, examples: Sequence[Example]) -> Batch:
        """A batch whose decoder reads the questions alone."""
        shared = self._prompter.no_background()
        return self._batch([], [self._sequence(shared, e.targets, closed=True) for e in examples], rate=1)

    def selecting(self, targets: Sequence[Target], texts: Sequence[str], *, rate: int, selected: int) -> Batch:
        """A target an example, to be written from ``selected`` memories that the forward pass chooses.

        ``texts`` are encoded under gradient; none where memories are computed.
        """
        rows = [self._sequence(self._slots(selected, rate), [target]) for target in targets]
        return self._batch(texts, rows, rate)

    def apart(self, targets: Sequence[Target], *, rate: int, a_sequence: int) -> Batch:
        """Targets to be written from one memory each, ``a_sequence`` side by side behind the prompt's opening."""
        opening, whole = self._prompter.background([]), self._slots(1, rate)
        n = len(opening.ids)
        own = Prompt(whole.ids[n:], tuple(slot - n for slot in whole.slots))
        parts = [targets[i : i + a_sequence] for i in range(0, len(targets), a_sequence)]
        return self._batch([], [self._sequence(opening, part, own=own) for part in parts], rate)

    def teaching(self, examples: Sequence[Example]) -> Teaching | None:
        """The teacher's input for the examples' questions, passages as text; None without questions."""
        rows: list[int] = []
        start = 0
        for target in (target for example in examples for target in example.targets):
            end = start + self.label_count(target)
            rows.extend(range(start, end) if target.asks else ())
            start = end
        read = [asking for example in examples if (asking := example.questions()).targets]
        return Teaching(self.of_texts(read), torch.tensor(rows)) if read else None

    def quotable(self, examples: Sequence[Example]) -> Quotable:
        """The tokens that could be quoted from the examples' texts in the place of their answers'."""
        rows: list[int] = []
        allowed: list[set[int]] = []
        start = 0
        for example in examples:
            quotations = self._prompter.quotations(example.texts, refusing=True)
            for target in example.targets:
                labels = self._target(target, closed=False)[1]
                end = start + len(labels)
                alternatives = quotations.alternatives(labels, end=self._prompter.eos) if target.asks else None
                if alternatives is not None:
                    rows.extend(range(start, end))
                    allowed.extend(alternatives)
                start = end
        return Quotable(
            rows=torch.tensor(rows, dtype=torch.int64),
            places=torch.tensor([i for i, ids in enumerate(allowed) for _ in ids], dtype=torch.int64),
            ids=torch.tensor([token for ids in allowed for token in sorted(ids)], dtype=torch.int64),
        )

    def label_count(self, target: Target) -> int:
        """Labels of a target in a batch."""
        return len(self._target(target, closed=False)[1])

    def silent(self, examples: int, texts: Sequence[str], *, rate: int) -> Batch:
        """Examples without anything to write, each of weight 1."""
        batch = self._batch(texts, [_Sequence()] * examples, rate)
        return replace(batch, weights=torch.ones(examples))

    def _batch(self, texts: Sequence[str], rows: Sequence[_Sequence], rate: int) -> Batch:
        read = [self._prompter.window_ids(text, self.window_tokens) for text in texts]
        text_ids, text_mask = padded_texts(read)
        decoder_ids = padded([row.ids for row in rows], self._prompter.eos)
        length = decoder_ids.shape[1]
        labels = [label for row in rows for label in row.labels]
        index = [i * length + p for i, row in enumerate(rows) for p in row.label_positions]
        slots = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            slots[i, row.slots] = True
        return Batch(
            text_ids=text_ids,
            text_mask=text_mask,
            text_index=torch.arange(len(read)),
            decoder_ids=decoder_ids,
            slots=slots,
            segments=padded([row.segments for row in rows], -1),
            positions=padded([row.positions for row in rows], 0),
            label_index=torch.tensor(index, dtype=torch.int64),
            labels=torch.tensor(labels, dtype=torch.int64),
            weights=torch.tensor([w for row in rows for w in row.weights]),
            rate=rate,
        )

    def _background(self, example: Example, rate: int) -> Prompt:
        """An example's passages as memories or texts, cut to the window."""
        size, cut = self.window_tokens // rate, self._prompter.cut
        read = [cut(t, self.window_tokens) if i in example.as_text else size for i, t in enumerate(example.texts)]
        return self._prompter.background(read)

    def _slots(self, memories: int, rate: int) -> Prompt:
        return self._prompter.background([self.window_tokens // rate] * memories)

    def _sequence(
        self, shared: Prompt, targets: Sequence[Target], *, closed: bool = False, own: Prompt = _NO_PROMPT
    ) -> _Sequence:
        """Targets behind their shared prompt; ``own`` stands before each of them again, for it alone to see."""
        n = len(shared.ids)
        row = _Sequence(list(shared.ids), list(shared.slots), [0] * n, list(range(n)))
        for segment, target in enumerate(targets, start=1):
            instruction, reply = self._target(target, closed=closed)
            prompt = [*own.ids, *instruction]
            start = len(row.ids) + len(prompt)
            row.slots.extend(len(row.ids) + slot for slot in own.slots)
            # The end token needs no position of its own: it is a label of the last reply token.
            row.ids.extend([*prompt, *reply[:-1]])
            row.segments.extend([segment] * (len(prompt) + len(reply) - 1))
            row.positions.extend(range(n, n + len(prompt) + len(reply) - 1))
            row.label_positions.extend(range(start - 1, start - 1 + len(reply)))
            row.labels.extend(reply)
            if target.right is not None:  # the verdict alone is learnt
                row.weights.extend([*[0.0] * (len(reply) - 1), target.weight])
            else:
                row.weights.extend(target.label_weights or [target.weight] * len(reply))
        return row

    def _target(self, target: Target, *, closed: bool) -> tuple[list[int], list[int]]:
        reply = self._prompter.plain(target.reply.strip())
        whole = len(reply) < self._longest and target.ends
        if closed:
            asked = self._prompter.closed_instruction(target.instruction)
        elif target.asks:  # Apple's models have other words for it
            asked = self._prompter.question(target.instruction.removeprefix(prompts.QUESTION))
        else:
            asked = self._prompter.instruction(target.instruction)
        labels = [*reply[: self._longest], *([self._prompter.eos] * whole)]
        if target.right is not None:
            labels.append(self._prompter.verdict[0 if target.right else 1])
        return asked, labels


def decoder_attention(segments: Tensor) -> Tensor:
    """Attention mask of a decoder sequence: bool [B, 1, L, L].

    A position sees earlier positions (and itself) of the shared part and of its own target. Padding sees itself alone.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    query, key = segments[:, :, None], segments[:, None, :]
    visible = causal & ((key == 0) | (key == query)) & (query >= 0)
    return (visible | torch.eye(length, dtype=torch.bool, device=segments.device))[:, None]
