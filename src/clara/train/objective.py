"""The loss of stages ``scp`` and ``instruct``: write the targets from the memories (clara.md sections 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clara.model.losses import memory_mse, token_cross_entropy
from clara.model.network import Network, splice
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


def generation_loss(network: Network, batch: Batch, *, mse_weight: float) -> Losses:
    """CE of the targets given the memories, plus ``mse_weight`` times the MSE term.

    The LM head runs on label positions only.

    Args:
        network: with gradients where the stage wants them.
        batch: texts and decoder sequences.
        mse_weight: lambda.
    """
    encoded = network.encode("compressor", batch.text_ids, batch.text_mask, rate=batch.rate)
    cross_entropy = reply_loss(network, batch, encoded.memory.flatten(0, 1))
    mse = memory_mse(encoded.read_out.text_mean, encoded.read_out.read.mean(dim=1))
    return Losses(total=cross_entropy + mse_weight * mse, cross_entropy=cross_entropy, mse=mse)


def reply_loss(network: Network, batch: Batch, memories: Tensor) -> Tensor:
    """CE of the targets of a batch, given its memories [sum of slots, H]."""
    embeds = splice(network.embed(batch.decoder_ids), batch.slots, memories)
    hidden = network.decode(embeds, decoder_attention(batch.segments), batch.positions)
    chosen = hidden.reshape(-1, hidden.shape[-1])[batch.label_index]
    with torch.autocast(chosen.device.type, enabled=False):
        logits = network.logits(chosen)
    return token_cross_entropy(logits, batch.labels, batch.weights)
