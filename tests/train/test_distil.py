"""Distillation: the teacher's answers and its distribution equal what the reader itself says, step by step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from train_cases import losses, made, passages, questions
from transformers import AutoModelForCausalLM

from clara import prompts
from clara.data import DataRecord
from clara.errors import CheckpointError
from clara.model import checkpoint
from clara.model.create import Loaded
from clara.model.prompting import Prompter
from clara.model.reader import TextReader
from clara.records import GenerationRequest
from clara.train.batch import Batch, Collator
from clara.train.data import divide
from clara.train.examples import Example, Target
from clara.train.objective import generation_loss
from clara.train.run import train
from clara.train.stages.base import Stage
from clara.train.teaching import TeacherAnswers, add_teacher, distilling, teacher_fingerprint

RATE = 16
EXAMPLES = (
    Example(
        ("The tower is 330 metres high.", "Bees dance. " * 30),
        (
            Target(prompts.QUESTION + "How high?", "330 metres"),
            Target(prompts.REPEAT_INSTRUCTION, "The tower is 330", ends=False, weight=0.25),
            Target(prompts.QUESTION + "Who dances?", "bees"),
        ),
    ),
    Example(("Gutenberg printed in Mainz.",), (Target(prompts.REPEAT_INSTRUCTION, "Gutenberg printed"),)),
    Example(("Coffee grows.",), (Target(prompts.QUESTION + "What grows?", "coffee"),)),
)


@pytest.fixture(scope="module")
def teacher(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader whose adapter changes every answer."""
    out = tmp_path_factory.mktemp("teacher")
    values: dict[str, Any] = {"steps": 4, "learning_rate": 0.05, "held_out": 0, "rate_weights": ()}
    return train(made("reader", tiny_base, **values), passages(12), out, cache=out)


def distilled(name: str, base: Path, teacher: Path, **values: Any) -> Stage:  # noqa: ANN401
    plain: dict[str, Any] = {"targets": "both", "teacher": str(teacher), "dtype": "fp32"}
    return made(name, base, **plain | values)


@pytest.fixture(scope="module")
def student(tiny_base: Path, teacher: Path) -> Loaded:
    stage = distilled("scp", tiny_base, teacher)
    loaded = stage.network(divide(passages(12), stage), tiny_base, "cpu", None)
    with torch.no_grad():
        for role in ("compressor", "generator"):
            for parameter in loaded.network.adapters.parameters_of(role):
                parameter.copy_(torch.linspace(-0.2, 0.2, parameter.numel()).roll(3).reshape(parameter.shape))
    loaded.network.eval()
    return loaded


def batch_of(student: Loaded, examples: Sequence[Example] = EXAMPLES) -> Batch:
    collator = Collator(Prompter(student.base.tokenizer), window_tokens=64)
    return distilling(collator, taught=collator)(examples, rate=RATE)


