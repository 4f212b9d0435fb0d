"""The analyses by name: what each is told, how it is measured, how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from clara.data import DataRecord
from clara.evaluate.analysis import figures
from clara.evaluate.analysis.asking import AnalysisSettings, Progress
from clara.evaluate.analysis.attention import AttentionReport, AttentionSettings, answer_attention
from clara.evaluate.analysis.embedding_map import EmbeddingMap, embedding_map, texts_of
from clara.evaluate.analysis.faithfulness import FaithfulnessReport, FaithfulnessSettings, faithfulness
from clara.evaluate.analysis.gradients import GradientReport, GradientSettings, selection_gradients
from clara.evaluate.analysis.insight import Insight
from clara.evaluate.analysis.logit_lens import LensHits, LensSettings, lens_hits
from clara.evaluate.analysis.robustness import RobustnessReport, RobustnessSettings, robustness
from clara.evaluate.protocol import AnswerModel


class Report(Protocol):
    """The result of an analysis of one checkpoint."""

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""


class InspectableModel(AnswerModel, Protocol):
    """An ``AnswerModel`` that lets itself be looked into; ``ClaraModel`` is one."""

    @property
    def default_rate(self) -> int:
        """The rate used when none is asked for."""

    @property
    def mse_weight(self) -> float | None:
        """Weight of the MSE term that it was trained with, if it says."""

    def inspector(self) -> Insight:
        """A look inside."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One analysis.

    Attributes:
        settings: its settings' class.
        measure: of (model, records, settings, progress).
        draw: writes a PNG of (name, report) pairs.
        details: keys of the report that hold one entry a question or text, too long for a summary.
    """

    settings: type[AnalysisSettings]
    measure: Callable[[InspectableModel, Sequence[DataRecord], Any, Progress | None], Report]
    draw: Callable[[Sequence[tuple[str, Any]], Path], None]
    details: tuple[str, ...] = ("rows",)


def _gradient(
    model: InspectableModel, records: Sequence[DataRecord], settings: GradientSettings, progress: Progress | None
) -> GradientReport:
    return selection_gradients(model, model.inspector(), records, settings, progress=progress)


def _tsne(
    model: InspectableModel, records: Sequence[DataRecord], settings: AnalysisSettings, _: Progress | None
) -> EmbeddingMap:
    texts = texts_of(records, model.token_spans, max_tokens=model.window_tokens, limit=settings.limit)
    return embedding_map(
        model.inspector(),
        texts,
        model=model.name,
        fingerprint=model.fingerprint,
        mse_weight=model.mse_weight,
        rate=settings.rate or model.default_rate,
        seed=settings.seed,
    )


def _attention(
    model: InspectableModel, records: Sequence[DataRecord], settings: AttentionSettings, progress: Progress | None
) -> AttentionReport:
    return answer_attention(model, model.inspector(), records, settings, progress=progress)


def _robustness(
    model: InspectableModel, records: Sequence[DataRecord], settings: RobustnessSettings, progress: Progress | None
) -> RobustnessReport:
    return robustness(model, records, settings, progress=progress)


def _faithfulness(
    model: InspectableModel, records: Sequence[DataRecord], settings: FaithfulnessSettings, progress: Progress | None
) -> FaithfulnessReport:
    return faithfulness(model, records, settings, progress=progress)


def _lens(
    model: InspectableModel, records: Sequence[DataRecord], settings: LensSettings, progress: Progress | None
) -> LensHits:
    return lens_hits(
        model.inspector(),
        records,
        settings,
        model=model.name,
        fingerprint=model.fingerprint,
        rate=settings.rate or model.default_rate,
        progress=progress,
    )


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "lens": Kind(LensSettings, _lens, figures.draw_lens, ("examples",)),
        "gradient": Kind(GradientSettings, _gradient, figures.draw_gradients),
        "tsne": Kind(AnalysisSettings, _tsne, figures.draw_maps, ("document", "memory")),
        "attention": Kind(AttentionSettings, _attention, figures.draw_attention),
        "robustness": Kind(RobustnessSettings, _robustness, figures.draw_robustness),
        "faithfulness": Kind(FaithfulnessSettings, _faithfulness, figures.draw_faithfulness),
    }
)
