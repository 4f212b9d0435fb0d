"""Which loss a batch has: decided by what the batch is, so that the loop knows no stages."""

from __future__ import annotations

from clara.model.network import Network
from clara.train.batch import Batch
from clara.train.candidate_batch import CandidateBatch
from clara.train.config import TrainConfig
from clara.train.end_to_end import end_to_end_loss
from clara.train.objective import Losses, generation_loss, reading_loss
from clara.train.retriever import retriever_loss


def losses_of(network: Network, batch: Batch, config: TrainConfig) -> Losses:
    """The losses of one batch.

    Args:
        network: with gradients where the stage wants them.
        batch: made by the stage's collator.
        config: the run.
    """
    if isinstance(batch, CandidateBatch):
        if batch.writes:
            return end_to_end_loss(network, batch, top_k=config.top_k, temperature=config.temperature)
        return retriever_loss(network, batch, temperature=config.temperature)
    if len(batch.text_ids) or batch.memories is not None:
        return generation_loss(
            network,
            batch,
            mse_weight=config.mse_weight,
            kl_weight=config.kl_weight,
            quoted_weight=config.quoted_weight,
        )
    return reading_loss(network, batch, quoted_weight=config.quoted_weight)
