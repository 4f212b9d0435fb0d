"""How likely a question is after each memory: against plain cross-entropy, and what an ask does with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from clara import prompts
from clara.errors import InputError, MemoryMismatchError
from clara.model import ClaraModel
from clara.pipeline import Clara

TEXTS = (
    "The Alder pump was installed in 1974. Its relief valve opens at 40 bar.",
    "The Birch pump is painted with the code BX_SEAL_7 and is switched on with --prime=slow.",
    "Bees dance to tell the others where flowers are.",
)
QUESTION = "At how many bar does the relief valve open?"


@torch.inference_mode()
def test_it_is_the_cross_entropy_of_the_questions_tokens(tiny_model: ClaraModel) -> None:
    memories = tiny_model.compress(TEXTS)
    prompter = tiny_model._prompter
    with tiny_model._weights.acting_as("generator") as model:
        expected = []
        for memory in memories:
            background = prompter.background([len(memory.values)])
            asked = prompter.plain(QUESTION)
            before = [*background.ids, *prompter.instruction(prompts.ASK_INSTRUCTION)]
            ids = torch.tensor([[*before, *asked]])
            embeds = model.get_input_embeddings()(ids).clone()
            embeds[0, list(background.slots)] = torch.from_numpy(memory.values.copy()).to(embeds.dtype)
            logits = model(inputs_embeds=embeds).logits[0, len(before) - 1 : -1].float()
            expected.append(-float(cross_entropy(logits, torch.tensor(asked), reduction="sum")))
    found = tiny_model.question_likelihoods(f" {QUESTION} ", memories)
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(set(found)) == len(TEXTS)


def test_what_cannot_be_scored_is_refused(tiny_model: ClaraModel) -> None:
    memory = tiny_model.compress(TEXTS[:1])[0]
    assert tiny_model.question_likelihoods(QUESTION, []) == []
    with pytest.raises(MemoryMismatchError):
        tiny_model.question_likelihoods(QUESTION, [replace(memory, fingerprint="0" * 16)])
    with pytest.raises(InputError, match="empty"):
        tiny_model.question_likelihoods(" ", [memory])


def test_an_ask_reads_the_passage_that_the_question_is_likeliest_after(tiny_model: ClaraModel, tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        rag.add(sorted(tmp_path.glob("*.txt")))
        found = [hit.passage.id for hit in rag.search(QUESTION, k=3)]
        hits = {hit.passage.id: hit for hit in rag.search(QUESTION, k=3)}
        scores = dict(
            zip(found, tiny_model.question_likelihoods(QUESTION, [hits[i].memory for i in found]), strict=True)
        )

        def cited(rerank: int, k: int = 3) -> list[str]:
            answer = rag.ask(QUESTION, k, max_new_tokens=1, rerank=rerank)
            return [citation.passage_id for citation in answer.citations]

        assert cited(rerank=0) == found
        assert cited(rerank=3) == sorted(found, key=lambda name: -scores[name])
        assert cited(rerank=2) == [*sorted(found[:2], key=lambda name: -scores[name]), found[2]]
        assert cited(rerank=3, k=1) == cited(rerank=3)[:1], "those that are put in order are found, whatever k is"
        with pytest.raises(InputError, match="rerank"):
            rag.ask(QUESTION, rerank=-1)
