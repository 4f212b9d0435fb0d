"""Readers: the prompt is ``ClaraModel``'s for text and for nothing, and what is trained is what answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from train_cases import changed, losses, made, passages, questions
from transformers import AutoModelForCausalLM

from clara import prompts
from clara.config import CompressionConfig
from clara.data import DataRecord, MultiHop, PassageQA
from clara.errors import CheckpointError, InputError
from clara.model import ClaraModel, Sampling
from clara.model.backbone import ADAPTER, load_base
from clara.model.create import Loaded
from clara.model.prompting import Prompter
from clara.model.reader import MANIFEST, TextReader, find_reader
from clara.records import GenerationRequest
from clara.train.batch import Batch, Collate
from clara.train.data import PlannedBatches, Surroundings, TrainingData, divide
from clara.train.examples import Example, Target
from clara.train.objective import _quoted_loss, reply_logits
from clara.train.run import train
from clara.train.stages.base import Stage

Context = Literal["text", "none"]
TEXTS = ("The tower is 330 metres high.", "Bees dance " * 40)


def reading(base: Path, **values: Any) -> Stage:  # noqa: ANN401
    return made("reader", base, **{"steps": 2, "evaluate_every": 2} | values)


def reading_collator(stage: Stage) -> tuple[Collate, Prompter]:
    """What makes the batches of an untrained reader, and the prompts of its base model."""
    loaded = stage.network(TrainingData({}, [], {}), Path(stage.config.base), "cpu", None)
    return stage.collator(loaded, None), Prompter(loaded.base.tokenizer)


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A reader of text and one of nothing."""
    out = tmp_path_factory.mktemp("readers")
    return {
        context: train(reading(tiny_base, reader_context=context), passages(12), out / context, cache=out)
        for context in ("text", "none")
    }


