"""The selector of baseline DRO (arXiv 2505.03075): a LoRA on full text that scores candidate passages for a question.

It reads the reader's own prompt with one passage in it and gives a number through a linear head. Selector and reader
are tuned together by ``examples/train_dro.py``; here is what reads the result.
Shape letters: D candidates, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from clara.config import LoraSettings, Settings, check
from clara.errors import CheckpointError
from clara.model.adapters import Adapters, load_adapter
from clara.model.backbone import ADAPTER, BaseModel, padded, read_object
from clara.model.decoder import Decoder
from clara.model.prompting import Prompter
from clara.train.batch import decoder_attention

MANIFEST, HEAD = "selector.json", "head.safetensors"
SELECTOR: Literal["query_reasoner"] = "query_reasoner"
"""The adapter that finds; here it reads text."""


class SelectorManifest(Settings):
    """Content of ``selector.json``: as ``ReaderManifest``, and to how many tokens passages are cut."""

    base_model: str
    base_identity: str
    lora: LoraSettings
    passage_tokens: int
    trained: dict[str, Any]


class Selector(nn.Module):
    """Scores candidate passages for a question: ``decoder`` reads both, as ``SELECTOR``; ``head`` is float32 [H]."""

    def __init__(self, decoder: Decoder, prompter: Prompter, *, width: int, passage_tokens: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = nn.Parameter(torch.zeros(width))
        self._prompter = prompter
        self._tokens = passage_tokens

    def scores(self, question: str, texts: Sequence[str]) -> Tensor:
        """A score for each passage: float32 [D]; only differences mean anything."""
        rows = [self._prompter.from_passages(question, [self._prompter.cut(text, self._tokens)]).ids for text in texts]
        ids, segments = padded(rows, self._prompter.eos), padded([[0] * len(row) for row in rows], -1)
        positions = torch.arange(ids.shape[1]).expand(len(rows), -1)
        ids, segments, positions = (part.to(self.head.device) for part in (ids, segments, positions))
        embeds = self.decoder.embed(ids)
        hidden = self.decoder.decode(embeds, decoder_attention(segments), positions, role=SELECTOR)
        last = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])].float()
        # Normalised: last hidden states have dimensions tens of times larger than others.
        return functional.layer_norm(last, last.shape[-1:]) @ self.head / math.sqrt(last.shape[-1])


def new_selector(base: BaseModel, adapters: Adapters, *, passage_tokens: int) -> Selector:
    """A selector on adapters that hold ``SELECTOR``; its head is zero."""
    width = int(base.model.get_input_embeddings().weight.shape[1])
    made = Selector(Decoder(adapters), Prompter(base.tokenizer), width=width, passage_tokens=passage_tokens)
    return made.to(base.model.device)


def load_selector(folder: Path, base: BaseModel) -> Selector:
    """The selector of a folder on a loaded base model, in evaluation mode.

    Raises:
        CheckpointError: it is missing or damaged, or was trained on another base model.
        ConfigError: a key of its manifest is unknown, missing or wrong.
    """
    path = folder / MANIFEST
    missing = f"{folder} holds no selector; expected what examples/train_dro.py wrote (OUT/dro/selector)"
    manifest = check(SelectorManifest, read_object(path, missing=missing), source=str(path))
    base.check_trained_on(folder, manifest.base_model, manifest.base_identity)
    adapters = Adapters.fresh(base.model, manifest.lora, dtype=base.model.dtype, roles=(SELECTOR,))
    load_adapter(adapters.peft_model, folder / ADAPTER, SELECTOR)
    selector = new_selector(base, adapters, passage_tokens=manifest.passage_tokens)
    head = load_file(folder / HEAD).get("head")
    if head is None or head.shape != selector.head.shape or not bool(torch.isfinite(head).all()):
        raise CheckpointError(f"{folder / HEAD} does not hold a finite vector of {tuple(selector.head.shape)}")
    selector.head.data.copy_(head)
    return selector.eval().requires_grad_(requires_grad=False)
