"""System ``dro``: selector and reader tuned together on full text (``clara.train.dro``), the folder of option ``dro``.

The selector reads question and passage together, so nothing of a document is prepared before the question comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clara.evaluate.baselines.composed import Composed, Ranking, Reading, digest
from clara.evaluate.baselines.folders import base_folder, open_reader, option, weights_hash
from clara.evaluate.baselines.full_text import TextContext
from clara.evaluate.isolation import Failure, each
from clara.evaluate.system import Ask, SystemSettings
from clara.prompts import passage_text

if TYPE_CHECKING:
    from clara.train.dro import Selector

PASSAGES_AT_ONCE = 8


class SelectorRanker:
    """Ranks candidates by a trained selector.

    Args:
        selector: scores passages for a question.
        fingerprint: of its weights.
    """

    def __init__(self, selector: Selector, fingerprint: str) -> None:
        self._selector = selector
        self.fingerprint = digest({"selector": fingerprint})

    def rank(self, asks: Sequence[Ask]) -> list[Ranking | Failure]:
        """All candidates, best first."""
        return each(asks, lambda some: [self._order(ask) for ask in some])

    def _order(self, ask: Ask) -> Ranking:
        import torch  # noqa: PLC0415 - slow, loaded by now

        texts = [passage_text(doc.title, doc.text) for doc in ask.docs]
        scores: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(texts), PASSAGES_AT_ONCE):
                part = self._selector.scores(ask.question, texts[start : start + PASSAGES_AT_ONCE])
                scores.extend(part.float().cpu().tolist())
        return tuple(int(index) for index in np.argsort(-np.array(scores), kind="stable"))


def build(settings: SystemSettings) -> Composed:
    """System ``dro``.

    Raises:
        ConfigError: the option was not given, or the reader is on another backbone.
        CheckpointError: selector or reader is not there, or is damaged.
    """
    folder = option(settings, "dro", "the folder that examples/train_dro.py wrote (OUT/dro)")
    # The two were tuned together: the reader of this system is not the option ``reader`` of the others.
    own = replace(settings, options={**settings.options, "dro_reader": folder / "reader"})
    reader = open_reader(own, "dro_reader", "text")
    selector = settings.shelf.opened("selector", str(folder), lambda: _load(settings, folder / "selector"))
    reading = Reading(TextContext(settings.model, settings.shelf), reader, reader.fingerprint)
    return Composed("dro", settings, SelectorRanker(selector, weights_hash(folder / "selector")), reading)


def _load(settings: SystemSettings, folder: Path) -> Selector:
    from clara.model.backbone import load_base  # noqa: PLC0415 - slow
    from clara.model.placement import natural_dtype  # noqa: PLC0415 - slow
    from clara.train.dro import load_selector  # noqa: PLC0415 - slow

    place = base_folder(settings)
    base = load_base(str(place), settings.cache, dtype=natural_dtype(settings.device), device=settings.device)
    return load_selector(folder, base)