def test_a_reader_goes_on_from_another_and_learns_to_say_that_nothing_is_found(
    folders: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    asked = questions(1)[0]
    assert isinstance(asked, MultiHop)
    records = [*passages(12), replace(asked, answers=(prompts.NO_ANSWER,), gold=())]
    further = reading(tiny_base, start=str(folders["text"]), unanswered=0.5, learning_rate=1e-9)
    folder = train(further, records, tmp_path / "further", cache=tmp_path)
    assert [json.loads((place / MANIFEST).read_text())["refuses"] for place in (folder, folders["text"])] == [
        True,
        False,
    ]
    own, old = (load_file(place / ADAPTER) for place in (folder, folders["text"]))
    assert all(torch.allclose(own[name], old[name], atol=1e-6) for name in own), "it began with the other's weights"
    around, rng = Surroundings(divide(records, further)), np.random.default_rng(0)
    drawn = [further.example(record, rng, around) for record in records for _ in range(9)]
    replies = {target.reply for example in drawn if isinstance(example, Example) for target in example.targets}
    assert {prompts.NO_ANSWER, "iron"} < replies


def test_a_reader_learns_to_judge_the_answers_of_the_one_before(
    folders: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    further = reading(tiny_base, start=str(folders["text"]), judged=True, learning_rate=1e-3)
    loaded = further.network(TrainingData({}, [], {}), tiny_base, "cpu", None)
    prompter = Prompter(loaded.base.tokenizer)
    answered = Target(prompts.QUESTION + "How high?", "330 metres", accepted=("330 metres", "330"))
    refused = Target(prompts.QUESTION + "How old?", prompts.NO_ANSWER)
    collator = further.training_collator(further.collator(loaded, None), loaded, tmp_path)
    batch = collator([Example(TEXTS[:1], (answered, refused))], rate=4)
    own = [prompter.plain(target.reply) for target in (answered, refused)]
    learnt = batch.labels[batch.weights > 0].tolist()
    count = len(own[0]) + len(own[1]) + 2
    assert learnt[:count] == [*own[0], prompter.eos, *own[1], prompter.eos]
    right, wrong = prompter.verdict
    assert set(learnt[count:]) <= {right, wrong}
    [kept] = tmp_path.rglob("answers-judged-*.jsonl")
    found = [json.loads(line)["value"] for line in kept.read_text().splitlines()]
    assert len(found) == 2
    assert all(len(set(answers)) == len(answers) > 1 and set(answers) != {""} for answers in found)
    expected = [right if "330" in answer.split() else wrong for answer in found[0]] + [wrong] * len(found[1])
    assert learnt[count:] == expected
    assert batch.labels[batch.weights == 0].numel() > 0, "what is judged is not learnt"

    folder = train(further, passages(12), tmp_path / "judging", cache=tmp_path)
    assert json.loads((folder / MANIFEST).read_text())["judges"] is True
    goes_on = reading(tiny_base, start=str(folder))
    assert goes_on.network(TrainingData({}, [], {}), tiny_base, "cpu", None).manifest.judges, "without being told"
    reader = TextReader.load(folder, cache=tmp_path)
    request = GenerationRequest("How high?", texts=TEXTS[:1], quote_from=TEXTS[:1])
    [made] = reader.generate_many([request])
    some = reader._generator.candidates(reader._decoder, [request], Sampling(max_new_tokens=32))[0]
    assert made in some
    assert made.evidence is not None


def test_a_reader_goes_on_from_the_one_in_a_checkpoint(tiny_checkpoint: Path) -> None:
    manifest, adapter = find_reader("smollm2-135m")
    assert manifest.refuses
    assert adapter.is_file()
    with pytest.raises(CheckpointError, match="no text reader"):
        find_reader(tiny_checkpoint)


def test_answers_that_a_reader_has_not_cannot_be_judged(folders: dict[str, Path], tiny_base: Path) -> None:
    assert any("judged" in fault for fault in reading(tiny_base, judged=True).faults())
    closed = reading(tiny_base, judged=True, start=str(folders["none"]), reader_context="none")
    assert any("judged" in fault for fault in closed.faults())


def test_a_reader_is_not_started_from_one_of_another_kind(folders: dict[str, Path], tiny_base: Path) -> None:
    assert any("context" in fault for fault in reading(tiny_base, start=str(folders["none"])).faults())
    assert any("no reader.json" in fault for fault in reading(tiny_base, start=str(tiny_base)).faults())


@pytest.mark.parametrize("context", ["text", "none"])
def test_the_batch_is_the_prompt_of_the_model(context: Context, tiny_base: Path) -> None:
    collator, prompter = reading_collator(reading(tiny_base, reader_context=context))
    batch = collator([Example(TEXTS, (Target(prompts.QUESTION + "How high?", "330 metres"),))], rate=4)
    texts = [TEXTS[0], prompter.cut(TEXTS[1], 64)]
    assert len(prompter.plain(texts[1])) == 64, "no more than the compressor sees"
    prompt = prompter.from_passages("How high?", texts) if context == "text" else prompter.closed_book("How high?")
    reply = prompter.plain("330 metres")
    assert batch.decoder_ids[0].tolist() == [*prompt.ids, *reply]
    assert batch.labels.tolist() == [*reply, prompter.eos]
    assert not batch.slots.any()
    assert batch.text_ids.numel() == 0


@torch.no_grad()
def test_a_reader_can_be_trained_among_quotations(
    make_network: Callable[[CompressionConfig], Loaded], tiny_base: Path
) -> None:
    loaded = make_network(CompressionConfig(window_tokens=64))
    network, prompter = loaded.network, loaded.prompter()
    examples = [
        Example(
            TEXTS, tuple(Target(prompts.QUESTION + q, a) for q, a in (("How high?", "330 metres"), ("Who?", "Ants")))
        )
    ]
    collator, _ = reading_collator(reading(tiny_base, quoted_weight=0.5))
    batch = collator(examples, rate=4)
    assert batch.quotable is not None
    assert len(batch.quotable.rows) == len(prompter.plain("330 metres")) + 1, "ants stand in no text"
    free, quoted = (reading(tiny_base, quoted_weight=w).loss(network, batch).total for w in (0.0, 0.5))
    among = _quoted_loss(batch, batch.quotable, reply_logits(network, batch, None))
    assert among > 0
    assert float(quoted) == pytest.approx(float(free + 0.5 * among))


def test_a_reader_sees_what_the_stage_would_see(tiny_base: Path) -> None:
    class Recorder:
        def __call__(self, examples: Any, *, rate: int, asked: Any = None) -> Batch:  # noqa: ANN401
            raise NotImplementedError

    records: list[DataRecord] = [*passages(9), *questions(9)]
    for imitated in ("scp", "instruct"):
        mine = reading(tiny_base, reader_examples=imitated, steps=6)
        stages = (mine, made(imitated, tiny_base, steps=6))
        plans = [PlannedBatches(divide(records, stage), stage, Recorder()) for stage in stages]
        assert all(plans[0].examples(i) == plans[1].examples(i) for i in range(6))


def test_without_context_only_questions_are_left(tiny_base: Path) -> None:
    stage = reading(tiny_base, reader_context="none", reader_examples="scp", restate={"repeat": 1.0})
    record = passages(5)[0]
    example = stage.example(record, np.random.default_rng(0))
    assert isinstance(example, Example)
    assert all(target.instruction.startswith(prompts.QUESTION) for target in example.targets)
    bare = passages(5)[4]
    assert isinstance(bare, PassageQA)
    assert not bare.pairs
    assert divide(passages(5), changed(stage, held_out=1)).rejected == {
        "PassageQA record has no use in stage reader": 1
    }


@pytest.mark.parametrize("context", ["text", "none"])
def test_a_reader_answers_as_its_adapter_does(context: Context, folders: dict[str, Path], tiny_base: Path) -> None:
    reader = TextReader.load(folders[context], cache=tiny_base, dtype="fp32")
    assert reader.context == context
    assert reader.name == str(folders[context])
    asked = [GenerationRequest("How high?", texts=TEXTS[:1] if context == "text" else ()), GenerationRequest("Who?")]
    found = reader.generate_many(asked, max_new_tokens=6)

    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    plain = PeftModel.from_pretrained(base, folders[context]).eval()
    loaded = load_base(str(tiny_base), tiny_base, dtype=torch.float32)
    prompter = Prompter(loaded.tokenizer)
    for request, generation in zip(asked, found, strict=True):
        ids = list(
            (prompter.from_passages if request.texts else lambda q, _: prompter.closed_book(q))(
                request.question, request.texts
            ).ids
        )
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == prompter.eos:
                ids.pop()
                break
        assert list(generation.token_ids) == ids[-len(generation.token_ids) or len(ids) :]


def test_the_untrained_reader_is_the_base_that_reads_text(
    tiny_base: Path, tiny_model: ClaraModel, tmp_path: Path
) -> None:
    stage = reading(tiny_base, steps=1, learning_rate=1e-12)
    reader = TextReader.load(train(stage, passages(6), tmp_path, cache=tmp_path), cache=tmp_path, dtype="fp32")
    requests = [
        GenerationRequest("How high?", texts=TEXTS[:1], reader="base"),
        GenerationRequest("Who?", reader="base"),
    ]
    ours, theirs = (one.generate_many(requests, max_new_tokens=8) for one in (reader, tiny_model))
    assert [g.token_ids for g in ours] == [g.token_ids for g in theirs]
    assert [g.tokens for g in ours] == [g.tokens for g in theirs]


def test_what_is_in_the_folder(folders: dict[str, Path], tiny_base: Path) -> None:
    folder = folders["text"]
    assert {path.name for path in folder.iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", MANIFEST, "README.md",
    }  # fmt: skip
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["context"] == "text"
    assert manifest["base_model"] == str(tiny_base)
    assert manifest["trained"]["examples"] == 8
    assert "answers questions from the full text of passages" in (folder / "README.md").read_text()
    marks = {TextReader.load(path, cache=tiny_base).fingerprint for path in folders.values()}
    assert len(marks) == 2
    assert [line["step"] for line in losses(folder.parent)] == [1, 2]
    assert not (folder.parent / "checkpoint").exists()


def test_what_a_reader_refuses(
    folders: dict[str, Path], tiny_base: Path, tiny_model: ClaraModel, tmp_path: Path
) -> None:
    closed = TextReader.load(folders["none"], cache=tiny_base)
    with pytest.raises(InputError, match="was trained without context"):
        closed.generate_many([GenerationRequest("Who?", texts=TEXTS)])
    memory = tiny_model.compress(["Bees dance."])[0]
    with pytest.raises(InputError, match="reads text, not memories"):
        closed.generate_many([GenerationRequest("Who?", memories=(memory,))])
    with pytest.raises(CheckpointError, match=r"has no reader\.json; expected the folder"):
        TextReader.load(tmp_path, cache=tiny_base)
    other = Path(shutil.copytree(folders["text"], tmp_path / "other"))
    manifest = json.loads((other / MANIFEST).read_text())
    (other / MANIFEST).write_text(json.dumps(manifest | {"base_identity": "0" * 16}))
    with pytest.raises(CheckpointError, match="was trained on"):
        TextReader.load(other, cache=tiny_base)
    (other / MANIFEST).write_text(json.dumps(manifest | {"contexts": "text"}))
    with pytest.raises(CheckpointError, match="contexts"):
        TextReader.load(other, cache=tiny_base)


def test_the_loss_is_plain_cross_entropy(folders: dict[str, Path], tiny_base: Path) -> None:
    """A log line of the run, made again from nothing but PEFT and the prompt."""
    stage = reading(tiny_base, steps=1, accumulation=1, dtype="fp32", lora={"rank": 4, "alpha": 8, "dropout": 0.0})
    out = folders["text"].parent.parent / "again"
    train(stage, questions(8), out, cache=out)
    data = divide(questions(8), stage)
    loaded = load_base(str(tiny_base), tiny_base, dtype=torch.float32)
    prompter = Prompter(loaded.tokenizer)
    plan: Any = PlannedBatches(data, stage, reading_collator(stage)[0])
    total, count = 0.0, 0
    for example in plan.examples(0):
        for target in example.targets:
            prompt = prompter.from_passages(target.instruction.removeprefix(prompts.QUESTION), example.texts).ids
            reply = [*prompter.plain(target.reply), prompter.eos]
            with torch.no_grad():
                logits = loaded.model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
            total += float(functional.cross_entropy(logits, torch.tensor(reply), reduction="sum"))
            count += len(reply)
    assert losses(out)[0]["cross_entropy"] == pytest.approx(total / count, rel=1e-4)
