"""The analyses by name: their settings, how they are measured and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from clara.analysis.answers import FaithfulnessSettings, RobustnessSettings, faithfulness, robustness
from clara.analysis.embedding_map import document_map
from clara.analysis.harness import AnalysisSettings, OnProgress
from clara.analysis.inside import AttentionSettings, GradientSettings, answer_attention, selection_gradients
from clara.analysis.logit_lens import LensSettings, lens_hits
from clara.data import DataRecord
from clara.evaluate.plots import DRAW_ANALYSIS

if TYPE_CHECKING:
    from clara.model import ClaraModel


@dataclass(frozen=True, slots=True)
class Analysis:
    """One analysis: its settings, how it is measured and drawn.

    Attributes:
        measure: from (model, records, settings, progress) to a frozen record.
        draw: writes a PNG of (name, record) pairs.
        details: fields of the record with one entry a question or text, too long for a summary.
    """

    settings: type[AnalysisSettings]
    measure: Callable[[ClaraModel, Sequence[DataRecord], Any, OnProgress | None], Any]
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
