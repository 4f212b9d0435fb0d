"""Apple's format read, converted, written back; and what is wrong with a folder, named."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from official_folders import CASE, GOLDENS, RANK, WINDOW, Content, Spoil, content, needs_goldens
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils.logging import enable_progress_bar
from typer.testing import CliRunner

from clara.cli import application
from clara.config import CompressionConfig, check
from clara.errors import BaseModelError, CheckpointError, ConfigError, InputError
from clara.model import ClaraModel, checkpoint
from clara.model.apple import format as apple_format
from clara.model.apple.vocabulary import OfficialPrompter
from clara.model.apple.write import convert, export
from clara.model.create import Loaded, from_checkpoint
from clara.model.network import Network
from clara.model.placement import Placement
from clara.pipeline import Clara
from clara.records import GenerationRequest
from clara.train.stages import stage_class
from clara.train.start import release

TEXT = "The lighthouse keeper wrote three letters."


def silent(_what: str, _done: int, _total: int) -> None:
    pass


def native(folder: Path, out: Path, base: Path) -> Path:
    convert(folder, out, out.parent, base_name=str(base), progress=silent)
    return out


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return content(tiny_base).write(tmp_path_factory.mktemp("official") / "made")


@pytest.fixture(scope="module")
def model(folder: Path, tiny_base: Path) -> ClaraModel:
    return ClaraModel.load(folder, base=str(tiny_base), dtype="fp32")


def test_a_folder_is_a_model_like_any_other(model: ClaraModel) -> None:
    assert (model.window_tokens, model.rates, model.memory_tokens()) == (WINDOW, (8,), 4)
    assert model.manifest.stage == "end_to_end"
    memories = model.compress([TEXT, "Another one."])
    assert [memory.values.shape for memory in memories] == [(4, model.width)] * 2
    assert [memory.token_count for memory in memories] == [model.token_count(TEXT), model.token_count("Another one.")]
    query = model.encode_queries(["Who wrote letters?"])[0]
    assert query.fingerprint == memories[0].fingerprint
    answer = model.generate("Who wrote letters?", memories, max_new_tokens=5)
    assert answer.tokens.memory == 8
    # Both passages and their separators; the window of text they stand for.
    assert answer.tokens.text_equivalent == answer.tokens.prompt - 8 + sum(m.token_count for m in memories)


def test_converted_and_direct_are_the_same_model(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = native(folder, tmp_path / "native", tiny_base)
    assert (out / "README.md").read_text().count("Converted from Apple's format") == 1
    models = [
        ClaraModel.load(folder, base=str(tiny_base), dtype="fp32"),
        ClaraModel.load(out, dtype="fp32"),
    ]
    assert models[0].fingerprint == models[1].fingerprint
    first, second = (m.compress([TEXT])[0] for m in models)
    assert first.values.tobytes() == second.values.tobytes()
    answers = [
        m.generate("Who?", [memory], max_new_tokens=8) for m, memory in zip(models, (first, second), strict=True)
    ]
    assert answers[0] == answers[1]


def test_the_fingerprint_does_not_depend_on_the_dtype_in_memory(folder: Path, tiny_base: Path) -> None:
    prints = {ClaraModel.load(folder, base=str(tiny_base), dtype=dtype).fingerprint for dtype in ("fp32", "bf16")}
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("stage", "dtype"), [("stage1", torch.float32), ("stage1_2", torch.float16), ("stage2", torch.bfloat16)]
)
def test_read_write_read_is_exact(stage: str, dtype: torch.dtype, tiny_base: Path, tmp_path: Path) -> None:
    made = content(tiny_base, dtype=dtype, training_stage=stage)
    made.layers["model.embed_tokens.weight"][7] += 0.5  # a row of the base's own that training changed
    _round_trip(made, tiny_base, tmp_path)


def test_read_write_read_is_exact_with_a_head_and_a_padded_base(untied_base: Path, tmp_path: Path) -> None:
    made = content(untied_base, dtype=torch.bfloat16)
    made.layers["lm_head.weight"][3] *= 2
    _round_trip(made, untied_base, tmp_path)


def test_read_write_read_is_exact_with_one_memory_token(tiny_base: Path, tmp_path: Path) -> None:
    _round_trip(content(tiny_base, different_mem_tokens=False), tiny_base, tmp_path)


def test_a_window_that_the_rate_does_not_divide_is_rounded_down(tiny_base: Path, tmp_path: Path) -> None:
    made = content(tiny_base, doc_max_length=35, compr_rate=16)  # Apple's M = T // rate
    _round_trip(made, tiny_base, tmp_path)
    model = ClaraModel.load(tmp_path / "made", base=str(tiny_base), dtype="fp32")
    assert model.compress(["The tower is high."])[0].values.shape[0] == 2


def test_read_write_read_is_exact_with_a_carried_matrix(tiny_base: Path, tmp_path: Path) -> None:
    made = content(tiny_base)
    made.adapters["decoder_adapter"].update({name: tensor.clone() for name, tensor in made.layers.items()})
    _round_trip(made, tiny_base, tmp_path)


def test_read_write_read_is_exact_with_a_tied_head_that_is_carried(tiny_base: Path, tmp_path: Path) -> None:
    """A fresh adapter brings both matrices, also on a base with a tied head; the layers' file one."""
    made = content(tiny_base)
    (matrix,) = made.layers.values()
    made.adapters["decoder_adapter"].update(
        {name: matrix.clone() for name in (apple_format.EMBEDDINGS, apple_format.HEAD)}
    )
    _round_trip(made, tiny_base, tmp_path)


