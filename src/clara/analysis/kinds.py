"""The analyses by name: their settings, how they are measured and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clara.analysis.attention import AttentionSettings, answer_attention
from clara.analysis.embedding_map import document_map
from clara.analysis.faithfulness import FaithfulnessSettings, faithfulness
from clara.analysis.gradients import GradientSettings, selection_gradients
from clara.analysis.harness import AnalysisSettings, InspectableModel, OnProgress
from clara.analysis.logit_lens import LensSettings, lens_hits
from clara.analysis.robustness import RobustnessSettings, robustness
from clara.data import DataRecord
from clara.evaluate.plots import DRAW_ANALYSIS


@dataclass(frozen=True, slots=True)
class Analysis:
    """One analysis.

    Attributes:
        settings: class of its settings.
        measure: from (model, records, settings, progress) to a frozen record.
        draw: writes a PNG of (name, record) pairs.
        details: fields of the record with one entry a question or text, too long for a summary.
    """

    settings: type[AnalysisSettings]
    measure: Callable[[InspectableModel, Sequence[DataRecord], Any, OnProgress | None], Any]
    draw: Callable[[Sequence[tuple[str, Any]], Path], None]
    details: tuple[str, ...] = ("rows",)


KINDS: Mapping[str, Analysis] = MappingProxyType(
    {
        "lens": Analysis(LensSettings, lens_hits, DRAW_ANALYSIS["lens"], ("examples",)),
        "gradient": Analysis(GradientSettings, selection_gradients, DRAW_ANALYSIS["gradient"]),
        "tsne": Analysis(AnalysisSettings, document_map, DRAW_ANALYSIS["tsne"], ("document", "memory")),
        "attention": Analysis(AttentionSettings, answer_attention, DRAW_ANALYSIS["attention"]),
        "robustness": Analysis(RobustnessSettings, robustness, DRAW_ANALYSIS["robustness"]),
        "faithfulness": Analysis(FaithfulnessSettings, faithfulness, DRAW_ANALYSIS["faithfulness"]),
    }
)
