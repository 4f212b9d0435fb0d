"""The memory bricks: which text a memory token stands for, what it sees, where it sits, how it is read out.

Pure tensor functions and the small table of trained vectors. Knows no backbone and no adapter.
Shape letters: B batch, S text tokens (padded), N memory tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from clara.config import CompressionConfig


def right_padded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same texts with all padding on the right.

    Args:
        ids: int64 [B, S].
        mask: bool [B, S], true on text.
    """
    if bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return ids, mask
    order = mask.logical_not().long().argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


@dataclass(frozen=True, slots=True)
class Spans:
    """Which text tokens each memory token stands for.

    Attributes:
        member: bool [B, N, S]; a text token may belong to two spans when there are fewer tokens than spans.
        weights: float32 [B, N, S]; rows that sum to one (to zero for an empty text): a mean over the span.
        centre: float32 [B, N]; middle of the span as a position in the unpadded text.
    """

    member: Tensor
    weights: Tensor
    centre: Tensor


def text_positions(mask: Tensor) -> Tensor:
    """Position of each text token in the unpadded text: int64 [B, S], 0 on padding, for any side of padding.

    Args:
        mask: bool [B, S], true on text.
    """
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def equal_spans(mask: Tensor, n: int) -> Spans:
    """Cut each text into ``n`` spans of equal length, up to rounding.

    Span i of a text of length L covers tokens floor(i L / n) .. floor((i + 1) L / n), and at least one token, so a
    text shorter than ``n`` repeats tokens instead of leaving spans empty.

    Args:
        mask: bool [B, S], true on text.
        n: spans a text.
    """
    return _spans(_equal_cuts(mask, n), mask)


def information_spans(information: Tensor, mask: Tensor, n: int) -> Spans:
    """Cut each text into ``n`` spans that carry about the same information.

    From one span a token, the two neighbours that carry least together are merged until ``n`` are left, the first pair
    of equals first. A text of at most ``n`` tokens has nothing to merge and is cut as ``equal_spans`` does.

    Args:
        information: float32 [B, S], of each token, in any unit.
        mask: bool [B, S], true on text, padding on the right.
        n: spans a text.
    """
    cuts = _equal_cuts(mask, n)
    values = information.cpu().double().numpy()
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        if length > n:
            starts = torch.tensor(_merged(values[row, :length], n), device=mask.device)
            cuts.starts[row], cuts.ends[row, :-1], cuts.ends[row, -1] = starts, starts[1:], length
    return _spans(cuts, mask)


