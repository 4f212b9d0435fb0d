"""The architectures of the paper, tiny and random: Mistral, Phi (fused projections, partial rotary), Llama.

Each goes the whole way: fresh adapters, save, load, compress, ask; and as a checkpoint in Apple's format.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from official_folders import content
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from clara import prompts
from clara.config import CompressionConfig, LoraSettings
from clara.model import ClaraModel, checkpoint, create
from clara.model.backbone import _plain, load_base
from clara.model.create import Loaded, from_checkpoint
from clara.model.placement import Placement
from clara.model.prompting import Prompter

MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
PHI_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.25,
}
TEXTS = ["The lighthouse keeper wrote three letters to the harbour.", "Rain."]
NAMES = ("llama", "mistral", "phi")


def _config(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    ids = {
        "vocab_size": len(tokenizer) + 8,  # padded, as published ones often are
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if name == "llama":
        return LlamaConfig(**SHAPE, **ids, tie_word_embeddings=True)
    if name == "mistral":
        return MistralConfig(**SHAPE, **ids, tie_word_embeddings=False, sliding_window=None)
    return Phi3Config(**SHAPE, **ids, tie_word_embeddings=True, partial_rotary_factor=0.5, sliding_window=None)


@pytest.fixture(scope="module", params=NAMES)
def base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model folder of each architecture."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    if request.param == "mistral":
        tokenizer.chat_template = MISTRAL_TEMPLATE
    if request.param == "phi":
        tokenizer.add_tokens(["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], special_tokens=True)
        tokenizer.chat_template = PHI_TEMPLATE
    folder = tmp_path_factory.mktemp("bases") / str(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        AutoModelForCausalLM.from_config(_config(request.param, tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(base: Path, compression: CompressionConfig) -> Loaded:
    """A network whose adapters change every layer."""
    loaded = create.fresh(
        load_base(str(base), base, dtype=torch.float32), compression, LoraSettings(rank=2, alpha=4), TEXTS
    )
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in loaded.network.adapters.peft_model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return loaded


OURS = CompressionConfig(
    window_tokens=64, rates=(16, 4), residual=True, gain=True, pooled_input=True, positions="spread", attention="span"
)
PAPER = CompressionConfig(window_tokens=64, rates=(16,))


@pytest.mark.parametrize("compression", [OURS, PAPER], ids=["ours", "paper"])
def test_compress_ask_save_and_load(base: Path, compression: CompressionConfig, tmp_path: Path) -> None:
    loaded = trained(base, compression)
    checkpoint.save(loaded.network, loaded.manifest, tmp_path / "made", card="# test\n", dtype=torch.float32)
    before, after = ClaraModel("before", loaded), ClaraModel.load(tmp_path / "made", dtype="fp32")
    assert before.fingerprint == after.fingerprint
    for rate in after.rates:
        first, second = before.compress(TEXTS, rate=rate), after.compress(TEXTS, rate=rate)
        for one, other in zip(first, second, strict=True):
            assert one.values.shape == (64 // rate, 32)
            assert one.values.tobytes() == other.values.tobytes()
        alone = after.compress(TEXTS[1:], rate=rate)[0]
        np.testing.assert_allclose(alone.values, second[1].values, rtol=0, atol=1e-5)  # padding changes nothing
        answers = [m.generate("Who wrote?", x, max_new_tokens=6) for m, x in ((before, first), (after, second))]
        assert answers[0] == answers[1]
        assert answers[0].tokens.memory == 2 * 64 // rate
    assert after.encode_queries(["Who wrote?"])[0].values.shape == (64 // after.default_rate, 32)


def test_every_linear_layer_but_the_head_has_an_adapter(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    linear = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    state = trained(base, PAPER).network.adapters.tensors("compressor")
    names = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in state}
    assert names == linear
    assert any("qkv_proj" in name for name in names) is (base.name == "phi")
    assert any("gate_up_proj" in name for name in names) is (base.name == "phi")


def test_memories_are_those_of_one_plain_forward_pass(base: Path) -> None:
    """In the paper's form, memory tokens are just more tokens of one sequence."""
    loaded = trained(base, PAPER)
    model, table = ClaraModel("test", loaded), loaded.network.table
    assert table.tokens is not None
    made = model.compress(TEXTS[:1])[0]
    plain = loaded.network.adapters.merged("compressor")
    ids = torch.tensor([loaded.base.tokenizer(TEXTS[0], add_special_tokens=False).input_ids])
    with torch.no_grad():
        embeds = torch.cat([plain.get_input_embeddings()(ids), table.tokens[None]], dim=1)
        hidden = plain.model(inputs_embeds=embeds).last_hidden_state[0, ids.shape[1] :]
    np.testing.assert_allclose(made.values, hidden.numpy(), rtol=0, atol=1e-5)


