"""A checkpoint says whether passages that are found ask for others; its questions then carry what that takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from clara.model import ClaraModel
from clara.model.checkpoint import Manifest
from clara.model.create import from_checkpoint
from clara.similarity import late_interaction, similarities

TEXTS = ("Gustave Eiffel built a tower in Paris.", "Gutenberg printed in Mainz.", "Bees dance to tell the way.")


def fed_back(checkpoint: Path, passages: int) -> ClaraModel:
    """The checkpoint with late interaction through some projection."""
    loaded = from_checkpoint(checkpoint, Path("unused"), dtype=torch.float32)
    table = loaded.network.table
    table.project_queries(projected=True, late=True)
    assert table.query_projection is not None
    with torch.no_grad():
        table.query_projection.copy_(torch.randn(table.query_projection.shape, generator=torch.Generator()))
    changed = {"query_projection": True, "late_interaction": True, "feedback": passages}
    return ClaraModel("made", replace(loaded, manifest=loaded.manifest.model_copy(update=changed)))


@pytest.mark.parametrize("rate", [4, 16])
def test_a_question_takes_the_projection_of_its_rate_along(tiny_checkpoint: Path, rate: int) -> None:
    model, plain = fed_back(tiny_checkpoint, 2), fed_back(tiny_checkpoint, 0)
    (question,) = model.encode_queries(["Who built it?"], rate=rate)
    (alone,) = plain.encode_queries(["Who built it?"], rate=rate)
    np.testing.assert_array_equal(question.values, alone.values)
    late = question.late
    assert late is not None
    assert late.feedback is not None
    assert late.feedback.passages == 2
    projection = model._network.table.query_projection
    assert projection is not None
    np.testing.assert_array_equal(late.feedback.projection, projection[(4, 16).index(rate)].detach().numpy())
    memories = model.compress(TEXTS, rate=rate)
    assert all(memory.feedback is None for memory in memories)
    assert alone.late is not None
    assert similarities(alone, memories) == [late_interaction(alone.late, memory.values) for memory in memories]
    assert similarities(question, memories) != similarities(alone, memories)


def test_the_manifest_names_feedback_only_where_there_is_some(tiny_model: ClaraModel, tiny_checkpoint: Path) -> None:
    assert "feedback" not in tiny_model.manifest.model_dump()
    values = fed_back(tiny_checkpoint, 2).manifest.model_dump()
    assert values["feedback"] == 2
    with pytest.raises(ValidationError, match="feedback needs late_interaction"):
        Manifest.model_validate(values | {"late_interaction": False})
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Manifest.model_validate(values | {"feedback": -1})
