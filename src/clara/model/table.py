"""The memory table: what is trained outside the backbone, and what it makes of hidden states.

Memory tokens and the affine read-out; ``LayerMix``, what several layers and places in a span add; ``_QueryProjection``,
how a question is compared with passages. Names of values are those of a checkpoint's ``memory.safetensors``. Which text
a memory token stands for is ``spans``' matter. Knows no backbone and no adapter.
Shape letters: B batch, S text tokens (padded), N memory tokens, H hidden size, V vocabulary, L layers read, P places in
a span, R low rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from clara.config import CompressionConfig
from clara.model.spans import Spans

# Ridge of ``_whitened``; Recall@5 is flat from 0.1 to 0.5, by means and by tokens (LOG.md, 2026-11-26).
_WHITENING = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class _QueryProjection:
    """Projection of a question's memory at one rate.

    A question spreads over its memory tokens otherwise than a passage does: the cosine of the two, slot by slot,
    compares places that have nothing to do with each other (LOG.md, 2026-11-26). So a question is compared by its mean,
    or each of its memory tokens with the nearest of the passage (``similarity.late_interaction``). Passages do not
    change by it.

    Attributes:
        matrix: float32 [H, H].
        centre: float32 [H], taken off first.
        passage_centre: float32 [H], mean memory token of passages, which late interaction takes off them; None where
            questions are compared by their mean.
    """

    matrix: Tensor
    centre: Tensor
    passage_centre: Tensor | None = None

    def __call__(self, memory: Tensor) -> Tensor:
        """A question's memory [B, N, H], projected.

        Each memory token by itself for late interaction, else their mean, set at each of them.
        """
        if self.passage_centre is not None:
            return functional.linear(memory - self.centre, self.matrix)
        mean = memory.mean(dim=1) - self.centre
        return functional.linear(mean, self.matrix)[:, None].expand_as(memory)


@torch.no_grad()
def _whitened(documents: Tensor, questions: Tensor, *, late: bool) -> _QueryProjection:
    """A projection by an inverse covariance: what all passages, or all questions, share says little.

    With ``C`` the sum of the covariances of documents and questions, each divided by its mean eigenvalue, the matrix
    is ``(C + _WHITENING I)^-1``; the centres are the means. No label is read. Both are float32 [samples, H]: means of
    memories over their tokens, or for late interaction memory tokens.
    """
    ridge = _WHITENING * torch.eye(documents.shape[1], dtype=torch.float64, device=documents.device)
    common = _covariance(documents) + _covariance(questions) + ridge
    matrix, passages = torch.linalg.inv(common).float(), documents.mean(dim=0)
    return _QueryProjection(matrix, questions.mean(dim=0), passages if late else None)


def _covariance(values: Tensor) -> Tensor:
    """Covariance with a mean eigenvalue of one: [samples, H] -> float64 [H, H]; zeros where nothing varies."""
    covariance = torch.cov(values.double().T, correction=0)
    return covariance / covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).eps)


_EPS = 1e-6


class LayerMix(nn.Module):
    """The read-out of several layers: what each says of a span, and where in its span a token stands.

    A memory read from one layer keeps what that layer is about: the first spelling, the last the next token. Mixed, the
    middle ones carry most of what is asked (arXiv 2602.03784). All of it starts at zero and is added to what the memory
    table makes, so a checkpoint that gets it computes what it did before until it is trained.

    Attributes:
        maps: float32 [L, H, H] of the layers, zero at first; None with a low rank, or where no layer is read.
        down: float32 [L, R, H], random; with ``up`` the same as a product of rank R.
        up: float32 [L, H, R], zero at first.
        places: float32 [P, H, H], what a span's first, second, … token counts beside its share of the mean, zero at
            first; the last one also stands for all that follow. None unless configured.
        centre: float32 [rates, L, H], taken off the pooled states; measured, not trained.
        spread: float32 [rates, L, H], which they are divided by after it.
    """

    maps: nn.Parameter | None
    down: nn.Parameter | None
    up: nn.Parameter | None
    places: nn.Parameter | None
    centre: Tensor
    spread: Tensor

    def __init__(self, config: CompressionConfig, width: int) -> None:
        """Make what a configuration asks for (``layers``, ``layer_rank``, ``places``), without effect yet."""
        super().__init__()
        self._rates = config.rates
        layers, rank = len(config.layers), config.layer_rank
        full = torch.zeros(layers, width, width) if layers and not rank else None
        self.register_parameter("maps", None if full is None else nn.Parameter(full))
        low = layers and rank
        self.register_parameter("down", nn.Parameter(torch.zeros(layers, rank, width)) if low else None)
        self.register_parameter("up", nn.Parameter(torch.zeros(layers, width, rank)) if low else None)
        own = nn.Parameter(torch.zeros(config.places, width, width)) if config.places else None
        self.register_parameter("places", own)
        self.register_buffer("centre", torch.zeros(len(self._rates), layers, width))
        self.register_buffer("spread", torch.ones(len(self._rates), layers, width))

    @torch.no_grad()
    def initialise(self, *, seed: int) -> None:
        """Random directions for a low rank; ``up`` stays zero."""
        if self.down is not None:
            noise = torch.randn(self.down.shape, generator=torch.Generator().manual_seed(seed))
            self.down.copy_(noise / self.down.shape[2] ** 0.5)

    @torch.no_grad()
    def calibrate(self, pooled: Tensor, *, rate: int) -> None:
        """Give every dimension of every layer a mean of zero and a spread of one, by ``pooled`` [samples, L, H]."""
        row = self._rates.index(rate)
        self.centre[row] = pooled.mean(dim=0)
        self.spread[row] = pooled.std(dim=0).clamp(min=torch.finfo(torch.float32).eps)

    @staticmethod
    def pooled(states: Tensor, spans: Spans) -> Tensor:
        """Span means of several layers' states [L, B, S, H], each token at root mean square one before: [B, N, L, H].

        Without that the first tokens of a text, whose states are hundreds of times larger in the middle layers, would
        be all that a mean says.
        """
        states = states.float()
        level = states * torch.rsqrt(states.square().mean(dim=-1, keepdim=True) + _EPS)
        return torch.einsum("bns,lbsh->bnlh", spans.weights, level)

    def forward(self, pooled: Tensor, *, rate: int) -> Tensor:
        """The layers' part of a memory: [B, N, L, H] -> float32 [B, N, H]."""
        row = self._rates.index(rate)
        level = (pooled - self.centre[row]) / self.spread[row]
        if self.maps is not None:
            return torch.einsum("bnlh,lkh->bnk", level, self.maps)
        assert self.down is not None and self.up is not None  # noqa: S101, PT018 - one of the two there is
        return torch.einsum("bnlr,lkr->bnk", torch.einsum("bnlh,lrh->bnlr", level, self.down), self.up)

    def by_place(self, spans: Spans, embeds: Tensor) -> Tensor:
        """Correction by places in a span to the mean of its token embeddings [B, S, H]: float32 [B, N, H]."""
        assert self.places is not None  # noqa: S101 - asked for where there are some
        member, weights = spans.member, spans.weights
        place = (member.long().cumsum(dim=2) - 1).clamp(max=len(self.places) - 1)
        added = embeds.new_zeros(*weights.shape[:2], embeds.shape[2], dtype=torch.float32)
        for number, matrix in enumerate(self.places):
            share = weights * (member & (place == number))
            added = added + torch.bmm(share, embeds.float()) @ matrix.T
        return added


