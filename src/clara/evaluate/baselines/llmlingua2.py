"""System ``llmlingua2``: the best candidates as text shortened by a trained token classifier.

Needs the hub, or the option ``llmlingua2``: the folder of the published encoder.
"""

from __future__ import annotations

from clara.evaluate.baselines.composed import Composed
from clara.evaluate.baselines.folders import base_folder, hub_folder, weights_hash
from clara.evaluate.baselines.lingua import ClassifierCompressor, TokenCounter
from clara.evaluate.baselines.prompt_compression import shortened
from clara.evaluate.system import SystemSettings

LLMLINGUA2 = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"
OPTION = "llmlingua2"


def build(settings: SystemSettings) -> Composed:
    """System ``llmlingua2``.

    Raises:
        ModelError: there is no such folder, and the hub cannot be reached.
    """
    folder = hub_folder(LLMLINGUA2, settings.options.get(OPTION), option=OPTION)

    def load() -> ClassifierCompressor:
        from transformers import AutoTokenizer  # noqa: PLC0415 - slow

        tokenizer = AutoTokenizer.from_pretrained(base_folder(settings), local_files_only=True)
        return ClassifierCompressor(folder, TokenCounter(tokenizer), settings.device)

    compressor = settings.shelf.opened("llmlingua2", str(folder), load)
    return shortened("llmlingua2", settings, compressor, weights_hash(folder))
