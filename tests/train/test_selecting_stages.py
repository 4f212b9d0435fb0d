"""Stages ``end_to_end`` and ``retriever``: what the gradient reaches and how, what stays, and that it learns."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional
from train_cases import losses, made, passages, questions

from clara.config import CompressionConfig
from clara.data import DataRecord, PassageQA, QAPair
from clara.model import ClaraModel, checkpoint
from clara.model.backbone import padded_texts
from clara.model.create import Loaded
from clara.model.decoder import splice
from clara.model.network import Network
from clara.model.prompting import Prompter
from clara.train.batch import decoder_attention
from clara.train.examples import CandidateExample
from clara.train.log import TrainProgress
from clara.train.run import train
from clara.train.stages.base import Stage
from clara.train.stages.selecting import (
    CandidateBatch,
    EndToEndStage,
    RetrieverStage,
    _CandidateCollator,
    query_memories,
)
from clara.train.start import _question_memories

RATE, WINDOW, TAU = 16, 64, 0.05
TOPICS = ("tower", "bees", "river", "printing", "coffee", "chess")
DOCS = tuple(f"{topic.title()} {i * i}: the {topic} is number {i} of the list." for i, topic in enumerate(TOPICS))
ASKED = (
    CandidateExample("How high is the tower?", "330 metres", DOCS[:4], (0,)),
    CandidateExample("Who dances?", "bees", (DOCS[5], DOCS[1], DOCS[4], DOCS[3]), (1,)),
    CandidateExample("What flows, and where?", "the river", DOCS[2:6], (0, 3)),
)


@pytest.fixture
def network(make_network: Callable[[CompressionConfig], Loaded]) -> Loaded:
    """A network whose reasoner differs from its compressor and is all that has gradients."""
    loaded = make_network(
        CompressionConfig(window_tokens=WINDOW, rates=(4, RATE), residual=True, pooled_input=True, attention="span")
    )
    loaded.network.adapters.reset_query_reasoner(seed=None)
    for parameter in loaded.network.parameters():
        parameter.requires_grad = False
    with torch.no_grad():
        for parameter in reasoner(loaded.network):
            parameter.mul_(1.1).requires_grad_()
    return loaded


def reasoner(network: Network) -> list[torch.nn.Parameter]:
    return network.adapters.parameters_of("query_reasoner")


def compressed(loaded: Loaded) -> Callable[[Sequence[str], int], Tensor]:
    def memories(texts: Sequence[str], rate: int) -> Tensor:
        ids, mask = padded_texts([Prompter(loaded.base.tokenizer).plain(text)[:WINDOW] for text in texts])
        with torch.no_grad():
            return loaded.network.encode("compressor", ids, mask, rate=rate).memory.half()

    return memories


def taking(top_k: int, temperature: float = TAU) -> EndToEndStage:
    stage = made("end-to-end", Path("base"), start="x", top_k=top_k, temperature=temperature)
    assert isinstance(stage, EndToEndStage)
    return stage


def retrieving(temperature: float = TAU) -> RetrieverStage:
    stage = made("retriever", Path("base"), start="x", temperature=temperature)
    assert isinstance(stage, RetrieverStage)
    return stage


def batch_of(loaded: Loaded, *, top_k: int = 2, answers: bool = True, cached: bool = True) -> CandidateBatch:
    memories = compressed(loaded) if cached else None
    prompter, selected = Prompter(loaded.base.tokenizer), top_k if answers else 0
    collator = _CandidateCollator(prompter, window_tokens=WINDOW, top_k=selected, memories=memories)
    return collator(ASKED, rate=RATE)


def slow_loss(loaded: Loaded, question: CandidateExample, top_k: int) -> tuple[Tensor, int]:
    """Section 5 of clara.md for one question, slot by slot and passage by passage; sum of nats, and labels."""
    network, prompter = loaded.network, Prompter(loaded.base.tokenizer)
    ids = torch.tensor([prompter.plain(question.question)])
    q = network.encode("query_reasoner", ids, torch.ones_like(ids).bool(), rate=RATE).memory[0].flatten()
    memories = [compressed(loaded)([text], RATE)[0].float() for text in question.candidates]
    s = torch.stack([q @ m.flatten() / (q.norm() * m.norm()) for m in memories])
    order = sorted(range(len(memories)), key=lambda i: -float(s[i].detach()))
    taken = torch.zeros(len(memories))
    selected = []
    for j in range(top_k):
        soft = torch.softmax(s / TAU + torch.log(1 - taken), dim=0)
        hard = torch.zeros(len(memories))
        hard[order[j]] = 1.0
        weights = hard + soft - soft.detach()
        selected.append(torch.stack([w * m for w, m in zip(weights, memories, strict=True)]).sum(dim=0))
        taken = taken + hard
    background = prompter.background([WINDOW // RATE] * top_k)
    reply = [*prompter.plain(question.reply), prompter.eos]
    prompt = [*background.ids, *prompter.question(question.question)]
    embeds = network.embed(torch.tensor([prompt + reply])).clone()
    embeds[0, list(background.slots)] = torch.cat(selected)
    with network.adapters.use("generator"):
        logits = network.adapters.bare()(inputs_embeds=embeds).logits[0]
    return functional.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(reply), reduction="sum"), len(reply)


def test_memories_of_many_questions_are_those_of_each_alone(network: Loaded) -> None:
    asked = [f"{question.question} Number {i}?" * (1 + i % 3) for i in range(12) for question in ASKED]
    assert len(asked) > 32, "more than a batch"
    made = torch.cat(list(_question_memories(network, asked, rate=RATE)))
    for question, memory in zip(asked, made, strict=True):
        ids = torch.tensor([Prompter(network.base.tokenizer).plain(question)[:WINDOW]])
        with torch.no_grad():
            alone = network.network.encode("query_reasoner", ids, torch.ones_like(ids).bool(), rate=RATE).memory[0]
        torch.testing.assert_close(memory, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top_k", [1, 3])
def test_loss_and_gradient_equal_the_slow_version(network: Loaded, top_k: int) -> None:
    found = taking(top_k).loss(network.network, batch_of(network, top_k=top_k))
    parts = [slow_loss(network, question, top_k) for question in ASKED]
    wanted = torch.stack([part for part, _ in parts]).sum() / sum(count for _, count in parts)
    torch.testing.assert_close(found.total, wanted, rtol=1e-5, atol=1e-5)
    fast = torch.autograd.grad(found.total, reasoner(network.network))
    slow = torch.autograd.grad(wanted, reasoner(network.network))
    scale = max(float(gradient.abs().max()) for gradient in slow)
    assert scale > 0
    for left, right in zip(fast, slow, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4 * scale)


def test_the_gradient_goes_through_the_soft_weights_only(network: Loaded) -> None:
    batch = batch_of(network)
    choice = taking(2).choose(network.network, batch)
    exact = batch.memories.float()[batch.candidates.gather(1, choice.indices)]
    assert torch.equal(choice.memories, exact), "forward takes the hard top-k, to the bit"
    assert choice.memories.requires_grad
    plain = splice(network.network.embed(batch.decoder_ids), batch.slots, exact.flatten(0, 2))
    hidden = network.network.decode(plain, decoder_attention(batch.segments), batch.positions)
    assert not hidden.requires_grad, "without the selector nothing reaches the reasoner"


def test_train_compressor_encodes_under_gradient(network: Loaded) -> None:
    cached, fresh = batch_of(network), batch_of(network, cached=False)
    assert fresh.memories.shape[0] == 0
    assert fresh.text_ids.shape[0] == len(DOCS)
    compressor = network.network.adapters.parameters_of("compressor")
    for parameter in compressor:
        parameter.requires_grad = True
    loss = taking(2).loss(network.network, fresh).total
    with torch.no_grad():
        same = taking(2).loss(network.network, cached).total
    torch.testing.assert_close(loss.detach(), same, rtol=2e-3, atol=2e-3)
    assert any(float(g.abs().max()) > 0 for g in torch.autograd.grad(loss, compressor))


def test_selection_learns_which_document_explains_the_answer(network: Loaded) -> None:
    """The target is explained by one document only, another than the question looks like at first."""
    batch = replace(batch_of(network, top_k=1), candidates=torch.arange(6).repeat(3, 1))
    gold = torch.tensor([3, 0, 4])
    wanted = batch.memories.float()[gold][:, None]
    optimizer = torch.optim.Adam(reasoner(network.network), lr=0.01)
    picks = []
    for _ in range(60):
        choice = taking(1, 0.1).choose(network.network, batch)
        picks.append((choice.indices[:, 0] == gold).sum().item())
        optimizer.zero_grad()
        (choice.memories - wanted).pow(2).mean().backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()
    assert picks[0] < 2
    assert picks[-1] == 3


def test_retriever_loss_equals_the_slow_version(network: Loaded) -> None:
    batch = batch_of(network, answers=False)
    assert not batch.labels.numel()
    found = retrieving().loss(network.network, batch)
    total = 0.0
    for question, query in zip(ASKED, query_memories(network.network, batch).detach(), strict=True):
        every = [compressed(network)([text], RATE)[0].float() for text in DOCS]
        cosines = [float(functional.cosine_similarity(query.flatten(), m.flatten(), dim=0)) for m in every]
        weights = [math.exp(c / TAU) for c in cosines]
        gold = {question.candidates[i] for i in question.positives}
        right = sum(w for w, text in zip(weights, DOCS, strict=True) if text in gold)
        total -= math.log(right / sum(weights))
    assert float(found.total.detach()) == pytest.approx(total / 3, rel=1e-4)
    assert any(float(g.abs().max()) > 0 for g in torch.autograd.grad(found.total, reasoner(network.network)))


def test_a_part_of_a_batch_keeps_the_others_as_negatives(network: Loaded) -> None:
    prompter = Prompter(network.base.tokenizer)
    collator = _CandidateCollator(prompter, window_tokens=WINDOW, top_k=0, memories=compressed(network))
    whole, parts = collator(ASKED, rate=RATE), [collator(ASKED, rate=RATE, asked=[i]) for i in range(3)]
    assert all(part.memories.shape == whole.memories.shape for part in parts)
    with torch.no_grad():
        together = float(retrieving().loss(network.network, whole).total)
        alone = [float(retrieving().loss(network.network, part).total) for part in parts]
    assert sum(alone) / 3 == pytest.approx(together, rel=1e-4)


def test_retriever_raises_recall(network: Loaded) -> None:
    batch = batch_of(network, answers=False)
    optimizer = torch.optim.Adam(reasoner(network.network), lr=0.01)

    def recall() -> float:
        with torch.no_grad():
            choice = taking(1).choose(network.network, batch)
        rows = batch.candidates.gather(1, choice.indices)
        return float(batch.positives.gather(1, rows).float().mean())

    before = recall()
    for _ in range(40):
        optimizer.zero_grad()
        retrieving(0.1).loss(network.network, batch).total.backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()
    assert before < 1.0
    assert recall() == 1.0


def test_questions_are_read_at_the_rate_of_the_memories(network: Loaded) -> None:
    prompter = Prompter(network.base.tokenizer)
    collator = _CandidateCollator(prompter, window_tokens=WINDOW, top_k=1, memories=compressed(network))
    for rate in (4, RATE):
        batch = collator(ASKED, rate=rate)
        with torch.no_grad():
            assert query_memories(network.network, batch).shape[1] == batch.memories.shape[1] == WINDOW // rate
        assert int(batch.slots.sum()) == 3 * WINDOW // rate
        queries = int(batch.query_mask.sum()) + 3 * WINDOW // rate
        assert batch.tokens() == queries + int((batch.segments >= 0).sum())


def selecting(name: str, base: Path, start: Path, **values: Any) -> Stage:  # noqa: ANN401
    plain: dict[str, Any] = {"start": str(start), "candidates": 5, "evaluate_every": 6}
    return made(name, base, **plain | values)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


ADAPTER = "adapters/{}/adapter_model.safetensors"
PROJECTION = ("query_projection", "query_centre")
READ_OUT = ("query_bias", "query_gain", "query_residual_gain")
RECORDS: list[DataRecord] = [*questions(10), *passages(10)]


@pytest.mark.parametrize(
    ("name", "values", "trained"),
    [
        ("end-to-end", {"top_k": 2}, {"query_reasoner", "generator"}),
        (
            "end-to-end",
            {"top_k": 1, "train_compressor": True, "dtype": "fp32"},
            {"compressor", "query_reasoner", "generator"},
        ),
        ("retriever", {"reasoner_start": "random", "query_read_out": False}, {"query_reasoner"}),
        ("retriever", {}, {"query_reasoner"}),
        ("retriever", {"query_projection": True}, {"query_reasoner"}),
        ("end-to-end", {"top_k": 2, "query_projection": True}, {"query_reasoner", "generator"}),
        ("retriever", {"query_projection": True, "late_interaction": True}, {"query_reasoner"}),
        (
            "end-to-end",
            {"top_k": 2, "query_projection": True, "late_interaction": True},
            {"query_reasoner", "generator"},
        ),
    ],
)
def test_what_a_stage_leaves(
    name: str,
    values: dict[str, Any],
    trained: set[str],
    tiny_base: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    stage = selecting(name, tiny_base, tiny_checkpoint, steps=2, **values)
    cache = tmp_path / "cache"
    folder = train(stage, RECORDS, tmp_path / "run", cache=cache)
    before, after = files(tiny_checkpoint), files(folder)
    for role in ("compressor", "generator"):
        same = before[ADAPTER.format(role)] == after[ADAPTER.format(role)]
        assert same == (role not in trained), role
    table = load(after["memory.safetensors"])
    rows = [torch.equal(tensor, table[name]) for name, tensor in load(before["memory.safetensors"]).items()]
    assert all(rows) == ("compressor" not in trained)
    own = values.get("query_read_out", True)
    projected = PROJECTION if values.get("query_projection") else ()
    late = ("query_passage_centre",) if values.get("late_interaction") else ()
    assert {name for name in table if name.startswith("query_")} == {*(READ_OUT if own else ()), *projected, *late}
    assert all(not torch.equal(table[name], table[name.removeprefix("query_")]) for name in READ_OUT if own)
    assert ADAPTER.format("query_reasoner") in after
    manifest = checkpoint.read_manifest(folder)
    assert manifest.stage == stage.name == name.replace("-", "_")
    assert manifest.roles == ("compressor", "query_reasoner", "generator")
    assert manifest.trained["start"]["checkpoint"] == str(tiny_checkpoint)
    card = (folder / "README.md").read_text()
    reasoner_start = values.get("reasoner_start", "compressor")
    assert f"Started from `{tiny_checkpoint}` (stage `untrained`), the query reasoner from: {reasoner_start}." in card
    assert "| candidates | `5` |" in card
    assert "mse_weight" not in card, "what the stage does not read is not in its card"
    assert (cache / "memories").exists() == ("compressor" not in trained)
    model = ClaraModel.load(folder, dtype="fp32")
    assert model.latent_weight == 1.0
    [query], [memory] = model.encode_queries(["Where?"]), model.compress(["Where?"])
    assert (query.values != memory.values).any()
    one_vector = bool((query.values == query.values[0]).all())
    assert one_vector == bool(projected and not late), "one vector at every memory token, but for late interaction"
    assert manifest.late_interaction == (query.centre is not None) == bool(late)
    if query.centre is not None:
        np.testing.assert_array_equal(query.centre, table["query_passage_centre"][0].numpy())
        assert bool(query.centre.any())


def test_a_projection_is_gone_on_with_and_not_started_anew(
    tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    begun: dict[str, Any] = {"query_projection": True, "projection_learning_rate": 0.01}
    stage = selecting("retriever", tiny_base, tiny_checkpoint, steps=2, **begun)
    first = train(stage, RECORDS, tmp_path / "a", cache=cache)
    still: dict[str, Any] = {
        "reasoner_start": "checkpoint",
        "query_projection": True,
        "projection_learning_rate": 1e-12,
    }
    again = selecting("retriever", tiny_base, first, steps=1, save_every=1, **still)
    second = train(again, RECORDS, tmp_path / "b", cache=cache)
    before, after = (load(files(folder)["memory.safetensors"]) for folder in (first, second))
    torch.testing.assert_close(after["query_projection"], before["query_projection"], rtol=0, atol=1e-9)
    anew = selecting("retriever", tiny_base, first, steps=1, query_projection=True)
    fresh = train(anew, RECORDS, tmp_path / "c", cache=cache)
    assert not torch.equal(load(files(fresh)["memory.safetensors"])["query_projection"], before["query_projection"])
    dropped = train(selecting("retriever", tiny_base, first, steps=1), RECORDS, tmp_path / "d", cache=cache)
    assert "query_projection" not in load(files(dropped)["memory.safetensors"])


def test_the_documents_of_two_stages_are_compressed_once(
    tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    told: list[str] = []

    def tell(what: str, _done: int, _total: int) -> None:
        told.append(what)

    stage = selecting("retriever", tiny_base, tiny_checkpoint, steps=1, save_every=1)
    train(stage, RECORDS, tmp_path / "a", cache=cache, hub_progress=tell)
    assert "compressing the documents of this run" in told
    told.clear()
    retrieved: dict[str, Any] = {"reasoner_start": "checkpoint", "top_k": 1}
    again = selecting("end-to-end", tiny_base, tmp_path / "a" / "checkpoint", steps=1, **retrieved)
    folder = train(again, RECORDS, tmp_path / "b", cache=cache, hub_progress=tell)
    assert told == [], "the retriever's compressor is the same, and so are the records"
    old, new = (files(tmp_path / name / "checkpoint") for name in "ab")
    assert old[ADAPTER.format("compressor")] == new[ADAPTER.format("compressor")]
    assert checkpoint.read_manifest(folder).trained["start"]["stage"] == "retriever"


def killed_run(base: Path, start: Path, out: Path, cache: Path, step: int | None) -> None:
    """The run of the test below; hangs after a step so that it can be killed."""

    def hang(progress: TrainProgress) -> None:
        if progress.step == step:
            time.sleep(600)

    values: dict[str, Any] = {"top_k": 2, "save_every": 2, "evaluate_every": 2, "held_out_answers": 2}
    train(selecting("end-to-end", base, start, steps=4, **values), RECORDS, out, cache=cache, on_progress=hang)


def test_a_killed_end_to_end_run_goes_on_with_the_same_losses(
    tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    whole, out, cache = tmp_path / "whole", tmp_path / "killed", tmp_path / "cache"
    killed_run(tiny_base, tiny_checkpoint, whole, cache, None)
    command = [sys.executable, "-W", "ignore", __file__, *map(str, (tiny_base, tiny_checkpoint, out, cache, 3))]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not (out / "log.jsonl").is_file() or len(losses(out)) < 3:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    shutil.rmtree(cache)  # even the memories are made again as they were
    killed_run(tiny_base, tiny_checkpoint, out, cache, None)
    assert losses(out) == losses(whole)
    assert files(out / "checkpoint") == files(whole / "checkpoint")


def towns(count: int) -> list[DataRecord]:
    """Passages that say which town a thing is in; the question names the thing."""
    return [
        PassageQA(f"t{i}", "t", "", f"Thing {i} is in town {i * 7 % 10}.", (QAPair(f"Where is thing {i}?", ("x",)),))
        for i in range(count)
    ]


def fall(base: Path, start: Path, out: Path, **values: Any) -> float:  # noqa: ANN401
    """Share of the loss that is left when the same six questions were asked thirty times."""
    plain: dict[str, Any] = {"batch_size": 6, "accumulation": 1, "held_out": 0, "dtype": "fp32", "temperature": 0.1}
    rates: dict[str, Any] = {"learning_rate": 0.02, "rate_weights": (1, 0)}
    stage = selecting("retriever", base, start, steps=30, save_every=30, **plain | rates | values)
    train(stage, towns(6), out, cache=out)
    log = losses(out)
    return log[-1]["cross_entropy"] / log[0]["cross_entropy"]


def test_a_read_out_of_its_own_lets_the_reasoner_move(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    own = fall(tiny_base, tiny_checkpoint, tmp_path / "own")
    shared = fall(tiny_base, tiny_checkpoint, tmp_path / "shared", query_read_out=False)
    assert 0.9 < shared < 1.0
    assert own < 0.85


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:5]]
    killed_run(folders[0], folders[1], folders[2], folders[3], int(sys.argv[5]))