_READ_SHARE = 0.1
"""Share of the memory's spread that the read-out starts with beside a residual; measured in LOG.md, 2026-11-23."""

_AFFINE = ("gain", "residual_gain", "bias")


@dataclass(frozen=True, slots=True, eq=False)
class _AffineReadOut:
    """``gain * read + residual_gain * residual + bias`` at one rate, each per dimension: float32 [H].

    Hidden states after the final norm have a few dimensions tens of times larger than a token embedding's, and a
    generator that meets them unscaled forgets how to write (LOG.md, 2026-11-23).
    """

    gain: Tensor
    bias: Tensor
    residual_gain: Tensor | None = None

    def __call__(self, read: Tensor, residual: Tensor) -> Tensor:
        """Memory [B, N, H] from its parts; arguments as ``MemoryTable.assemble``."""
        memory = read * self.gain + self.bias
        return memory if self.residual_gain is None else memory + residual * self.residual_gain


@torch.no_grad()
def _calibrated(embeddings: Tensor, read: Tensor, residual: Tensor | None) -> _AffineReadOut:
    """An affine read-out that a generator already understands.

    Per dimension, memories get the mean and the spread of token embeddings [V, H]: the residual, float32 [samples, H],
    carries the spread, the read-out of an untrained compressor, of the same spans and shape, starts at ``_READ_SHARE``
    of it and grows as training finds it useful.
    """
    spread, bias = _spread(embeddings.float()), embeddings.float().mean(dim=0)
    if residual is None:
        gain, residual_gain = spread / _spread(read), None
    else:
        gain, residual_gain = _READ_SHARE * spread / _spread(read), spread / _spread(residual)
        bias = bias - residual_gain * residual.mean(dim=0)
    return _AffineReadOut(gain, bias - gain * read.mean(dim=0), residual_gain)


