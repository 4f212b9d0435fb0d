"""The latent retriever as an encoder that MTEB (2.x) and BEIR can measure.

    import mteb
    from clara.evaluate.plugs.mteb import LatentEncoder

    mteb.evaluate(LatentEncoder.load("runs/end-to-end/checkpoint", rate=16), mteb.get_tasks(["SciFact"]))

A vector is the flattened memory at unit length, [N * H] floats: 36,864 at 4x of SmolLM2-135M, 9,216 at 16x. Both
suites take one vector a text, so longer texts are truncated to the model's window; the store and ``clara eval`` rank by
the best window instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clara.errors import optional
from clara.evaluate.system import AnswerModel
from clara.prompts import passage_text
from clara.records import FloatArray, Memory, QueryMemory

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta

    from clara.model import ClaraModel

_QUERY = "query"


class LatentEncoder:
    """An encoder of MTEB's ``EncoderProtocol``, with the two methods of BEIR's dense retrieval besides.

    It counts texts without a word (``empty``), whose vector is zero, and those ``cut`` at the model's window.
    """

    def __init__(self, model: AnswerModel, *, rate: int | None = None) -> None:
        self.model = model
        self.rate = rate
        self.empty = 0
        self.cut = 0
        self._width: int | None = None

    @classmethod
    def load(cls, name: str | Path, *, rate: int | None = None, device: str = "cpu") -> LatentEncoder:
        """The encoder of a checkpoint (ModelError: it cannot be loaded)."""
        from clara.model import ClaraModel  # noqa: PLC0415 - slow; a loaded model can be given instead

        model: ClaraModel = ClaraModel.load(name, device=device)
        return cls(model, rate=rate)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Name and revision (fingerprint, rate) under which MTEB files results (MissingExtraError: mteb is missing)."""
        library = optional("mteb.models.model_meta", package="mteb", extra="mteb")
        meta: ModelMeta = library.ModelMeta.create_empty(
            {
                "name": f"clara-rag/{Path(self.model.name).name}",
                "revision": f"{self.model.fingerprint}-{'default' if self.rate is None else self.rate}",
                "max_tokens": self.model.window_tokens,
                "similarity_fn_name": library.ScoringFunction.COSINE,
                "framework": ["PyTorch"],
            }
        )
        return meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[str]]],
        *,
        prompt_type: str | None = None,
        **_: Any,  # noqa: ANN401 - the task, which is not looked at; batch size and progress bars are the model's own
    ) -> FloatArray:
        """Vectors of MTEB's batches: float32 [texts, N * H].

        Of documents ``title`` and ``body`` are read where given, else ``text``; prompt types other than ``query`` are
        compressed as documents.
        """
        if prompt_type is not None and str(getattr(prompt_type, "value", prompt_type)) == _QUERY:
            return self.encode_queries([text for batch in inputs for text in batch["text"]])
        return self._vectors([text for batch in inputs for text in _documents(batch)], queries=False)

    def encode_queries(self, queries: Sequence[str], batch_size: int = 0, **_: Any) -> FloatArray:  # noqa: ANN401
        """BEIR's interface to queries: float32 [questions, N * H]."""
        del batch_size  # the model forms its own batches, by length
        return self._vectors(queries, queries=True)

    def encode_corpus(self, corpus: Sequence[Mapping[str, str]], batch_size: int = 0, **_: Any) -> FloatArray:  # noqa: ANN401
        """BEIR's interface to documents with ``title`` and ``text``: float32 [documents, N * H]."""
        del batch_size
        return self._vectors([passage_text(doc.get("title", ""), doc["text"]) for doc in corpus], queries=False)

    def similarity(self, embeddings1: FloatArray, embeddings2: FloatArray) -> FloatArray:
        """Cosine of every vector with every other: float32 [first, second]."""
        scores: FloatArray = np.atleast_2d(embeddings1) @ np.atleast_2d(embeddings2).T
        return scores

    def similarity_pairwise(self, embeddings1: FloatArray, embeddings2: FloatArray) -> FloatArray:
        """Cosine of each pair of rows: float32 [rows]."""
        scores: FloatArray = (np.atleast_2d(embeddings1) * np.atleast_2d(embeddings2)).sum(axis=1)
        return scores

    def _vectors(self, texts: Sequence[str], *, queries: bool) -> FloatArray:
        cut = [self._fitting(text) for text in texts]
        asked = [text for text in cut if text]
        made = iter(self._memories(asked, queries=queries))
        rows = [next(made).search_vector() if text else None for text in cut]
        self.empty += sum(row is None for row in rows)
        width = next((len(row) for row in rows if row is not None), self._width)
        if width is None:
            width = len(self.model.compress(["a"], rate=self.rate)[0].search_vector())
        self._width = width
        return np.stack([np.zeros(width, dtype=np.float32) if row is None else row for row in rows])

    def _memories(self, texts: Sequence[str], *, queries: bool) -> Sequence[Memory | QueryMemory]:
        if not texts:
            return []
        if queries:
            return self.model.encode_queries(texts, rate=self.rate)
        return self.model.compress(texts, rate=self.rate)

    def _fitting(self, text: str) -> str:
        if not text.strip():
            return ""
        spans = self.model.token_spans(text)
        if len(spans) <= self.model.window_tokens:
            return text
        self.cut += 1
        return text[: spans[self.model.window_tokens - 1][1]]


def _documents(batch: Mapping[str, Sequence[str]]) -> list[str]:
    if "body" not in batch:
        return list(batch["text"])
    titles = batch.get("title") or [""] * len(batch["body"])
    return [passage_text(title or "", body) for title, body in zip(titles, batch["body"], strict=True)]
