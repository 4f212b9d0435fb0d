"""t-SNE of mean document states and mean memory states (clara.md section 7), through scikit-learn.

Stage ``scp``'s MSE term pulls the two together: ``mse``, ``cosine`` and ``mixing``, of the states themselves, say how
far. ``project_groups`` maps the passages of a store, by a linear projection that can place a question too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clara.analysis.harness import AnalysisSettings, OnProgress, first_windows
from clara.data import DataRecord
from clara.errors import InputError, optional
from clara.model.inspection import States
from clara.records import FloatArray

if TYPE_CHECKING:
    from clara.model import ClaraModel

_NEIGHBOURS = 10
_MIN_TEXTS = 4
_MIN_POINTS = 3
_MIN_GROUPS = 4


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """The states of one checkpoint.

    Attributes:
        mse_weight: the MSE term's in training; None where the checkpoint does not say.
        mse: mean squared distance of a document's mean state and its mean memory state: the MSE term.
        mixing: mean share of a state's nearest neighbours of the other kind; about 0.5 where they cannot be told apart.
        document: a point (x, y) a text; ``memory`` likewise.
    """

    model: str
    fingerprint: str
    mse_weight: float | None
    texts: int
    mse: float
    cosine: float
    mixing: float
    document: tuple[tuple[float, float], ...]
    memory: tuple[tuple[float, float], ...]


def document_map(
    model: ClaraModel,
    records: Sequence[DataRecord],
    settings: AnalysisSettings,
    _: OnProgress | None = None,
) -> EmbeddingMap:
    """Map the passages and gold documents of records; raises as ``embedding_map``."""
    texts = [text for _, text in first_windows(records, model, settings.limit)]
    return embedding_map(model, texts, rate=settings.rate, seed=settings.seed)


def embedding_map(model: ClaraModel, texts: Sequence[str], *, rate: int | None = None, seed: int = 0) -> EmbeddingMap:
    """Map the compressor's states of texts, each in one window.

    Raises:
        InputError: fewer than four texts.
        MissingExtraError: scikit-learn is not installed.
    """
    if len(texts) < _MIN_TEXTS:
        raise InputError(f"a map needs at least {_MIN_TEXTS} texts, got {len(texts)}; raise --limit")
    states = model.inspector().states(texts, role="compressor", rate=rate or model.default_rate)
    document, memory = _means(states)
    points = [(float(x), float(y)) for x, y in _tsne(np.concatenate([document, memory]), seed=seed)]
    return EmbeddingMap(
        model=model.name,
        fingerprint=model.fingerprint,
        mse_weight=model.mse_weight,
        texts=len(texts),
        mse=float(((document - memory) ** 2).mean()),
        cosine=_cosine(document, memory),
        mixing=_mixing(document, memory),
        document=tuple(points[: len(texts)]),
        memory=tuple(points[len(texts) :]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A linear map from vectors to two dimensions.

    Attributes:
        centre: float64 [H], subtracted first.
        axes: float64 [H, 2].
        low: float64 [2], mapped to 0.
        high: float64 [2], mapped to 1.
    """

    centre: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]

    def places(self, vectors: FloatArray) -> FloatArray:
        """Two dimensions of ``vectors`` [P, H], clipped to 0 and 1: float32 [P, 2]."""
        flat = _directions(vectors, self.centre) @ self.axes
        placed: FloatArray = np.clip((flat - self.low) / np.maximum(self.high - self.low, 1e-9), 0, 1).astype(
            np.float32
        )
        return placed


def project_groups(vectors: FloatArray, groups: Sequence[str]) -> Projection:
    """The two principal components of group means, or with fewer than four groups of the vectors themselves.

    Needs no library and can map new vectors, which t-SNE cannot.

    Raises:
        InputError: there are fewer than three vectors.
    """
    if len(vectors) < _MIN_POINTS:
        raise InputError(f"a map needs at least {_MIN_POINTS} passages, got {len(vectors)}")
    centre = vectors.astype(np.float64).mean(axis=0)
    directions = _directions(vectors, centre)
    names = sorted(set(groups))
    of = np.array([names.index(group) for group in groups])
    compared = directions
    if len(names) >= _MIN_GROUPS:
        compared = np.stack([directions[of == index].mean(axis=0) for index in range(len(names))])
    _, _, components = np.linalg.svd(compared - compared.mean(axis=0), full_matrices=False)
    axes = components[:2].T
    flat = directions @ axes
    return Projection(centre, axes, flat.min(axis=0), flat.max(axis=0))


def _directions(vectors: FloatArray, centre: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Unit vectors from the centre, so that no long one takes the whole map: float64 [P, H]."""
    centred = vectors.astype(np.float64) - centre
    directions: npt.NDArray[np.float64] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return directions


def _means(states: Sequence[States]) -> tuple[FloatArray, FloatArray]:
    """Mean text states and mean last hidden states at the memory tokens, each [texts, H], as in the MSE term.

    Before the affine read-out, as in training: a memory after it is not comparable with hidden states.
    """
    return np.stack([s.text_mean for s in states]), np.stack([s.hidden.mean(axis=0) for s in states])


def _mixing(first: FloatArray, second: FloatArray, *, neighbours: int = _NEIGHBOURS) -> float:
    """Mean share of each point's nearest neighbours that are of the other set; both float [points, H]."""
    points = np.concatenate([first, second]).astype(np.float64)
    kind = np.arange(len(points)) >= len(first)
    squares = (points**2).sum(axis=1)
    distance = squares[:, None] + squares[None, :] - 2 * points @ points.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, : min(neighbours, len(points) - 1)]
    return float((kind[nearest] != kind[:, None]).mean())


def _tsne(points: FloatArray, *, seed: int) -> FloatArray:
    """Two dimensions of ``points`` [P, H]: float32 [P, 2]."""
    manifold = optional("sklearn.manifold", package="scikit-learn", extra="eval")
    # Perplexity: scikit-learn's own default, and below a third of the points where there are few (its documentation).
    perplexity = min(30.0, (len(points) - 1) / 3)
    placed: FloatArray = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    return placed


def _cosine(first: FloatArray, second: FloatArray) -> float:
    dots = (first * second).sum(axis=1)
    return float((dots / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))).mean())
