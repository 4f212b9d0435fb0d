"""System ``bge-reranker``: candidates ranked by BGE's cross-encoder, which reads question and passage together.

Needs the hub, or the option ``bge_reranker``: its folder. Documents cannot be prepared before the question comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clara.errors import MissingExtraError
from clara.evaluate.baselines.composed import Composed, Ranking, digest, ranking_only
from clara.evaluate.baselines.folders import hub_folder, weights_hash
from clara.evaluate.isolation import Failure, each
from clara.evaluate.system import Ask, SystemSettings
from clara.prompts import passage_text

BGE_RERANKER = "BAAI/bge-reranker-large"
OPTION = "bge_reranker"
_MAX_LENGTH = 512


class CrossEncoderRanker:
    """Ranks candidates by a cross-encoder's score.

    Args:
        model: predicts a score for each pair of texts.
        fingerprint: of its weights.
    """

    def __init__(self, model: Any, fingerprint: str) -> None:  # noqa: ANN401 - the library's own type
        self._model = model
        self.fingerprint = digest({"cross-encoder": fingerprint})

    def rank(self, asks: Sequence[Ask]) -> list[Ranking | Failure]:
        """All candidates, best first."""
        return each(asks, lambda some: [self._order(ask) for ask in some])

    def _order(self, ask: Ask) -> Ranking:
        pairs = [(ask.question, passage_text(doc.title, doc.text)) for doc in ask.docs]
        scores = np.asarray(self._model.predict(pairs, show_progress_bar=False), dtype=np.float32)
        return tuple(int(index) for index in np.argsort(-scores, kind="stable"))


def bge_reranker(settings: SystemSettings) -> CrossEncoderRanker:
    """The published cross-encoder.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        ModelError: there is no such folder, and the hub cannot be reached.
    """

    def load() -> CrossEncoderRanker:
        try:
            from sentence_transformers import CrossEncoder  # noqa: PLC0415 - optional, imported at its own door
        except ImportError:
            raise MissingExtraError("sentence-transformers", "eval") from None
        folder = hub_folder(BGE_RERANKER, settings.options.get(OPTION), option=OPTION)
        model = CrossEncoder(str(folder), device=settings.device, max_length=_MAX_LENGTH, local_files_only=True)
        return CrossEncoderRanker(model, weights_hash(folder))

    return settings.shelf.opened("cross-encoder", BGE_RERANKER, load)


def build(settings: SystemSettings) -> Composed:
    """System ``bge-reranker``: the ranking alone."""
    return ranking_only("bge-reranker", settings, bge_reranker(settings))
