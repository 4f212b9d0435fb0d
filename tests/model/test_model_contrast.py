"""Quoted answers held against what the model would say of no passage: the arithmetic, and who is held to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from clara.model import ClaraModel, Sampling
from clara.model.checkpoint import Manifest
from clara.model.create import from_checkpoint
from clara.model.placement import Placement
from clara.model.prompting import Quotations
from clara.records import GenerationRequest, Memory

TEXT = "The tower of Mainz is 330 metres high. Gutenberg printed there in 1450, and bees dance on its roof."
QUESTIONS = ("How high is the tower?", "Who?", "When did he print, and where?")
STRONG = 0.9


def contrasted(checkpoint: Path, weights: tuple[float, ...]) -> ClaraModel:
    """The checkpoint with late interaction and some centre of passages."""
    loaded = from_checkpoint(checkpoint, Path("unused"), Placement())
    table = loaded.network.table
    table.project_queries(projected=True, late=True)
    assert table.query_passage_centre is not None
    table.query_passage_centre.copy_(torch.randn(table.query_passage_centre.shape, generator=torch.Generator()) / 4)
    changed = {"query_projection": True, "late_interaction": True, "contrast": weights}
    return ClaraModel("made", replace(loaded, manifest=loaded.manifest.model_copy(update=changed)))


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> ClaraModel:
    """Contrasted at its second rate alone."""
    return contrasted(tiny_checkpoint, (0.0, STRONG))


def asked(model: ClaraModel, question: str, rate: int, *, quoted: bool = True) -> GenerationRequest:
    memories = tuple(model.compress([TEXT], rate=rate))
    return GenerationRequest(question, memories=memories, quote_from=(TEXT,) if quoted else ())


@torch.inference_mode()
def log_probabilities(model: ClaraModel, request: GenerationRequest, written: list[int]) -> torch.Tensor:
    """Of the next token, from one forward pass over everything."""
    embeds = model._generator.embeds(torch_model(model), request, Sampling(max_new_tokens=1))[None]
    with model._weights.acting_as("generator") as acting:
        if written:
            embeds = torch.cat([embeds, acting.get_input_embeddings()(torch.tensor([written]))], dim=1)
        scores: torch.Tensor = acting(inputs_embeds=embeds).logits[0, -1].log_softmax(dim=-1)
    return scores


def torch_model(model: ClaraModel) -> Any:  # noqa: ANN401 - transformers' model
    return model._network.adapters.bare()


def expected(model: ClaraModel, request: GenerationRequest, weight: float, tokens: int) -> list[int]:
    """Greedy tokens by the definition, without a cache."""
    memory = request.memories[0]
    centre = model._network.table.passage_centre(memory.rate)
    assert centre is not None
    blank = Memory(np.tile(centre.numpy(), (len(memory.values), 1)), memory.fingerprint, memory.rate, 0)
    quotations = Quotations(model._tokenizer, [TEXT])
    written: list[int] = []
    while len(written) < tokens:
        scores = log_probabilities(model, request, written)
        scores = scores - weight * log_probabilities(model, replace(request, memories=(blank,)), written)
        allowed = quotations.next_ids(written)
        if quotations.may_end(written) or not allowed:
            allowed |= {model._tokenizer.eos_token_id}
        best = max(sorted(allowed), key=lambda token: float(scores[token]))
        if best == model._tokenizer.eos_token_id:
            return written
        written.append(best)
    while not quotations.may_end(written):
        written.pop()  # cut off within a word
    return written


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_blank_counts_by_its_weight_at_its_rate(model: ClaraModel, question: str) -> None:
    for rate, weight in ((4, 0.0), (16, STRONG)):
        request = asked(model, question, rate)
        [answer] = model.generate_many([request], max_new_tokens=12)
        assert list(answer.token_ids) == expected(model, request, weight, 12)


def test_the_blank_changes_answers(model: ClaraModel, tiny_checkpoint: Path) -> None:
    plain = contrasted(tiny_checkpoint, ())
    requests = [asked(model, question, 16) for question in QUESTIONS]
    with_blank = model.generate_many(requests, max_new_tokens=12)
    assert [a.text for a in with_blank] != [a.text for a in plain.generate_many(requests, max_new_tokens=12)]


def test_rows_of_a_batch_are_contrasted_each_for_itself(model: ClaraModel) -> None:
    requests = [
        asked(model, QUESTIONS[0], 16),
        asked(model, QUESTIONS[2], 16, quoted=False),
        asked(model, QUESTIONS[1], 4),
        GenerationRequest(QUESTIONS[0], texts=(TEXT,), quote_from=(TEXT,)),
        asked(model, QUESTIONS[2], 16),
    ]
    together = model.generate_many(requests, max_new_tokens=12)
    assert together == [model.generate_many([request], max_new_tokens=12)[0] for request in requests]


def test_a_stream_is_contrasted_as_a_whole_answer_is(model: ClaraModel) -> None:
    request = asked(model, QUESTIONS[0], 16)
    [whole] = model.generate_many([request], max_new_tokens=12)
    assert "".join(model.stream(request, Sampling(max_new_tokens=12))).strip() == whole.text


def test_a_free_answer_is_not_contrasted(model: ClaraModel, tiny_checkpoint: Path) -> None:
    request = asked(model, QUESTIONS[0], 16, quoted=False)
    plain = contrasted(tiny_checkpoint, ())
    assert model.generate_many([request], max_new_tokens=8) == plain.generate_many([request], max_new_tokens=8)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"contrast": (0.3,), "late_interaction": True}, r"each of the rates \[4, 16\], got \[0.3\]"),
        ({"contrast": (0.0, 0.3)}, "needs late_interaction"),
        ({"contrast": (0.0, 1.0), "late_interaction": True}, "less than 1"),
        ({"contrast": (0.0, -0.1), "late_interaction": True}, "greater than or equal to 0"),
    ],
)
def test_a_manifest_with_a_contrast_that_cannot_be(model: ClaraModel, changed: dict[str, Any], fault: str) -> None:
    values = model.manifest.model_dump() | {"late_interaction": False} | changed
    with pytest.raises(ValidationError, match=fault):
        Manifest.model_validate(values)


def test_a_checkpoint_without_a_contrast_does_not_name_it(tiny_model: ClaraModel, model: ClaraModel) -> None:
    assert "contrast" not in tiny_model.manifest.model_dump()
    assert model.manifest.model_dump()["contrast"] == (0.0, STRONG)
    assert [model.manifest.contrast_weight(rate) for rate in (4, 16)] == [0.0, STRONG]
    assert tiny_model.manifest.contrast_weight(16) == 0.0