def test_read_write_read_is_exact_with_several_dtypes_in_one_adapter(tiny_base: Path, tmp_path: Path) -> None:
    made = content(tiny_base)
    tensors = made.adapters["encoder_adapter"]
    tensors[A_NAME], tensors[B_NAME] = tensors[A_NAME].bfloat16(), tensors[B_NAME].half()
    _round_trip(made, tiny_base, tmp_path)


def test_read_write_read_is_exact_with_tokens_that_the_base_has_no_row_for(tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|new|>", "<|newer|>"], special_tokens=True)
    made = content(base)
    tokenizer.save_pretrained(base)
    matrix = made.layers[apple_format.EMBEDDINGS]
    made.layers[apple_format.EMBEDDINGS] = torch.cat([matrix, matrix[-2:] + 1])
    _round_trip(made, base, tmp_path)


def test_a_native_checkpoint_that_names_carriers_alone_is_still_exported(tiny_base: Path, tmp_path: Path) -> None:
    """Written before matrices were named one by one."""
    made = content(tiny_base)
    made.adapters["decoder_adapter"].update({name: tensor.clone() for name, tensor in made.layers.items()})
    folder = made.write(tmp_path / "made")
    out = native(folder, tmp_path / "native", tiny_base)
    values = json.loads((out / "clara.json").read_text())
    values["official"]["carriers"] = ["decoder_adapter"]
    (out / "clara.json").write_text(json.dumps(values))
    export(out, tmp_path / "back", tmp_path, base_name=None, progress=silent)
    _assert_same_content(folder, tmp_path / "back")


@needs_goldens
def test_read_write_read_of_the_official_codes_own_folder(tmp_path: Path) -> None:
    base = GOLDENS / "tiny_llama_base"
    out = native(CASE / "ckpt_stage2", tmp_path / "native", base)
    export(out, tmp_path / "back", tmp_path, base_name=None, progress=silent)
    _assert_same_content(CASE / "ckpt_stage2", tmp_path / "back")


def _round_trip(made: Content, base: Path, tmp_path: Path) -> None:
    folder = made.write(tmp_path / "made")
    out = native(folder, tmp_path / "native", base)
    export(out, tmp_path / "back", tmp_path, base_name=None, progress=silent)
    _assert_same_content(folder, tmp_path / "back")


def _assert_same_content(first: Path, second: Path) -> None:
    assert json.loads((first / "config.json").read_text()) == json.loads((second / "config.json").read_text())
    pairs = [
        [_flat(torch.load(folder / name, weights_only=True)) for folder in (first, second)]
        for name in ("adapters.pth", "decoder_first_last_layers.pth")
    ]
    for one, other in pairs:
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.dtype == other[name].dtype, name
            assert torch.equal(tensor, other[name]), name


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value.detach()})
    return flat