def _merged(information: npt.NDArray[np.float64], n: int) -> list[int]:
    """Where the spans of ``information_spans`` begin."""
    starts, sums = list(range(len(information))), information
    while len(starts) > n:
        first = int(np.argmin(sums[:-1] + sums[1:]))
        both = sums[first] + sums[first + 1]
        sums = np.delete(sums, first + 1)
        sums[first] = both
        del starts[first + 1]
    return starts


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Where spans begin and end, as positions in the unpadded text.

    Attributes:
        starts: int64 [B, N], first tokens.
        ends: int64 [B, N], tokens after the last.
    """

    starts: Tensor
    ends: Tensor


def _equal_cuts(mask: Tensor, n: int) -> _Cuts:
    """Those of ``equal_spans``."""
    lengths = mask.sum(dim=1)[:, None]  # [B, 1]
    slots = torch.arange(n, device=mask.device)[None, :]
    starts = slots * lengths // n
    return _Cuts(starts, torch.maximum((slots + 1) * lengths // n, starts + 1))


def _spans(cuts: _Cuts, mask: Tensor) -> Spans:
    """Spans that are cut so."""
    starts, ends = cuts.starts, cuts.ends
    positions = text_positions(mask)[:, None, :]
    member = (positions >= starts[:, :, None]) & (positions < ends[:, :, None]) & mask[:, None, :]
    weights = member.float()
    weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1)
    return Spans(member=member, weights=weights, centre=(starts + ends - 1).float() / 2)


def pool(weights: Tensor, values: Tensor) -> Tensor:
    """Span means: [B, N, S] x [B, S, H] -> [B, N, H] in the dtype of ``values``."""
    return torch.bmm(weights.to(values.dtype), values)


def memory_positions(spans: Spans, mask: Tensor, positions: str) -> Tensor:
    """Position ids of the memory tokens: int64 [B, N].

    ``appended`` continues after the text; ``spread`` puts each at the middle of its span (arXiv 2409.14364).
    """
    if positions == "spread":
        return spans.centre.long()
    n = spans.member.shape[1]
    return mask.sum(dim=1)[:, None] + torch.arange(n, device=mask.device)[None, :]


def memory_attention(spans: Spans, mask: Tensor, attention: str) -> Tensor:
    """What memory tokens see of ``[text, memory tokens]``: bool [B, 1, N, S + N], true where one may look.

    The whole text and the memory tokens up to themselves (``full``), or their span and themselves (``span``).
    """
    b, n, _ = spans.member.shape
    own = torch.eye(n, dtype=torch.bool, device=mask.device)
    if attention == "span":
        text = spans.member
    else:
        text, own = mask[:, None, :].expand(-1, n, -1), torch.ones_like(own).tril()
    return torch.cat([text, own.expand(b, -1, -1)], dim=2)[:, None]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean attention mask as numbers to add to scores: 0 where true, the lowest number where false.

    Every attention implementation of transformers takes this form; some do not take booleans.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


class MemoryTable(nn.Module):
    """The trained vectors outside the backbone: memory-token embeddings, and the affine read-out if configured.

    With ``gain`` a memory is ``gain * read + residual_gain * residual + bias``, each per dimension and per rate:
    hidden states after the final norm have a few dimensions tens of times larger than a token embedding's, and a
    generator that meets them unscaled forgets how to write (LOG.md, 2026-11-23).

    Attributes:
        tokens: float32 [N at the smallest rate, H]; a higher rate uses the first rows. None for ``mean_pool``.
        gain: float32 [rates, H]; None unless configured.
        residual_gain: float32 [rates, H]; None unless gain and residual are configured.
        bias: float32 [rates, H]; None unless gain is configured.
        query_gain: as ``gain``, for questions; None while they share the passages' read-out.
        query_residual_gain: as ``residual_gain``, for questions.
        query_bias: as ``bias``, for questions.
        query_projection: float32 [rates, H, H], applied to the mean of a question's memory, or to each of its memory
            tokens for late interaction; None while questions are compared span by span, as passages are.
        query_centre: float32 [rates, H], taken off first; None without ``query_projection``.
        query_passage_centre: float32 [rates, H], mean memory token of passages, which late interaction takes off
            them; not trained. None unless questions are compared by late interaction.
        information: float32 [V], of each token of the vocabulary, counted and not trained; None unless spans are cut
            by it.
    """

    tokens: nn.Parameter | None
    gain: nn.Parameter | None
    residual_gain: nn.Parameter | None
    bias: nn.Parameter | None
    query_gain: nn.Parameter | None
    query_residual_gain: nn.Parameter | None
    query_bias: nn.Parameter | None
    query_projection: nn.Parameter | None
    query_centre: nn.Parameter | None
    query_passage_centre: Tensor | None
    information: Tensor | None

    def __init__(self, config: CompressionConfig, width: int, vocabulary: int = 0) -> None:
        """Make the table that a configuration asks for.

        Args:
            config: read-out, rates and spans.
            width: H of the backbone.
            vocabulary: rows of its token embeddings; counts where spans are cut by information.
        """
        super().__init__()
        self._config, self._width = config, width
        n, rates = config.window_tokens // min(config.rates), len(config.rates)
        tokens = nn.Parameter(torch.zeros(n, width)) if config.read_out == "memory_tokens" else None
        self.register_parameter("tokens", tokens)
        self.register_parameter("gain", nn.Parameter(torch.ones(rates, width)) if config.gain else None)
        scaled = config.gain and config.residual
        self.register_parameter("residual_gain", nn.Parameter(torch.ones(rates, width)) if scaled else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(rates, width)) if config.gain else None)
        self.register_buffer("information", torch.ones(vocabulary) if config.spans == "information" else None)
        self.share_query_read_out()
        self.project_queries(projected=False)

    def spans(self, ids: Tensor, mask: Tensor, *, rate: int) -> Spans:
        """Which text each memory token stands for.

        Args:
            ids: int64 [B, S] token ids, padded on the right.
            mask: bool [B, S], true on text.
            rate: one of ``config.rates``.
        """
        n = self._config.memory_tokens(rate)
        return equal_spans(mask, n) if self.information is None else information_spans(self.information[ids], mask, n)

    def question_weights(self, ids: Tensor, mask: Tensor, *, rate: int) -> Tensor | None:
        """How much each memory token of a question counts in late interaction: float32 [B, N], a mean of one.

        The squared information of the text tokens that it stands for; several memory tokens share that of one text
        token. Names then say more than "in what year" (LOG.md, 2026-11-26): words that weigh on both sides are what
        tf-idf compares by, too.

        Args:
            ids: int64 [B, S] token ids, padded on the right.
            mask: bool [B, S], true on text.
            rate: one of ``config.rates``.

        Returns:
            None where no information is known, or questions are not compared token by token.
        """
        if self.information is None or not self.late:
            return None
        member = self.spans(ids, mask, rate=rate).member.float()
        shares = member / member.sum(dim=1, keepdim=True).clamp(min=1)
        weights = torch.einsum("bns,bs->bn", shares, self.information[ids].square())
        return weights / weights.mean(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    def count(self, texts: Iterable[Sequence[int]], vocabulary: int) -> None:
        """Cut spans by information from now on: minus the logarithm of a token's frequency, in nats.

        What is counted lies on the CPU until the table is moved.

        Args:
            texts: token ids of texts like those to come, the more the better.
            vocabulary: rows of the backbone's token embeddings.
        """
        counts = torch.ones(vocabulary, dtype=torch.float64)  # a token that was not seen is not impossible
        for ids in texts:
            counts += torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=vocabulary)
        self.register_buffer("information", (counts.sum() / counts).log().float())

    def split_query_read_out(self) -> None:
        """Give questions an affine read-out of their own, a copy of the passages'; nothing without ``gain``.

        In a calibrated read-out the residual carries most of a memory, so whatever the query reasoner learns moves a
        question's memory by a tenth only (LOG.md, 2026-11-24), unless it can weigh the two anew. Passages' memories do
        not change by it.
        """
        for name in _AFFINE:
            own = getattr(self, name)
            if own is not None:
                self.register_parameter(f"query_{name}", nn.Parameter(own.detach().clone()))

    def share_query_read_out(self) -> None:
        """Let questions go through the passages' read-out."""
        for name in _AFFINE:
            self.register_parameter(f"query_{name}", None)

    def project_queries(self, *, projected: bool, late: bool = False) -> None:
        """Compare questions with passages through a matrix of their own, which starts at the identity.

        A question spreads over its memory tokens otherwise than a passage does: the cosine of the two, slot by slot,
        compares places that have nothing to do with each other (LOG.md, 2026-11-26). So a question is compared by its
        mean, or each of its memory tokens with the nearest of the passage. Passages do not change by it.

        Args:
            projected: whether there is a matrix; without one questions are compared as they are.
            late: token by token (``similarity.late_interaction``) instead of by their mean.
        """
        rates, width = len(self._config.rates), self._width
        projection = torch.eye(width).repeat(rates, 1, 1) if projected else None
        centre = torch.zeros(rates, width) if projected else None
        self.register_parameter("query_projection", None if projection is None else nn.Parameter(projection))
        self.register_parameter("query_centre", None if centre is None else nn.Parameter(centre))
        self.register_buffer("query_passage_centre", torch.zeros(rates, width) if projected and late else None)

    @property
    def late(self) -> bool:
        """Whether questions are compared by late interaction."""
        return self.query_passage_centre is not None

    def passage_centre(self, rate: int) -> Tensor | None:
        """What late interaction takes off passages at a rate, float32 [H]; None without it."""
        centres = self.query_passage_centre
        return None if centres is None else centres[self._config.rates.index(rate)]

    @torch.no_grad()
    def whiten_queries(self, documents: Tensor, questions: Tensor, *, rate: int) -> None:
        """Start the projection at an inverse covariance: what all passages, or all questions, share says little.

        With ``C`` the sum of the covariances of documents and questions, each divided by its mean eigenvalue, the
        projection is ``(C + WHITENING I)^-1``; the centres are the means. No label is read.

        Args:
            documents: float32 [samples, H], means of document memories over their tokens; for late interaction, memory
                tokens.
            questions: float32 [samples, H], the same of questions.
            rate: the rate of both.
        """
        if self.query_projection is None or self.query_centre is None:
            return
        row = self._config.rates.index(rate)
        ridge = WHITENING * torch.eye(documents.shape[1], dtype=torch.float64, device=documents.device)
        common = _covariance(documents) + _covariance(questions) + ridge
        self.query_projection[row] = torch.linalg.inv(common).float()
        self.query_centre[row] = questions.mean(dim=0)
        if self.query_passage_centre is not None:
            self.query_passage_centre[row] = documents.mean(dim=0)

    def read_out_of_queries(self) -> list[nn.Parameter]:
        """The affine read-out that questions do not share with passages; empty while they do."""
        return self._present([f"query_{name}" for name in _AFFINE])

    def projection_of_queries(self) -> list[nn.Parameter]:
        """Centre and matrix of questions that are compared by their mean; empty while they are not."""
        return self._present(["query_projection", "query_centre"])

    def _present(self, names: Sequence[str]) -> list[nn.Parameter]:
        return [parameter for parameter in (getattr(self, name) for name in names) if parameter is not None]

    def assemble(self, read: Tensor, residual: Tensor, *, rate: int, query: bool = False) -> Tensor:
        """Memory from its parts: float32 [B, N, H].

        Args:
            read: float32 [B, N, H], the read-out of the last hidden states.
            residual: float32 [B, N, H], mean token embeddings of the spans.
            rate: one of ``config.rates``.
            query: whether it is a question's.
        """
        gain, residual_gain, bias = self.gain, self.residual_gain, self.bias
        if query and self.query_gain is not None:
            gain, residual_gain, bias = self.query_gain, self.query_residual_gain, self.query_bias
        row = self._config.rates.index(rate)
        if gain is None or bias is None:
            memory = read + residual if self._config.residual else read
        else:
            memory = read * gain[row] + bias[row]
            memory = memory if residual_gain is None else memory + residual * residual_gain[row]
        return self._projected(memory, row) if query else memory

    def _projected(self, memory: Tensor, row: int) -> Tensor:
        """A question's memory [B, N, H] through the projection, where there is one.

        Its projected mean at each of its memory tokens, or each token's own projection for late interaction.
        """
        if self.query_projection is None or self.query_centre is None:
            return memory
        if self.late:
            return functional.linear(memory - self.query_centre[row], self.query_projection[row])
        mean = memory.mean(dim=1) - self.query_centre[row]
        return functional.linear(mean, self.query_projection[row])[:, None].expand_as(memory)

    @torch.no_grad()
    def initialise(self, embeddings: Tensor, *, seed: int = 0) -> None:
        """Fresh memory tokens: noise with the root mean square of the token embeddings [V, H].

        A tenth of it where a pooled input is added: that input already tells the tokens apart.
        """
        if self.tokens is not None:
            rms = float(embeddings.float().pow(2).mean().sqrt())
            noise = torch.randn(self.tokens.shape, generator=torch.Generator().manual_seed(seed))
            self.tokens.copy_(noise * rms * (0.1 if self._config.pooled_input else 1.0))

    @torch.no_grad()
    def calibrate(self, embeddings: Tensor, read: Tensor, residual: Tensor, *, rate: int) -> None:
        """Start the affine read-out where the generator already understands it; nothing without ``gain``.

        Per dimension, memories get the mean and the spread of token embeddings: the residual carries the spread, the
        read-out starts at ``READ_SHARE`` of it and grows as training finds it useful.

        Args:
            embeddings: [V, H] token embeddings.
            read: float32 [samples, H] read-outs of an untrained compressor.
            residual: float32 [samples, H] residuals of the same spans.
            rate: the rate they were made at.
        """
        if self.gain is None or self.bias is None:
            return
        row = self._config.rates.index(rate)
        spread, share = _spread(embeddings.float()), 1.0
        self.bias[row] = embeddings.float().mean(dim=0)
        if self.residual_gain is not None:
            share = READ_SHARE
            self.residual_gain[row] = spread / _spread(residual)
            self.bias[row] -= self.residual_gain[row] * residual.mean(dim=0)
        self.gain[row] = share * spread / _spread(read)
        self.bias[row] -= self.gain[row] * read.mean(dim=0)


_AFFINE = ("gain", "residual_gain", "bias")

READ_SHARE = 0.1
"""Share of the memory's spread that the read-out starts with beside a residual; measured in LOG.md, 2026-11-23."""


WHITENING = 0.3
"""Ridge of ``whiten_queries``; Recall@5 is flat from 0.1 to 0.5, by means and by tokens (LOG.md, 2026-11-26)."""


def _spread(values: Tensor) -> Tensor:
    """Standard deviation of each dimension: [samples, H] -> [H], never zero."""
    return values.std(dim=0).clamp(min=torch.finfo(torch.float32).eps)


def _covariance(values: Tensor) -> Tensor:
    """Covariance with a mean eigenvalue of one: [samples, H] -> float64 [H, H]; zeros where nothing varies."""
    covariance = torch.cov(values.double().T, correction=0)
    return covariance / covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).eps)
