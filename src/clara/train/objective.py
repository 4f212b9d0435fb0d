"""The losses of writing targets, from memories of passages or from their text (clara.md sections 3 to 5)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from clara.model.decoder import AdapterName, Decoder, splice
from clara.model.losses import memory_mse, quoted_cross_entropy, token_cross_entropy, token_kl
from clara.model.network import Network, ReadOut
from clara.train.batch import Batch, Quotable, Teaching, decoder_attention


@dataclass(frozen=True, slots=True)
class Losses:
    """The parts of a training loss, each a scalar: CE in nats a label token, the MSE term before its weight."""

    total: Tensor
    cross_entropy: Tensor
    mse: Tensor


def generation_loss(
    network: Network, batch: Batch, *, mse_weight: float, kl_weight: float = 0.0, quoted_weight: float = 0.0
) -> Losses:
    """CE of the targets given the memories of the batch's texts, plus the MSE term; other terms as ``reply_losses``.

    Precomputed memories have no MSE term.
    """
    memories, read_out = _memories(network, batch)
    return reply_losses(
        network,
        batch,
        memories.index_select(0, batch.text_index).flatten(0, 1),
        read_out=read_out,
        mse_weight=mse_weight,
        kl_weight=kl_weight,
        quoted_weight=quoted_weight,
    )


def reply_losses(
    decoder: Decoder,
    batch: Batch,
    memories: Tensor | None,
    *,
    read_out: ReadOut | None = None,
    mse_weight: float = 0.0,
    kl_weight: float = 0.0,
    quoted_weight: float = 0.0,
) -> Losses:
    """CE of the targets, plus the terms that have a weight. The LM head runs on label positions only.

    ``memories``, [sum of slots, H], are the vectors for the batch's slots; ``read_out`` is their source, for the MSE
    term (``mse_weight`` is lambda). ``kl_weight`` is of KL(teacher || student), where a teacher reads along,
    ``quoted_weight`` of the CE among quotable tokens, where the batch has them.
    """
    logits = reply_logits(decoder, batch, memories)
    cross_entropy = token_cross_entropy(logits, batch.labels, batch.weights) * batch.label_share
    mse = torch.zeros_like(cross_entropy) if read_out is None else _means_apart(read_out, batch)
    total = cross_entropy + mse_weight * mse
    if batch.teaching is not None and kl_weight:
        total = total + kl_weight * _teacher_distance(decoder, batch, batch.teaching, logits)
    if batch.quotable is not None and quoted_weight:
        total = total + quoted_weight * _quoted_loss(batch, batch.quotable, logits)
    return Losses(total=total, cross_entropy=cross_entropy, mse=mse)


def passage_memories(network: Network, batch: Batch) -> Tensor:
    """Memories of the batch's passages, [D, N, H]: precomputed, or under gradient where texts are given."""
    return _memories(network, batch)[0]


def _memories(network: Network, batch: Batch) -> tuple[Tensor, ReadOut | None]:
    """``passage_memories`` with the read-out of texts that were encoded now."""
    if not len(batch.text_ids):
        if batch.memories is not None:
            return batch.memories, None
        embeds = network.embed(batch.decoder_ids[:1, :1])  # all passages are read as text
        return embeds.new_empty(0, network.table.config.memory_tokens(batch.rate), embeds.shape[2]), None
    if batch.states is not None:
        return network.assembled(batch.states, batch.text_ids, batch.text_mask, rate=batch.rate), None
    encoded = network.encode("compressor", batch.text_ids, batch.text_mask, rate=batch.rate)
    return encoded.memory, encoded.read_out


def _means_apart(read_out: ReadOut, batch: Batch) -> Tensor:
    # A text that several examples share is encoded once and counts for each of them, however the batch is cut.
    states, memories = read_out.text_mean, read_out.read.mean(dim=1)
    mse = memory_mse(states.index_select(0, batch.text_index), memories.index_select(0, batch.text_index))
    return mse * batch.text_share


def _quoted_loss(batch: Batch, quotable: Quotable, logits: Tensor) -> Tensor:
    """Mean over all label tokens of the CE among quotable tokens, given logits [T, V]; other labels count as 0."""
    rows = quotable.rows
    labels, weights = batch.labels.index_select(0, rows), batch.weights.index_select(0, rows)
    summed = quoted_cross_entropy(logits.index_select(0, rows), labels, quotable.places, quotable.ids, weights)
    return summed / batch.weights.sum() * batch.label_share


def _teacher_distance(decoder: Decoder, batch: Batch, teaching: Teaching, logits: Tensor) -> Tensor:
    """Mean over all label tokens of KL(teacher || student); tokens without a teacher count as 0."""
    rows = teaching.rows
    with torch.no_grad():
        taught = reply_logits(decoder, teaching.sequences, None, role="teacher")
    summed = token_kl(taught, logits.index_select(0, rows), batch.weights.index_select(0, rows))
    return summed / batch.weights.sum() * batch.label_share


def reply_logits(
    decoder: Decoder, batch: Batch, memories: Tensor | None, *, role: AdapterName | None = "generator"
) -> Tensor:
    """Logits at the label positions of a batch, [T, V], read by ``role``; memories as in ``reply_losses``."""
    embeds = decoder.embed(batch.decoder_ids)
    if memories is not None:
        embeds = splice(embeds, batch.slots, memories)
    hidden = decoder.decode(embeds, decoder_attention(batch.segments), batch.positions, role=role)
    states = hidden.reshape(-1, hidden.shape[-1])[batch.label_index]
    with torch.autocast(states.device.type, enabled=False):
        return decoder.logits(states)


@contextmanager
def evaluating(network: Decoder) -> Iterator[None]:
    """Evaluation mode without gradients for a moment of training."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