def test_a_carried_matrix_overrides_the_layers_file(tiny_base: Path, tmp_path: Path) -> None:
    made = content(tiny_base)
    carried = made.layers["model.embed_tokens.weight"] + 1
    made.adapters["encoder_adapter"]["model.embed_tokens.weight"] = carried
    found = apple_format.read(made.write(tmp_path / "made"))
    assert torch.equal(found.embeddings, carried)
    assert found.carriers == tuple(
        f"{holder}/model.embed_tokens.weight" for holder in ("encoder_adapter", "decoder_first_last_layers.pth")
    )


def test_parameters_in_a_pickle_are_read(tiny_base: Path, tmp_path: Path) -> None:
    made = content(tiny_base)
    made.layers = {name: torch.nn.Parameter(tensor) for name, tensor in made.layers.items()}
    found = apple_format.read(made.write(tmp_path / "made"))
    assert not found.embeddings.requires_grad


def _prompter(model: ClaraModel) -> OfficialPrompter:
    assert isinstance(model._prompter, OfficialPrompter)
    return model._prompter


SPECIAL = ["<MEM0>", "<MEM3>", "<AE>", "<ENC>", "<SEP>", "<|im_start|>", "<|im_end|>"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=6)), max_size=6).map("".join))
def test_no_text_makes_a_control_token(model: ClaraModel, text: str) -> None:
    """The official code lets "<SEP>" or "<|im_end|>" in a document or question become the token."""
    prompter = _prompter(model)
    base = min(i for i, token in prompter._wide.added_tokens_decoder.items() if token.content == "<MEM0>")
    controls = {0, 1, *range(base, base + 7)}
    ids = prompter.encoder_ids(text)
    assert len(ids) <= WINDOW + 3
    kept = [i for i in ids if i in controls]
    whole = len(ids) < WINDOW + 3
    assert kept[:2] == [base + 5, 0]
    assert kept[2:] in ([[1]] if whole else [[], [1]])
    prompt = prompter.from_passages(text, [4, 4])
    empty = prompter.from_passages("", [4, 4])
    assert [i for i in prompt.ids if i in controls] == [i for i in empty.ids if i in controls]
    assert prompt.slots == empty.slots


def test_a_long_text_is_cut_as_the_model_was_trained(model: ClaraModel) -> None:
    long = TEXT * 20
    assert len(_prompter(model).encoder_ids(long)) == WINDOW + 3
    (memory,) = model.compress([long])
    assert memory.token_count == WINDOW
    first = model.compress([long + " and a tail that is cut off"])[0]
    assert first.values.tobytes() == memory.values.tobytes()


def test_separators_stay_whatever_the_configuration_says(tiny_base: Path, tmp_path: Path) -> None:
    """With sep false the official code writes separators all the same, and its memory slots go out of step."""
    prompts = []
    for sep in (True, False):
        folder = content(tiny_base, sep=sep).write(tmp_path / str(sep))
        loaded = from_checkpoint(folder, folder, Placement(), base_name=str(tiny_base))
        prompts.append(loaded.prompter().from_passages("Who?", [4, 4]))
    assert prompts[0] == prompts[1]
    starts = prompts[0].slots
    assert starts[4] - starts[3] == 2


def test_dropout_is_off_after_loading(model: ClaraModel) -> None:
    """The official model answers at random until ``eval()`` is called."""
    first, second = model.compress([TEXT])[0], model.compress([TEXT])[0]
    assert first.values.tobytes() == second.values.tobytes()
    assert isinstance(model._network, Network)
    assert not any(module.training for module in model._network.modules())


