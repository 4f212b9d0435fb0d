"""Stage ``end-to-end`` by likelihoods: what the generator says of a candidate, what is learnt of it, what is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional
from train_cases import losses, made, passages, questions

from clara.config import CompressionConfig
from clara.errors import ConfigError, TrainingError
from clara.model.backbone import padded_texts
from clara.model.create import Loaded
from clara.model.losses import candidate_kl
from clara.model.prompting import Prompter
from clara.train.batch import Collator
from clara.train.examples import CandidateExample
from clara.train.run import train
from clara.train.stages.selecting import _CandidateCollator, query_memories
from clara.train.teaching import AnswerLikelihoods, _KeptValues

RATE, WINDOW, TAU = 16, 64, 0.05
DOCS = tuple(f"{name} is number {i * i} of the list." for i, name in enumerate(("Tower", "Bees", "River", "Coffee")))
ASKED = (
    CandidateExample("How high is the tower?", "330 metres", DOCS[:3], (0,)),
    CandidateExample("Who dances, and what for?", "bees", (DOCS[3], DOCS[1], DOCS[0]), (1,)),
)


@pytest.fixture
def network(make_network: Callable[[CompressionConfig], Loaded]) -> Loaded:
    """A network whose query reasoner alone has gradients."""
    loaded = make_network(CompressionConfig(window_tokens=WINDOW, rates=(4, RATE), residual=True, attention="span"))
    loaded.network.adapters.reset_query_reasoner(seed=None)
    for parameter in loaded.network.parameters():
        parameter.requires_grad = False
    for parameter in loaded.network.adapters.parameters_of("query_reasoner"):
        parameter.requires_grad = True
    return loaded


def memories_of(loaded: Loaded) -> Callable[[Sequence[str], int], Tensor]:
    def memories(texts: Sequence[str], rate: int) -> Tensor:
        ids, mask = padded_texts([Prompter(loaded.base.tokenizer).plain(text)[:WINDOW] for text in texts])
        with torch.no_grad():
            return loaded.network.encode("compressor", ids, mask, rate=rate).memory.half()

    return memories


def likelihoods(loaded: Loaded, folder: Path) -> AnswerLikelihoods:
    collator = Collator(Prompter(loaded.base.tokenizer), window_tokens=WINDOW)
    return AnswerLikelihoods(loaded, memories_of(loaded), folder, collator=collator)


def slow_likelihood(loaded: Loaded, example: CandidateExample, text: str) -> float:
    """Of an answer given one passage, by the whole model on the whole prompt, token by token."""
    network, prompter = loaded.network, Prompter(loaded.base.tokenizer)
    background = prompter.background([WINDOW // RATE])
    reply = [*prompter.plain(example.reply), prompter.eos]
    prompt = [*background.ids, *prompter.question(example.question)]
    embeds = network.embed(torch.tensor([prompt + reply])).clone()
    embeds[0, list(background.slots)] = memories_of(loaded)([text], RATE)[0].float()
    with torch.no_grad(), network.adapters.use("generator"):
        logits = network.adapters.bare()(inputs_embeds=embeds).logits[0, len(prompt) - 1 : -1]
    return sum(float(row.log_softmax(-1)[token]) for row, token in zip(logits, reply, strict=True))


def test_likelihoods_equal_the_slow_version(network: Loaded, tmp_path: Path) -> None:
    found = likelihoods(network, tmp_path)(ASKED, RATE)
    wanted = torch.tensor([[slow_likelihood(network, one, text) for text in one.candidates] for one in ASKED])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
    assert float(wanted.std()) > 0.1, "passages differ"


def test_an_answer_is_scored_once_for_all_runs_of_a_generator(
    network: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = likelihoods(network, tmp_path)(ASKED, RATE)
    again = likelihoods(network, tmp_path)
    monkeypatch.setattr(AnswerLikelihoods, "_score", lambda *_: pytest.fail("asked again"))
    assert torch.equal(again(ASKED[1:], RATE), first[1:])
    monkeypatch.undo()
    with torch.no_grad():
        for parameter in network.network.adapters.parameters_of("generator"):
            parameter.mul_(1.5)
    assert not torch.equal(likelihoods(network, tmp_path)(ASKED, RATE), first), "another generator"
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_kl_and_its_gradient_equal_the_slow_version() -> None:
    scores = torch.tensor([[0.3, 0.1, 0.2], [0.0, 0.05, -0.1]], requires_grad=True)
    told = torch.tensor([[-3.0, -1.0, -6.0], [-2.0, -2.5, -9.0]])
    found = candidate_kl(scores, told, temperature=TAU, likelihood_temperature=2.0)
    [gradient] = torch.autograd.grad(found, scores)
    total, wanted = 0.0, torch.zeros(2, 3)
    for row in range(2):
        p = [math.exp(float(x) / 2.0) for x in told[row]]
        q = [math.exp(float(x) / TAU) for x in scores[row].detach()]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
        wanted[row] = torch.tensor([(b - a) / TAU / 2 for a, b in zip(p, q, strict=True)])
    assert float(found.detach()) == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_loss_and_gradient_of_the_reasoner_equal_the_slow_version(network: Loaded, tmp_path: Path) -> None:
    asked = _CandidateCollator(
        Prompter(network.base.tokenizer),
        window_tokens=WINDOW,
        top_k=0,
        memories=memories_of(network),
        likelihoods=likelihoods(network, tmp_path),
    )
    batch = asked(ASKED, rate=RATE)
    reasoner = network.network.adapters.parameters_of("query_reasoner")
    stage = made("end-to-end", Path("base"), start="x", learn_from="likelihoods", temperature=TAU)
    found = stage.loss(network.network, batch).total
    total = torch.zeros(())
    for question, query in zip(ASKED, query_memories(network.network, batch), strict=True):
        every = [memories_of(network)([text], RATE)[0].float().flatten() for text in question.candidates]
        q = torch.stack([functional.cosine_similarity(query.flatten(), m, dim=0) for m in every]).div(TAU).softmax(0)
        p = torch.tensor([slow_likelihood(network, question, text) for text in question.candidates]).softmax(0)
        total = total + (p * (p.log() - q.log())).sum() / 2
    torch.testing.assert_close(found, total, rtol=1e-3, atol=1e-4)
    fast, slow = (torch.autograd.grad(loss, reasoner) for loss in (found, total))
    scale = max(float(gradient.abs().max()) for gradient in slow)
    assert scale > 0
    for left, right in zip(fast, slow, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-3 * scale)


def test_a_run_finds_what_the_generator_answers_from(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The distance to the generator's distribution falls, on the questions that are asked again and again."""
    values: dict[str, Any] = {
        "start": str(tiny_checkpoint),
        "candidates": 5,
        "learn_from": "likelihoods",
        "temperature": 0.05,
        "likelihood_temperature": 0.1,
        "batch_size": 6,
        "accumulation": 1,
        "held_out": 0,
        "dtype": "fp32",
        "learning_rate": 0.02,
        "rate_weights": (1, 0),
        "steps": 24,
        "save_every": 24,
    }
    stage = made("end-to-end", tiny_base, **values)
    folder = train(stage, passages(6), tmp_path / "run", cache=tmp_path / "cache")
    log = [step["cross_entropy"] for step in losses(tmp_path / "run")]
    assert sum(log[-6:]) < 0.7 * sum(log[:6])
    before, after = (
        {role: load((path / "adapters" / role / "adapter_model.safetensors").read_bytes()) for role in ROLES}
        for path in (tiny_checkpoint, folder)
    )
    for role in ROLES:
        assert all(torch.equal(tensor, after[role][name]) for name, tensor in before[role].items()), role
    [kept] = (tmp_path / "cache" / "kept").glob("likelihoods-*.jsonl")
    assert len(kept.read_text().splitlines()) <= 6 * 2 * 6, "each pair once, however often it is drawn"


