"""Backbones that train have the loss of transformers' own forward pass; those that would not are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional
from train_cases import made, passages, questions

from clara.data import DataRecord, MultiHop, PassageQA, QAPair
from clara.errors import BaseModelError, ConfigError
from clara.model import ClaraModel
from clara.model.attention import enable_packing
from clara.model.create import Loaded
from clara.train.backbones import _TRIED
from clara.train.data import PlannedBatches, divide, within_window
from clara.train.examples import Example
from clara.train.run import train

# PEFT says what it does about GPT-2's transposed layers.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but:UserWarning")

RATE = 16
_PLAIN = ["Phi", "StableLm", "GPTNeoX", "Falcon", "Olmo", "Nemotron", "Arcee", "Apertus", "DiffLlama", "BitNet"]
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}
TRAINS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Mistral (window)": {"sliding_window": 512},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Phi3": {},
    "SmolLM3": {},
    "Olmo2": {},
    "Granite": {},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 512, "query_pre_attn_scalar": 8},
    "GPT2": _GPT2,
    "GPTBigCode": _GPT2,
    "GPTJ": {**_GPT2, "rotary_dim": 4},
    "CodeGen": {**_GPT2, "rotary_dim": 4},
    "GPTNeo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 2048},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "Gemma": {"head_dim": 8},
    "Cohere": {"logit_scale": 1.0},
    "Cohere2": {"sliding_window": 512, "logit_scale": 1.0},
    "Starcoder2": {"sliding_window": None},
    "Olmo3": {"sliding_window": 512},
    "Exaone4": {"sliding_window": 512, "sliding_window_pattern": 4},
    "Qwen2Moe": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "GptOss": {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 512},
    "GraniteMoe": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "Persimmon": {"num_key_value_heads": 4},
    "Glm": {"head_dim": 8},
    "Glm4": {"head_dim": 8},
    "Helium": {"head_dim": 8},
    "Ernie4_5": {"head_dim": 8},
    "HunYuanDenseV1": {"head_dim": 8},
    "SeedOss": {"head_dim": 8},
    "Ministral": {"head_dim": 8},
    **{name: {} for name in _PLAIN},
}
"""Families by their configuration's name, with what is theirs; docs/training.md lists them."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Lfm2": ({"layer_types": ["conv", "full_attention"]}, r"\(lfm2\) .*its layers \(conv\) read neighbouring tokens"),
    "Mistral": (
        {"sliding_window": 96},
        r"attention reaches back 96 tokens, the longest sequence of this run has \d{3}",
    ),
    "Gemma3Text": (
        {"head_dim": 8, "sliding_window": 32, "query_pre_attn_scalar": 8},
        "attention reaches back 32 tokens",
    ),
    "Bloom": ({"n_layer": 2, "n_head": 4}, r"\(bloom\) cannot be trained: it takes no position ids"),
    "Gemma2": ({"head_dim": 8, "sliding_window": 512}, "it caps the scores of its attention"),
    "GPTNeo": (
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 64},
        "attention reaches back 64 tokens",
    ),
    "Mixtral": (
        {"num_local_experts": 2, "sliding_window": None},
        r"\(mixtral\) cannot be trained: its loss was never compared with transformers' own; families that were",
    ),
    "Mamba": ({"num_hidden_layers": 1, "state_size": 4}, r"its layers \(linear_attention\) read neighbouring"),
    "Llama": ({"max_position_embeddings": 128}, r"it reads 128 tokens at most, the longest sequence of this run has"),
}