def test_an_instruct_checkpoint_keeps_its_generator_whatever_pure_inference_says(
    tiny_base: Path, tmp_path: Path
) -> None:
    """The official code, without pure_inference, replaces the trained generator by a fresh one."""
    made = content(tiny_base, training_stage="stage1_2", pure_inference=False)
    folder = made.write(tmp_path / "made")
    loaded = from_checkpoint(folder, folder, Placement(), base_name=str(tiny_base))
    state = loaded.network.adapters.tensors("generator")
    for name, tensor in made.adapters["decoder_adapter"].items():
        assert torch.equal(state["base_model.model." + name], tensor)


def test_questions_may_have_different_numbers_of_documents(model: ClaraModel) -> None:
    """The official code deals unequal numbers of documents out anew among the questions, without a word."""
    memories = model.compress([TEXT, "Another one.", "A third."])
    requests = [GenerationRequest("Who wrote?", memories=tuple(memories[:n])) for n in (1, 3, 2)]
    together = model.generate_many(requests, max_new_tokens=4)
    assert [answer.tokens.memory for answer in together] == [4, 12, 8]
    alone = [model.generate_many([request], max_new_tokens=4)[0] for request in requests]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def test_more_passages_may_be_asked_for_than_there_are(model: ClaraModel, tmp_path: Path) -> None:
    """The official selection crashes when k is larger than the number of documents."""
    (tmp_path / "one.txt").write_text(TEXT)
    with Clara.open(tmp_path / "store", model=model) as rag:
        rag.add([tmp_path / "one.txt"])
        assert len(rag.ask("Who wrote letters?", 9, mode="latent", max_new_tokens=2).citations) == 1
    assert model.default_k == 2, "as the checkpoint's generation_top_k says"


def test_a_long_question_keeps_the_assistants_header(model: ClaraModel) -> None:
    """The official code cuts long prompts at their end, and with it the place where the answer begins."""
    memories = model.compress([TEXT])
    short, long = ("Who?", "Who wrote the letters? " * 60)
    prompter = _prompter(model)
    ends = [prompter.from_passages(question, [4]).ids[-8:] for question in (short, long)]
    assert ends[0] == ends[1]
    with pytest.raises(InputError, match=r"the prompt has \d+ tokens .*the model takes 2048"):
        model.generate(long * 20, memories)


def test_memory_embeddings_train_after_the_first_stage_too(make_network: Callable[[CompressionConfig], Loaded]) -> None:
    """With the official code they never do: only the first stage puts them to the optimiser."""
    network = make_network(CompressionConfig(window_tokens=64, rates=(16,))).network
    for name, trained in {"scp": True, "instruct": True, "end-to-end": False}.items():  # there the compressor is frozen
        kind = stage_class(name)
        release(network, kind(kind.Config()).trains())
        assert network.table.tokens is not None
        assert network.table.tokens.requires_grad is trained


A_NAME = "model.layers.1.mlp.up_proj.lora_A.weight"
B_NAME = A_NAME.replace("lora_A", "lora_B")


def _config(**changes: Any) -> Spoil:  # noqa: ANN401 - JSON values
    return lambda made: made.config.update(changes)


def _drop(adapter: str, name: str) -> Spoil:
    return lambda made: made.adapters[adapter].pop(name)


def _set(adapter: str, name: str, value: Tensor) -> Spoil:
    return lambda made: made.adapters[adapter].update({name: value})