def test_apples_format_on_every_architecture(base: Path, tmp_path: Path) -> None:
    made = content(base)
    folder = made.write(tmp_path / "official")
    assert ("lm_head.weight" in made.layers) is (base.name == "mistral")
    loaded = from_checkpoint(folder, tmp_path, Placement(), base_name=str(base))
    embeddings = loaded.network.adapters.bare().get_input_embeddings().weight
    assert torch.equal(embeddings, made.layers["model.embed_tokens.weight"])
    head = loaded.network.adapters.bare().get_output_embeddings().weight
    assert torch.equal(head, made.layers.get("lm_head.weight", embeddings))
    model = ClaraModel("test", loaded)
    memories = model.compress(TEXTS)
    answer = model.generate("Who wrote?", memories, max_new_tokens=4)
    assert answer.tokens.memory == 8
    assert answer.tokens.generated <= 4


def test_prompts_follow_the_bases_chat_template(base: Path, tmp_path: Path) -> None:
    """Where the template knows no system role, the system text and a newline come before the user's text."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    loaded = from_checkpoint(content(base).write(tmp_path / "o"), tmp_path, Placement(), base_name=str(base))
    official = loaded.prompter()
    asked = {
        "llama": ("<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        "mistral": ("<|im_start|>[INST] {}\n", " [/INST]"),
        "phi": ("<|system|>{}<|end|><|user|>", "<|end|><|assistant|>"),
    }
    before, after = asked[base.name]
    ours = Prompter(tokenizer).from_passages("Who wrote?", [2])
    text = tokenizer.decode([token for i, token in enumerate(ours.ids) if i not in ours.slots])
    assert text == f"{before.format(prompts.ANSWER_SYSTEM)}Background:\n\n\nQuestion: Who wrote?{after}"
    theirs = official.from_passages("Who wrote?", [4])
    kept = [token for token in theirs.ids if token < len(tokenizer)]
    assert len(theirs.ids) - len(kept) == 5  # four memory tokens and the separator
    system = prompts.OFFICIAL_ANSWER_SYSTEM
    assert tokenizer.decode(kept) == f"{before.format(system)}Background:\n\n\nQuestion:Who wrote?{after}"
    rendered = f"{before.format(system)}Background:\n\n\nQuestion:Who wrote?{after}"
    assert [t for t in theirs.ids if t in tokenizer.all_special_ids] == [
        t for t in tokenizer(rendered, add_special_tokens=False).input_ids if t in tokenizer.all_special_ids
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_that_transformers_loads(base: Path, dtype: torch.dtype) -> None:
    made, wanted = _plain(base, dtype), AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    assert made is not None
    tensors = wanted.state_dict()
    assert made.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in made.state_dict().items())
    buffers = dict(wanted.named_buffers())
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in made.named_buffers())
    assert made.generation_config.to_dict() == wanted.generation_config.to_dict()
    assert made.config.to_dict() == wanted.config.to_dict()
    tied = made.get_output_embeddings().weight is made.get_input_embeddings().weight
    assert tied == wanted.config.tie_word_embeddings


def test_weights_by_other_names_are_left_to_transformers(base: Path, tmp_path: Path) -> None:
    """As of old checkpoints, whose names are converted while they are read."""
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): one for name, one in tensors.items()}, folder / "model.safetensors")
    assert _plain(folder, torch.float32) is None
