"""The analyses by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clara.analysis.answers import FaithfulnessSettings, RobustnessSettings, faithfulness, robustness
from clara.analysis.embedding_map import document_map
from clara.analysis.harness import AnalysisSettings, OnProgress
from clara.analysis.inside import AttentionSettings, GradientSettings, answer_attention, selection_gradients
from clara.analysis.logit_lens import LensSettings, lens_hits
from clara.data import DataRecord

if TYPE_CHECKING:
    from clara.model import ClaraModel


@dataclass(frozen=True, slots=True)
class Analysis:
    """An analysis: from (model, records, settings, progress) to a frozen record.

    ``details`` are its fields with one entry a question or text, too long for a summary.
    """

    settings: type[AnalysisSettings]
    measure: Callable[[ClaraModel, Sequence[DataRecord], Any, OnProgress | None], Any]
    details: tuple[str, ...] = ("rows",)


KINDS: Mapping[str, Analysis] = {
    "lens": Analysis(LensSettings, lens_hits, ("examples",)),
    "gradient": Analysis(GradientSettings, selection_gradients),
    "tsne": Analysis(AnalysisSettings, document_map, ("document", "memory")),
    "attention": Analysis(AttentionSettings, answer_attention),
    "robustness": Analysis(RobustnessSettings, robustness),
    "faithfulness": Analysis(FaithfulnessSettings, faithfulness),
}