FAULTS: dict[str, tuple[Spoil, str]] = {
    "double precision": (
        lambda made: made.adapters["decoder_adapter"].update({A_NAME: torch.ones(RANK, 32, dtype=torch.float64)}),
        f"decoder_adapter: {A_NAME} is float64, expected float32, bfloat16 or float16",
    ),
    "no passages": (_config(generation_top_k=0), "generation_top_k: .*greater than or equal to 1"),
    "missing tensor": (_drop("encoder_adapter", A_NAME), f"encoder_adapter misses 1 tensor.*{A_NAME}"),
    "unknown tensor": (_set("decoder_adapter", "x.lora_A.weight", torch.ones(1)), "unknown tensor.*x.lora_A.weight"),
    "missing adapter": (lambda made: made.adapters.pop("decoder_adapter"), "misses 1 adapter.*decoder_adapter"),
    "missing reasoner": (lambda made: made.adapters.pop("query_reasoner_adapter"), "query_reasoner_adapter"),
    "unknown adapter": (lambda made: made.adapters.update(extra={"a": torch.ones(1)}), "unknown adapter.*extra"),
    "wrong rank": (_config(lora_r=RANK + 1), rf"has rank {RANK}, config.json says lora_r {RANK + 1}"),
    "wrong shape": (_set("encoder_adapter", A_NAME, torch.ones(RANK, 5)), rf"{A_NAME} has shape \({RANK}, 5\)"),
    "not finite": (_set("encoder_adapter", A_NAME, torch.full((RANK, 32), torch.nan)), f"{A_NAME}.*not finite"),
    "unknown stage": (_config(training_stage="stage9"), "unknown training_stage 'stage9'.*stage1_2"),
    "stage of another kind": (_config(training_stage=["stage1"]), "training_stage: .*string"),
    "unknown key": (_config(compression_rate=4), "unknown key 'compression_rate'"),
    "two faults": (_config(compression_rate=4, lora=False), "2 fault.*compression_rate.*lora is false"),
    "separate compressor": (_config(compr_model_name="bert"), "compr_model_name is 'bert'"),
    "wrong type": (_config(lora_r="many"), "lora_r"),
    "other model": (_config(model_type="llama"), "model_type is 'llama'"),
    "high rate": (_config(compr_rate=64), "rate 64 is above the window of 32"),
    "small vocabulary": (
        lambda made: made.layers.update({k: v[:-1] for k, v in made.layers.items()}),
        r"embed_tokens.weight has shape .* expected .* tokens of the base model",
    ),
    "no embeddings": (
        lambda made: made.layers.update({"lm_head.weight": made.layers.pop("model.embed_tokens.weight")}),
        "misses model.embed_tokens.weight",
    ),
    "unknown layer": (lambda made: made.layers.update(x=torch.ones(1)), "unknown tensor.*x"),
    "own head": (
        lambda made: made.layers.update({"lm_head.weight": made.layers["model.embed_tokens.weight"] + 1}),
        "has lm_head.weight, but the base model",
    ),
    "not a tensor": (
        lambda made: made.layers.update({"model.embed_tokens.weight": 3}),  # type: ignore[dict-item]
        "must be a tensor, got int",
    ),
    "carried differently": (
        lambda made: (
            [
                made.adapters[name].update({"model.embed_tokens.weight": made.layers["model.embed_tokens.weight"] + i})
                for i, name in enumerate(("encoder_adapter", "decoder_adapter"))
            ]
            and None
        ),
        "decoder_adapter has another model.embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, tiny_base: Path, tmp_path: Path) -> None:
    spoil, message = FAULTS[fault]
    made = content(tiny_base)
    spoil(made)
    folder = made.write(tmp_path / "made")
    with pytest.raises(CheckpointError, match=message):
        from_checkpoint(folder, tmp_path, Placement(), base_name=str(tiny_base))


@pytest.mark.parametrize("name", ["config.json", "adapters.pth", "decoder_first_last_layers.pth"])
def test_a_missing_or_torn_file_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(folder, torn)
    (torn / name).write_bytes((torn / name).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=name):
        apple_format.read(torn)
    (torn / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no .*{name}"):
        apple_format.read(torn)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_pickle_is_named_whatever_the_damage_raises(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    path = damaged / "adapters.pth"
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
        content_ = archive.read(entry)
    start_ = data.index(content_)
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        bad = bytearray(data)
        for _ in range(3):
            bad[start_ + draw.randrange(600)] = draw.randrange(256)
        path.write_bytes(bad)
        try:
            apple_format.read(damaged)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017 - a byte of a name may change and leave a folder that is read
    assert refused > 250


class _Code:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._path),)


def test_code_in_a_pickle_is_not_run(folder: Path, tmp_path: Path) -> None:
    bad, mark = tmp_path / "bad", tmp_path / "mark"
    shutil.copytree(folder, bad)
    torch.save({"encoder_adapter": _Code(mark)}, bad / "adapters.pth")
    with pytest.raises(CheckpointError, match="holds code, which is never run"):
        apple_format.read(bad)
    assert not mark.exists()


def test_a_head_that_is_missing_is_named(untied_base: Path, tmp_path: Path) -> None:
    made = content(untied_base)
    del made.layers["lm_head.weight"]
    folder = made.write(tmp_path / "made")
    with pytest.raises(CheckpointError, match=r"misses lm_head.weight, which the base model"):
        from_checkpoint(folder, tmp_path, Placement(), base_name=str(untied_base))


def test_without_base_the_way_out_is_said(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'/of/the/training/machine', which cannot be had here.*--base"):
        ClaraModel.load(folder)
    with pytest.raises(BaseModelError, match="no base model named"):
        ClaraModel.load(folder, base="nothing there")
    near = content(tiny_base, decoder_model_name=str(tiny_base)).write(tmp_path / "near")
    assert ClaraModel.load(near).manifest.base_model == str(tiny_base)


def test_the_folder_of_a_published_model_stands_for_its_lowest_rate(tiny_base: Path, tmp_path: Path) -> None:
    for rate in (16, 8):
        content(tiny_base, compr_rate=rate).write(tmp_path / "CLaRa" / f"compression-{rate}")
    assert ClaraModel.load(tmp_path / "CLaRa", base=str(tiny_base)).rates == (8,)
    assert ClaraModel.load(tmp_path / "CLaRa" / "compression-16", base=str(tiny_base)).rates == (16,)
    manifest = convert(tmp_path / "CLaRa", tmp_path / "out", tmp_path, base_name=str(tiny_base), progress=silent)
    assert manifest.compression.rates == (8,)


def test_a_checkpoint_of_our_own_kind_cannot_be_exported(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="did not come in Apple's format"):
        export(tiny_checkpoint, tmp_path / "out", tmp_path, base_name=None, progress=silent)


def test_a_native_checkpoint_is_written_as_before(tiny_checkpoint: Path) -> None:
    """Fields that only Apple's format needs are left out, so that files and fingerprints stay what they were."""
    values = json.loads((tiny_checkpoint / "clara.json").read_text())
    assert "official" not in values
    assert "input_format" not in values["compression"]
    assert not (tiny_checkpoint / "vocabulary.safetensors").exists()
    dumped = checkpoint.read_manifest(tiny_checkpoint).compression.model_dump_json()
    assert json.loads(dumped).keys() == values["compression"].keys()


def test_the_official_input_wants_one_rate(tiny_checkpoint: Path) -> None:
    compression = checkpoint.read_manifest(tiny_checkpoint).compression
    values = {**compression.model_dump(), "input_format": "official"}
    with pytest.raises(ConfigError, match="exactly one rate"):
        check(CompressionConfig, values, source="test")


def test_the_commands_convert_and_export(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    enable_progress_bar()  # as in a new process
    app, run = application(), CliRunner().invoke
    out = tmp_path / "native"
    done = run(app, ["convert", str(folder), "--base", str(tiny_base), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {
        "checkpoint": str(out),
        "base": str(tiny_base),
        "stage": "end_to_end",
        "rate": 8,
        "window_tokens": WINDOW,
        "roles": ["compressor", "query_reasoner", "generator"],
    }
    done = run(app, ["export", str(out), "--format", "official", "--out", str(tmp_path / "back")])
    assert done.exit_code == 0, done.output
    assert "in Apple's format" in done.stdout
    assert "Loading" not in done.output, "transformers' own bars are no part of what the commands say"
    _assert_same_content(folder, tmp_path / "back")