def slow_kl(student: Loaded, teacher: Path, base: Path) -> Tensor:
    """KL of every question's reply, target by target and token by token, the teacher by PEFT alone; a sum."""
    network, prompter = student.network, Prompter(student.base.tokenizer)
    reader = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), teacher).eval()
    total = torch.zeros(())
    for example in EXAMPLES:
        memories = []
        for text in example.texts:
            ids = torch.tensor([prompter.plain(text)[:64]])
            memories.append(network.encode("compressor", ids, torch.ones_like(ids).bool(), rate=RATE).memory[0])
        for target in example.targets:
            if not target.instruction.startswith(prompts.QUESTION):
                continue
            question = target.instruction.removeprefix(prompts.QUESTION)
            reply = [*prompter.plain(target.reply), prompter.eos]
            text_prompt = prompter.from_passages(question, [prompter.cut(text, 64) for text in example.texts]).ids
            with torch.no_grad():
                wanted = reader(torch.tensor([[*text_prompt, *reply]])).logits[0, len(text_prompt) - 1 : -1]
            background = prompter.background([64 // RATE] * len(example.texts))
            prompt = [*background.ids, *prompter.instruction(target.instruction)]
            embeds = network.embed(torch.tensor([prompt + reply])).clone()
            embeds[0, list(background.slots)] = torch.cat(memories)
            with network.adapters.use("generator"):
                given = network.adapters.bare()(inputs_embeds=embeds).logits[0, len(prompt) - 1 : -1]
            for p, q in zip(wanted.softmax(-1), given.softmax(-1), strict=True):
                total = total + (p * (p.log() - q.log())).sum()
    return total


def test_kl_equals_the_slow_version(student: Loaded, teacher: Path, tiny_base: Path) -> None:
    batch = batch_of(student)
    plain = generation_loss(student.network, batch, mse_weight=0.0)
    with_kl = generation_loss(student.network, batch, mse_weight=0.0, kl_weight=2.0)
    slow = slow_kl(student, teacher, tiny_base) / batch.weights.sum()
    assert float(slow.detach()) > 0.01
    torch.testing.assert_close(with_kl.total - plain.total, 2.0 * slow, rtol=1e-3, atol=1e-5)
    generator = student.network.adapters.parameters_of("generator")
    fast = torch.autograd.grad(with_kl.total - plain.total, generator)
    wanted = torch.autograd.grad(2.0 * slow, generator)
    scale = max(float(gradient.abs().max()) for gradient in wanted)
    for left, right in zip(fast, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-3 * scale)


def test_the_teacher_has_no_gradient_and_is_not_saved(student: Loaded, tiny_base: Path, teacher: Path) -> None:
    named = dict(student.network.named_parameters())
    own = [parameter for name, parameter in named.items() if ".teacher." in name]
    assert own
    assert not any(parameter.requires_grad for parameter in own)
    trained = {name for name, parameter in named.items() if parameter.requires_grad}
    assert {name for name in named if "lora_" in name and ".teacher." not in name} <= trained
    assert student.network.adapters.roles == ("compressor", "generator")
    assert teacher_fingerprint(student, str(teacher)) == TextReader.load(teacher, cache=tiny_base).fingerprint


def test_a_batch_without_questions_has_no_teacher(student: Loaded) -> None:
    batch = batch_of(student, EXAMPLES[1:2])
    assert batch.teaching is None
    losses_ = generation_loss(student.network, batch, mse_weight=0.0, kl_weight=1.0)
    assert torch.equal(losses_.total, losses_.cross_entropy)
    whole = batch_of(student)
    assert whole.teaching is not None
    assert whole.tokens() == sum(
        int(part) for part in (whole.text_mask.sum(), (whole.segments >= 0).sum(), whole.teaching.sequences.tokens())
    )


def test_answers_are_the_readers_and_made_once(student: Loaded, teacher: Path, tiny_base: Path, tmp_path: Path) -> None:
    mark = teacher_fingerprint(student, str(teacher))
    path = tmp_path / f"answers-{mark}.jsonl"

    def answers(fingerprint: str = mark) -> TeacherAnswers:
        return TeacherAnswers(student, tmp_path, fingerprint=fingerprint, window_tokens=64, bf16=False)

    made = answers()(EXAMPLES)
    prompter = Prompter(student.base.tokenizer)
    reader = TextReader.load(teacher, cache=tiny_base, dtype="fp32")
    for before, after in zip(EXAMPLES, made, strict=True):
        assert after.texts == before.texts
        for old, new in zip(before.targets, after.targets, strict=True):
            if not old.instruction.startswith(prompts.QUESTION):
                assert new == old, "restatements stay"
                continue
            texts = tuple(prompter.cut(text, 64) for text in before.texts)
            request = GenerationRequest(old.instruction.removeprefix(prompts.QUESTION), texts=texts)
            [said] = reader.generate_many([request], max_new_tokens=32)
            assert (new.reply, new.ends) == (
                (said.text, said.finish_reason == "stop") if said.text else (old.reply, True)
            )
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    first = json.loads(lines[0])
    path.write_text(json.dumps(first | {"value": ["from the file", True]}) + "\n" + lines[1][:-9])
    again = answers()(EXAMPLES[:1])[0]
    assert again.targets[0].reply == "from the file"
    assert again.targets[2] == made[0].targets[2], "the torn line was made again"
    assert len(path.read_text().splitlines()) == 2
    assert answers("another")(EXAMPLES[:1])[0].targets[0].reply != "from the file"


@pytest.mark.parametrize(("targets", "kl_weight"), [("teacher", 0.0), ("teacher", 1.0), ("both", 1.0)])
def test_a_distilled_run(targets: str, kl_weight: float, tiny_base: Path, teacher: Path, tmp_path: Path) -> None:
    records: list[DataRecord] = [*passages(8), *questions(6)]
    values: dict[str, Any] = {"steps": 2, "save_every": 1, "held_out_answers": 0}
    stage = distilled("instruct", tiny_base, teacher, targets=targets, kl_weight=kl_weight, **values)
    folder = train(stage, records, tmp_path / "run", cache=tmp_path)
    gold = train(made("instruct", tiny_base, dtype="fp32", **values), records, tmp_path / "gold", cache=tmp_path)
    manifest = checkpoint.read_manifest(folder)
    assert manifest.roles == ("compressor", "generator")
    assert manifest.trained["teacher"]["reader"] == str(teacher)
    assert "teacher" not in checkpoint.read_manifest(gold).trained
    assert len(list((tmp_path / "kept").glob("answers-*.jsonl"))) == (targets == "teacher")
    one, other = losses(tmp_path / "run"), losses(tmp_path / "gold")
    assert (one[0]["cross_entropy"] == pytest.approx(other[0]["cross_entropy"])) == (targets == "both")
    assert one[1]["cross_entropy"] != pytest.approx(other[1]["cross_entropy"], rel=1e-6), "another loss"
    assert not (folder / "adapters" / "teacher").exists()


def test_a_teacher_of_another_base_is_refused(student: Loaded, teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "reader"
    other.mkdir()
    for path in teacher.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((other / "reader.json").read_text())
    (other / "reader.json").write_text(json.dumps(manifest | {"base_identity": "f" * 16}))
    with pytest.raises(CheckpointError, match="was trained on"):
        add_teacher(student, str(other))


def test_token_kl_of_one_distribution_is_zero() -> None:
    from clara.model.losses import token_kl  # noqa: PLC0415

    logits = torch.from_numpy(np.linspace(-2, 3, 12).reshape(3, 4))
    assert float(token_kl(logits, logits + 5.0, torch.ones(3))) == pytest.approx(0.0, abs=1e-6)
    other = logits.flip(1)
    wanted = functional.kl_div(other.log_softmax(1), logits.softmax(1), reduction="none").sum(1)
    found = float(token_kl(logits, other, torch.tensor([1.0, 0.5, 0.0])))
    assert found == pytest.approx(float(wanted[0] + 0.5 * wanted[1]), rel=1e-5)
