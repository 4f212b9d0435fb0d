"""The loss of stages ``scp`` and ``instruct``: write the targets from the memories (clara.md sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from clara.model.decoder import AdapterName, Decoder, splice
from clara.model.losses import memory_mse, quoted_cross_entropy, token_cross_entropy, token_kl
from clara.model.network import Network, ReadOut
from clara.train.batch import Batch, decoder_attention


@dataclass(frozen=True, slots=True)
class Losses:
    """The parts of a training loss, each a scalar tensor.

    Attributes:
        total: what is minimised.
        cross_entropy: nats a label token.
        mse: the MSE term, before its weight.
    """

    total: Tensor
    cross_entropy: Tensor
    mse: Tensor


def generation_loss(
    network: Network, batch: Batch, *, mse_weight: float, kl_weight: float = 0.0, quoted_weight: float = 0.0
) -> Losses:
    """CE of the targets given the memories, plus the MSE term, plus what the batch has of the next two.

    With a teacher the KL term, with quotations the CE among them. Memories that are computed before have no MSE term.
    The LM head runs on label positions only.

    Args:
        network: with gradients where the stage wants them.
        batch: texts and decoder sequences.
        mse_weight: lambda.
        kl_weight: of the KL term (``teacher``).
        quoted_weight: of the CE among quotations.
    """
    memories, read = batch.memories, None
    if memories is None and not len(batch.text_ids):
        memories = no_memories(network, batch)
    if memories is None and batch.states is not None:
        memories = network.assembled(batch.states, batch.text_ids, batch.text_mask, rate=batch.rate)
    if memories is None:
        encoded = network.encode("compressor", batch.text_ids, batch.text_mask, rate=batch.rate)
        memories, read = encoded.memory, encoded.read_out
    logits = reply_logits(network, batch, memories.index_select(0, batch.text_index).flatten(0, 1))
    cross_entropy = token_cross_entropy(logits, batch.labels, batch.weights) * batch.label_share
    mse = torch.zeros_like(cross_entropy) if read is None else _means_apart(read, batch)
    total = cross_entropy + mse_weight * mse
    if batch.teaching is not None and kl_weight:
        total = total + kl_weight * teacher_distance(network, batch, logits)
    if batch.quotable is not None and quoted_weight:
        total = total + quoted_weight * quoted_loss(batch, logits)
    return Losses(total=total, cross_entropy=cross_entropy, mse=mse)


def passage_memories(network: Network, batch: Batch) -> Tensor:
    """Memories of the batch's passages, [D, N, H]: as computed before, or under gradient where texts are given."""
    if not len(batch.text_ids):
        return no_memories(network, batch) if batch.memories is None else batch.memories
    if batch.states is not None:
        return network.assembled(batch.states, batch.text_ids, batch.text_mask, rate=batch.rate)
    return network.encode("compressor", batch.text_ids, batch.text_mask, rate=batch.rate).memory


def no_memories(network: Network, batch: Batch) -> Tensor:
    """Those of a batch all of whose passages are read as text: [0, N, H]."""
    embeds = network.embed(batch.decoder_ids[:1, :1])
    return embeds.new_empty(0, network.config.memory_tokens(batch.rate), embeds.shape[2])


def _means_apart(read_out: ReadOut, batch: Batch) -> Tensor:
    # A text that several examples share is encoded once and counts for each of them, however the batch is cut.
    states, memories = read_out.text_mean, read_out.read.mean(dim=1)
    mse = memory_mse(states.index_select(0, batch.text_index), memories.index_select(0, batch.text_index))
    return mse * batch.text_share


def quoted_loss(batch: Batch, logits: Tensor) -> Tensor:
    """Mean over all label tokens of the CE among what could be quoted; labels that are no quotation count as 0.

    Args:
        batch: its ``label_share`` makes the mean one over all processes' labels.
        logits: [T, V].
    """
    quotable = batch.quotable
    if quotable is None:
        return torch.zeros_like(logits[0, 0])
    rows = quotable.rows
    labels, weights = batch.labels.index_select(0, rows), batch.weights.index_select(0, rows)
    summed = quoted_cross_entropy(logits.index_select(0, rows), labels, quotable.places, quotable.ids, weights)
    return summed / batch.weights.sum() * batch.label_share


def teacher_distance(decoder: Decoder, batch: Batch, logits: Tensor) -> Tensor:
    """Mean over all label tokens of KL(teacher || student); tokens without a teacher count as 0.

    Args:
        decoder: with a teacher.
        batch: with ``teaching``.
        logits: the student's, [T, V].
    """
    if batch.teaching is None:
        return torch.zeros_like(logits[0, 0])
    sequences, rows = batch.teaching.sequences, batch.teaching.rows
    with torch.no_grad():
        taught = reply_logits(decoder, sequences, None, role="teacher")
    summed = token_kl(taught, logits.index_select(0, rows), batch.weights.index_select(0, rows))
    return summed / batch.weights.sum() * batch.label_share


def reading_loss(decoder: Decoder, batch: Batch, *, quoted_weight: float = 0.0) -> Losses:
    """CE of the targets where the decoder reads text, or the question alone: there are no memories.

    Args:
        decoder: with gradients where the stage wants them.
        batch: without texts to compress.
        quoted_weight: of the CE among quotations, where the batch has them.
    """
    logits = reply_logits(decoder, batch, None)
    cross_entropy = token_cross_entropy(logits, batch.labels, batch.weights) * batch.label_share
    total = cross_entropy
    if batch.quotable is not None and quoted_weight:
        total = total + quoted_weight * quoted_loss(batch, logits)
    return Losses(total=total, cross_entropy=cross_entropy, mse=torch.zeros_like(cross_entropy))


def reply_loss(decoder: Decoder, batch: Batch, memories: Tensor | None) -> Tensor:
    """CE of the targets of a batch, given its memories [sum of slots, H]; None where it has no slots."""
    logits = reply_logits(decoder, batch, memories)
    return token_cross_entropy(logits, batch.labels, batch.weights) * batch.label_share


def reply_logits(
    decoder: Decoder, batch: Batch, memories: Tensor | None, *, role: AdapterName | None = "generator"
) -> Tensor:
    """Logits at the label positions of a batch, [T, V]; arguments as ``reply_loss``, read by ``role``."""
    embeds = decoder.embed(batch.decoder_ids)
    if memories is not None:
        embeds = splice(embeds, batch.slots, memories)
    hidden = decoder.decode(embeds, decoder_attention(batch.segments), batch.positions, role=role)
    chosen = hidden.reshape(-1, hidden.shape[-1])[batch.label_index]
    with torch.autocast(chosen.device.type, enabled=False):
        return decoder.logits(chosen)


@contextmanager
def evaluating(network: Decoder) -> Iterator[None]:
    """Ask a network something while it is trained: without dropout or gradients; afterwards as before."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