ROLES = ("compressor", "generator")


def test_a_run_by_likelihoods_is_measured_by_recall(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    values = {"start": str(tiny_checkpoint), "candidates": 4, "learn_from": "likelihoods", "steps": 1}
    train(made("end-to-end", tiny_base, **values), questions(8), tmp_path / "run", cache=tmp_path)
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["validation"]
    assert last["f1"] is None
    assert 0 <= last["recall_at_1"] <= last["recall_at_5"] <= 1


def test_what_likelihoods_cannot_train_is_refused(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    values = {"start": str(tiny_checkpoint), "candidates": 4, "learn_from": "likelihoods", "train_compressor": True}
    with pytest.raises(ConfigError, match="train_compressor is set"):
        train(made("end-to-end", tiny_base, **values), questions(8), tmp_path / "run", cache=tmp_path)


def test_values_are_kept_by_several_and_torn_lines_made_again(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "some.jsonl"
    one, other = _KeptValues(path), _KeptValues(path)
    assert one.missing(["a", "b", "a"]) == ["a", "b"]
    one.add({"a": 1.5})
    other.add({"a": 2.5, "b": ["x", True]})
    assert (other["a"], other["b"]) == (1.5, ["x", True])
    one.add({"c": None})
    assert (one["b"], len(one)) == (["x", True], 3)
    with path.open("a") as file:
        file.write('{"key": "d", "val')
    again = _KeptValues(path)
    assert again.missing(["c", "d"]) == ["d"]
    again.add({"d": 4})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b", "c", "d"]
    assert _KeptValues.key(1, "a") != _KeptValues.key("1", "a")
    path.chmod(0o644)
    path.unlink()
    path.mkdir()
    with pytest.raises(TrainingError, match="cannot be kept"):
        _KeptValues(path).add({"a": 1})
