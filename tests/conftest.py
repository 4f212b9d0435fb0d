"""What tests of several rooms share: a tiny base model, a checkpoint on it, and a loaded model.

All of it is made here from seeds and ramps in about a second; nothing is downloaded. The weights are random, so the
answers mean nothing, but adapters, memories and prompts go through the same code as with a real model.
"""
# ruff: noqa: PLC0415 - tests that need no model should not wait for torch

from __future__ import annotations

import os
import signal

# Before torch and huggingface_hub are imported anywhere, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores it for what it starts in the background, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure, and the same commit gives the same result.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from clara.config import CompressionConfig
    from clara.model import ClaraModel
    from clara.model.create import Loaded

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sample_texts() -> list[str]:
    """The plain texts among the packaged sample documents."""
    from clara.samples import sample_folder

    return [
        path.read_text(encoding="utf-8") for path in sorted(sample_folder().iterdir()) if path.suffix in {".txt", ".md"}
    ]


def ramp(parameters: list[nn.Parameter], *, scale: float) -> None:
    """Fill parameters with a ramp each, so that they matter and are the same on every machine."""
    import torch

    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            values = torch.linspace(-1, 1, parameter.numel()).roll(7 * number)
            parameter.copy_((values * scale).reshape(parameter.shape))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights and a small byte-level tokenizer, in Hugging Face format."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "tiny-base"
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(sample_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<|im_start|>",  # noqa: S106 - a token of text
        eos_token="<|im_end|>",  # noqa: S106 - as above
        pad_token="<|im_end|>",  # noqa: S106 - as above
        chat_template=CHATML,
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.25,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untied_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with an LM head of its own and a padded vocabulary."""
    import json
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "untied"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "vocab_size": config["vocab_size"] + 64}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(
            AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True).config
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_network(tiny_base: Path) -> Callable[[CompressionConfig], Loaded]:
    """Makes fp32 networks on ``tiny_base`` whose adapters change every layer, in evaluation mode."""
    import torch

    from clara.config import LoraSettings
    from clara.model import create
    from clara.model.backbone import load_base

    def make(compression: CompressionConfig) -> Loaded:
        base = load_base(str(tiny_base), tiny_base, dtype=torch.float32)
        loaded = create.fresh(base, compression, LoraSettings(rank=4, alpha=8), sample_texts())
        for role, scale in (("compressor", 0.2), ("generator", -0.2)):
            parameters = loaded.network.adapters.peft_model.named_parameters()
            ramp([p for name, p in parameters if "lora_B" in name and role in name], scale=scale)
        loaded.network.eval()
        return loaded

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(
    make_network: Callable[[CompressionConfig], Loaded], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A native checkpoint on ``tiny_base``: window 64, rates 4 and 16."""
    from clara.config import CompressionConfig
    from clara.model import checkpoint

    compression = CompressionConfig(
        window_tokens=64,
        rates=(4, 16),
        residual=True,
        gain=True,
        pooled_input=True,
        positions="spread",
        attention="span",
    )
    loaded = make_network(compression)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    checkpoint.save(loaded.network, loaded.manifest, folder, card="# A tiny checkpoint for tests\n")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> ClaraModel:
    """``tiny_checkpoint``, loaded in fp32; shared by all tests, which must leave its weights as they are."""
    from clara.model import ClaraModel

    return ClaraModel.load(tiny_checkpoint, dtype="fp32")