def tiny(name: str, tiny_base: Path, folder: Path, **values: Any) -> Path:  # noqa: ANN401
    """A random model of a family with the tokenizer of ``tiny_base``."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.save_pretrained(folder)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    shape |= {"vocab_size": len(tokenizer), "initializer_range": 0.25, "pad_token_id": tokenizer.pad_token_id}
    shape |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = getattr(transformers, f"{name}Config")(**shape | values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def slow_losses(loaded: Loaded, example: Example) -> list[Tensor]:
    """Each target's label losses through transformers' forward pass, one text and one target at a time."""
    network, prompter = loaded.network, loaded.prompter()
    model, slots = network.adapters.bare(), 64 // RATE
    assert network.table.tokens is not None
    memories = []
    for text in example.texts:
        read = network.embed(torch.tensor([prompter.plain(text)]))
        with network.adapters.use("compressor"):
            whole = torch.cat([read, network.table.tokens[None, :slots]], dim=1)
            hidden = model.get_decoder()(inputs_embeds=whole, use_cache=False).last_hidden_state
        memories.append(hidden[0, -slots:])
    found = []
    for target in example.targets:
        background = prompter.background([slots] * len(example.texts))
        prompt = [*background.ids, *prompter.instruction(target.instruction)]
        reply = [*prompter.plain(target.reply.strip()), *([prompter.eos] if target.ends else [])]
        embeds = network.embed(torch.tensor([prompt + reply])).clone()
        embeds[0, list(background.slots)] = torch.cat(memories)
        with network.adapters.use("generator"):
            logits = model(inputs_embeds=embeds, use_cache=False).logits[0, len(prompt) - 1 : -1]
        found.append(functional.cross_entropy(logits, torch.tensor(reply), reduction="none"))
    return found


@torch.no_grad()
@pytest.mark.parametrize("family", TRAINS)
def test_what_trains_has_the_loss_of_the_slow_version(family: str, tiny_base: Path, tmp_path: Path) -> None:
    base = tiny(family.split(maxsplit=1)[0], tiny_base, tmp_path / "base", **TRAINS[family])
    compression = {"window_tokens": 64, "rates": (RATE,)}
    stage = made("scp", base, compression=compression, held_out=0, accumulation=1, steps=1, dtype="fp32")
    data = divide(passages(8), stage)
    loaded = stage.network(data, tmp_path, "cpu", None)
    network = loaded.network.eval()
    for number, (name, parameter) in enumerate(network.named_parameters()):
        if "lora_B" in name:
            parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).roll(7 * number).reshape(parameter.shape))
    enable_packing(network.adapters.bare())
    plan = PlannedBatches(data, stage, stage.collator(loaded, None))
    fast = stage.loss(network, plan[0]).cross_entropy
    network.adapters.bare().set_attn_implementation("eager")
    examples = [example for example in plan.examples(0) if isinstance(example, Example)]
    slow = torch.cat([losses for example in examples for losses in slow_losses(loaded, example)])
    assert len({len(example.targets) for example in examples}) > 1, "targets lie side by side"
    assert float(slow.std()) > 0.1
    assert float(fast) == pytest.approx(float(slow.mean()), rel=1e-4)


def test_every_family_that_is_taken_is_tried() -> None:
    kinds = {getattr(transformers, f"{name.split(maxsplit=1)[0]}Config").model_type for name in TRAINS}
    assert kinds == _TRIED


@pytest.mark.parametrize("family", REFUSED)
def test_what_would_train_wrongly_is_refused_by_name(family: str, tiny_base: Path, tmp_path: Path) -> None:
    values, message = REFUSED[family]
    base = tiny(family, tiny_base, tmp_path / "base", **values)
    with pytest.raises(ConfigError, match=message):
        train(made("scp", base), passages(8), tmp_path / "run", cache=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_an_end_is_named(tiny_base: Path, tmp_path: Path) -> None:
    base = tiny("Llama", tiny_base, tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|im_start|>")  # noqa: S106
    bare.save_pretrained(base)
    with pytest.raises(BaseModelError, match=r"names no end token.*add eos_token to its tokenizer_config\.json"):
        train(made("scp", base), passages(8), tmp_path / "run", cache=tmp_path)


def test_gpt2_trains_and_what_it_leaves_loads(tiny_base: Path, tmp_path: Path) -> None:
    """Its configuration names its sizes otherwise than others'."""
    base = tiny("GPT2", tiny_base, tmp_path / "base", **TRAINS["GPT2"])
    folder = train(made("scp", base, steps=1), passages(8), tmp_path / "run", cache=tmp_path)
    model = ClaraModel.load(folder)
    assert model.compress(["Bees dance."])[0].values.shape == (16, 32)


def test_overlong_questions_are_counted_and_left_out(tiny_base: Path, tmp_path: Path) -> None:
    long = QAPair("What? " * 80, ("iron",))
    kept = QAPair("Of what?", ("iron",))
    record = PassageQA("p", "p", "Tower", "It is made of iron.", (long, kept), complex_pairs=(long,))
    (multi,) = questions(1)
    assert isinstance(multi, MultiHop)
    records: list[DataRecord] = [record, multi, replace(multi, question="Which? " * 80)]
    cut = within_window(records, made("scp", tiny_base).window(), tmp_path)
    assert cut.left_out == {"question longer than the window of 64 tokens": 3}
    first, second = cut.records
    assert isinstance(first, PassageQA)
    assert first.all_pairs == (kept,)
    assert second == multi
    assert 0 < cut.longest_question <= 64
