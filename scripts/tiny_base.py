"""Make a base model of two layers with random weights, for ``recipes/tiny.toml``: every stage runs on it in seconds.

    python scripts/tiny_base.py FOLDER

Its answers mean nothing. The tokenizer is trained on the sample documents, the weights come from a fixed seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clara.samples import sample_folder

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCABULARY = 600
WIDTH = 32


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = sorted(path for path in sample_folder().iterdir() if path.suffix in {".txt", ".md"})
    tokens.train_from_iterator((path.read_text(encoding="utf-8") for path in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<|im_start|>",  # noqa: S106 - a token of text
        eos_token="<|im_end|>",  # noqa: S106 - as above
        pad_token="<|im_end|>",  # noqa: S106 - as above
        chat_template=CHATML,
    )


def make(folder: Path) -> None:
    """Write the model in Hugging Face format."""
    tokens = tokenizer()
    tokens.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.25,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/tiny_base.py FOLDER")
    make(Path(sys.argv[1]))
    print(f"made {sys.argv[1]}")
