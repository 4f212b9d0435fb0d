"""System ``pisco`` (arXiv 2501.16075): CLaRa's architecture, trained on a full-text reader's answers without SCP.

The folder of option ``pisco``; how it ranks and what it reads is in ``memory_systems``.
"""

from __future__ import annotations

from clara.errors import ConfigError
from clara.evaluate.baselines.composed import Composed
from clara.evaluate.baselines.folders import open_checkpoint
from clara.evaluate.baselines.memory_systems import of_model
from clara.evaluate.system import SystemSettings

STAGE = "instruct"


def build(settings: SystemSettings) -> Composed:
    """System ``pisco``, in BM25's order.

    Raises:
        ConfigError: the checkpoint went through another stage first, or did not learn from a teacher's answers.
    """
    model = open_checkpoint(settings, "pisco", STAGE, label="pisco")
    trained = model.manifest.trained.get("config", {})
    start, targets = trained.get("start"), trained.get("targets")
    if start is not None or targets != "teacher":
        raise ConfigError(
            f"--option pisco={settings.options['pisco']} starts from {start or 'the base model'} and has targets "
            f"{targets!r}; PISCO starts from the base model and learns a teacher's answers (recipes/pisco-*.toml)"
        )
    return of_model("pisco", settings, model, words=True)