def _spread(values: Tensor) -> Tensor:
    """Standard deviation of each dimension: [samples, H] -> [H], never zero."""
    return values.std(dim=0).clamp(min=torch.finfo(torch.float32).eps)


class MemoryTable(nn.Module):
    """The values of a network that are not the backbone's; their names are those of ``memory.safetensors``.

    Attributes:
        tokens: float32 [N at the smallest rate, H]; a higher rate uses the first rows. None for ``mean_pool``.
        gain: float32 [rates, H], of ``_AffineReadOut``; None unless configured.
        residual_gain: float32 [rates, H]; None unless gain and residual are configured.
        bias: float32 [rates, H]; None unless gain is configured.
        query_gain: with ``query_residual_gain`` and ``query_bias`` the same for questions; None while they share the
            passages' read-out.
        query_projection: float32 [rates, H, H], matrices of ``_QueryProjection``; None while questions are compared
            span by span, as passages are.
        query_centre: float32 [rates, H], of ``_QueryProjection``; None without ``query_projection``.
        query_passage_centre: float32 [rates, H], of ``_QueryProjection``, not trained; None unless questions are
            compared by late interaction.
        information: float32 [V], of each token of the vocabulary, counted and not trained; None unless spans are cut
            by it.
        mix: what layers and places in a span add; None unless configured.
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
        """Make the table that a configuration asks for; V counts where spans are cut by information."""
        super().__init__()
        self.config, self._width = config, width
        n, rates = config.window_tokens // min(config.rates), len(config.rates)
        tokens = nn.Parameter(torch.zeros(n, width)) if config.read_out == "memory_tokens" else None
        self.register_parameter("tokens", tokens)
        self.register_parameter("gain", nn.Parameter(torch.ones(rates, width)) if config.gain else None)
        scaled = config.gain and config.residual
        self.register_parameter("residual_gain", nn.Parameter(torch.ones(rates, width)) if scaled else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(rates, width)) if config.gain else None)
        self.register_buffer("information", torch.ones(vocabulary) if config.spans == "information" else None)
        self.mix = LayerMix(config, width) if config.mixes else None
        self.share_query_read_out()
        self.project_queries(projected=False)

    # Memory tokens and their spans

    @torch.no_grad()
    def initialise(self, embeddings: Tensor, *, seed: int = 0) -> None:
        """Fresh memory tokens and maps: noise with the root mean square of the token embeddings [V, H].

        A tenth of it where a pooled input is added: that input already tells the tokens apart.
        """
        if self.tokens is not None:
            rms = float(embeddings.float().pow(2).mean().sqrt())
            noise = torch.randn(self.tokens.shape, generator=torch.Generator().manual_seed(seed))
            self.tokens.copy_(noise * rms * (0.1 if self.config.pooled_input else 1.0))
        if self.mix is not None:
            self.mix.initialise(seed=seed)

    def count(self, texts: Iterable[Sequence[int]], vocabulary: int) -> None:
        """Cut spans by information from now on: minus the logarithm of each token's frequency in texts, in nats.

        Texts are token ids, like those to come, the more the better; ``vocabulary`` is V, rows of the token embeddings.
        The table lies on the CPU until it is moved.
        """
        counts = torch.ones(vocabulary, dtype=torch.float64)  # a token that was not seen is not impossible
        for ids in texts:
            counts += torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=vocabulary)
        self.register_buffer("information", (counts.sum() / counts).log().float())

    def spans(self, ids: Tensor, mask: Tensor, *, rate: int) -> Spans:
        """Which text each memory token stands for: ids int64 [B, S], padded on the right, and mask bool [B, S]."""
        n = self.config.memory_tokens(rate)
        if self.information is None:
            return Spans.equal(mask, n)
        return Spans.by_information(self.information[ids], mask, n)

    def question_weights(self, ids: Tensor, mask: Tensor, *, rate: int) -> Tensor | None:
        """``Spans.information_weights`` of questions; arguments as ``spans``.

        None where no information is known, or questions are not compared token by token.
        """
        if self.information is None or not self.late:
            return None
        return self.spans(ids, mask, rate=rate).information_weights(self.information[ids])

    # Read-out

    def residual(self, spans: Spans, embeds: Tensor) -> Tensor:
        """Token embeddings [B, S, H] of each span as one: their mean, with what their places add: float32 [B, N, H]."""
        mean = spans.pool(embeds.float())
        if self.mix is None or self.mix.places is None:
            return mean
        return mean + self.mix.by_place(spans, embeds)

    def assemble(
        self, read: Tensor, residual: Tensor, layers: Tensor | None = None, *, rate: int, query: bool = False
    ) -> Tensor:
        """Memory from its parts: float32 [B, N, H].

        Args:
            read: float32 [B, N, H], the read-out of the last hidden states.
            residual: float32 [B, N, H], of the spans' token embeddings.
            layers: float32 [B, N, L, H], pooled states of the layers that are mixed in; None where none are.
            rate: one of ``config.rates``.
            query: whether it is a question's.
        """
        row = self.config.rates.index(rate)
        memory = read + residual if self.config.residual else read
        if (affine := self._affine(row, query=query)) is not None:
            memory = affine(read, residual)
        if layers is not None and self.mix is not None:
            memory = memory + self.mix(layers, rate=rate)
        projection = self._projection(row) if query else None
        return memory if projection is None else projection(memory)

    def _affine(self, row: int, *, query: bool) -> _AffineReadOut | None:
        gain, residual_gain, bias = self.gain, self.residual_gain, self.bias
        if query and self.query_gain is not None:
            gain, residual_gain, bias = self.query_gain, self.query_residual_gain, self.query_bias
        if gain is None or bias is None:
            return None
        return _AffineReadOut(gain[row], bias[row], None if residual_gain is None else residual_gain[row])

    @torch.no_grad()
    def calibrate(self, embeddings: Tensor, read: Tensor, residual: Tensor, *, rate: int) -> None:
        """Start the affine read-out at one rate (``_calibrated``); nothing without ``gain``."""
        if self.gain is None or self.bias is None:
            return
        row = self.config.rates.index(rate)
        found = _calibrated(embeddings, read, None if self.residual_gain is None else residual)
        self.gain[row], self.bias[row] = found.gain, found.bias
        if self.config.read_out == "layers":  # nothing is read that it could be multiplied by
            self.gain[row] = 0
        if self.residual_gain is not None and found.residual_gain is not None:
            self.residual_gain[row] = found.residual_gain

    def read_out(self) -> list[nn.Parameter]:
        """Parameters of the passages' read-out: gains, bias, mix."""
        return [*self._present(_AFFINE), *(self.mix.parameters() if self.mix is not None else ())]

    # Questions

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
        """Compare questions with passages through a ``_QueryProjection``, which starts at the identity, or as they are.

        ``late``: token by token instead of by their mean.
        """
        rates, width = len(self.config.rates), self._width
        projection = torch.eye(width).repeat(rates, 1, 1) if projected else None
        centre = torch.zeros(rates, width) if projected else None
        self.register_parameter("query_projection", None if projection is None else nn.Parameter(projection))
        self.register_parameter("query_centre", None if centre is None else nn.Parameter(centre))
        self.register_buffer("query_passage_centre", torch.zeros(rates, width) if projected and late else None)

    @torch.no_grad()
    def whiten_queries(self, documents: Tensor, questions: Tensor, *, rate: int) -> None:
        """Start the projection at one rate (``_whitened``); nothing without one."""
        if self.query_projection is None or self.query_centre is None:
            return
        row = self.config.rates.index(rate)
        found = _whitened(documents, questions, late=self.late)
        self.query_projection[row], self.query_centre[row] = found.matrix, found.centre
        if self.query_passage_centre is not None and found.passage_centre is not None:
            self.query_passage_centre[row] = found.passage_centre

    @property
    def late(self) -> bool:
        """True if questions are compared by late interaction."""
        return self.query_passage_centre is not None

    def passage_centre(self, rate: int) -> Tensor | None:
        """Centre that late interaction subtracts from passages at a rate, float32 [H]; None without it."""
        centres = self.query_passage_centre
        return None if centres is None else centres[self.config.rates.index(rate)]

    def _projection(self, row: int) -> _QueryProjection | None:
        if self.query_projection is None or self.query_centre is None:
            return None
        centres = self.query_passage_centre
        return _QueryProjection(
            self.query_projection[row], self.query_centre[row], None if centres is None else centres[row]
        )

    def read_out_of_queries(self) -> list[nn.Parameter]:
        """The affine read-out that questions do not share with passages; empty while they do."""
        return self._present([f"query_{name}" for name in _AFFINE])

    def projection_of_queries(self) -> list[nn.Parameter]:
        """Centre and matrix of questions that are compared by their mean; empty while they are not."""
        return self._present(["query_projection", "query_centre"])

    def _present(self, names: Sequence[str]) -> list[nn.Parameter]:
        return [parameter for parameter in (getattr(self, name) for name in names) if parameter is not None]
