"""System ``supervised``: candidates ranked by a reasoner that was trained on labelled positives by a contrastive loss.

The folder of option ``supervised`` (stage retriever); how it ranks is in ``latent``.
"""

from __future__ import annotations

from clara.evaluate.baselines.composed import Composed, ranking_only
from clara.evaluate.baselines.folders import open_checkpoint, rate_of
from clara.evaluate.baselines.latent import Latent
from clara.evaluate.system import SystemSettings


def build(settings: SystemSettings) -> Composed:
    """System ``supervised``: the ranking alone."""
    model = open_checkpoint(settings, "supervised", "retriever")
    return ranking_only("supervised", settings, Latent(model, rate_of(settings, model), settings.shelf))
