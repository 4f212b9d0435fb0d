"""System ``llmlingua``: the best candidates as text shortened by perplexity, which the run's own base weights judge."""

from __future__ import annotations

from clara.evaluate.baselines.composed import Composed
from clara.evaluate.baselines.folders import base_folder, base_identity
from clara.evaluate.baselines.lingua import PerplexityCompressor
from clara.evaluate.baselines.prompt_compression import shortened
from clara.evaluate.system import SystemSettings


def build(settings: SystemSettings) -> Composed:
    """System ``llmlingua``."""

    def load() -> PerplexityCompressor:
        return PerplexityCompressor(base_folder(settings), settings.device)

    compressor = settings.shelf.opened("llmlingua", base_identity(settings.model), load)
    return shortened("llmlingua", settings, compressor, base_identity(settings.model))
