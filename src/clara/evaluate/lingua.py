"""The package llmlingua 0.2.2 at our door: prompt compression by a causal LM's perplexity, or by a token classifier.

The package was written for transformers 4 and for machines with a network. What stands between it and today, and
nothing more, is here: its constructor fetches a tokenizer of OpenAI's only to count (``TokenCounter`` counts instead),
it hands key-value caches around as lists of pairs (``_PairCache`` turns them into transformers' cache and back), and it
seeds every random generator of the process for LLMLingua-2, which draws nothing. Its compression code runs as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clara.errors import ModelError, optional

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shorten: TypeAlias = Callable[[str, int], str]
"""Text and target (tokens of the generator) to compressed text; shorter texts stay as they are."""

_MAX_CLASSIFIER_TOKENS = 512
"""Longest input of the published encoders, and the length that the package cuts texts into."""

_CLASSIFIERS = {"bert": "bert-base-multilingual-cased", "xlm-roberta": "xlm-roberta-large"}
"""Model type to the part of a name by which the package knows how a tokenizer marks words."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenCounter:
    """Counts with the backbone's tokenizer, so that targets are in the generator's tokens."""

    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids


@dataclass(frozen=True, slots=True, eq=False)
class _PairCache:
    """A causal LM called as the package calls it, with key-value caches as lists of (keys, values)."""

    model: Any

    def __call__(
        self,
        ids: Tensor,
        attention_mask: Tensor,
        past_key_values: Sequence[tuple[Tensor, Tensor]] | None = None,
        *,
        use_cache: bool = True,
    ) -> Any:  # noqa: ANN401 - transformers' output
        from transformers import DynamicCache  # noqa: PLC0415 - slow, loaded by now

        pairs = None if past_key_values is None else [tuple(pair) for pair in past_key_values]
        cache = None if pairs is None else DynamicCache(pairs)
        out = self.model(input_ids=ids, attention_mask=attention_mask, past_key_values=cache, use_cache=use_cache)
        out.logits = out.logits.float()
        out.past_key_values = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return out


def perplexity_compressor(folder: Path, device: str, *, dtype: torch.dtype | None = None) -> Shorten:
    """LLMLingua: keeps the tokens that a causal LM, in Hugging Face format, finds hardest to predict.

    Its token-level filter alone: each text has a target of its own, so there is no budget to divide, and the sentence
    filter needs a file of NLTK's from the network. ``dtype`` None is bf16 where the device multiplies it faster, else
    fp32.
    """
    import torch  # noqa: PLC0415 - slow
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - slow

    from clara.model.placement import natural_dtype  # noqa: PLC0415 - slow

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or natural_dtype(device), local_files_only=True)
    model = model.to(torch.device(device)).eval().requires_grad_(requires_grad=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    counter = TokenCounter(tokenizer)
    inner = _blank(str(folder), tokenizer, counter, device)
    inner.model = _PairCache(model)
    inner.max_position_embeddings = int(model.config.max_position_embeddings)
    inner.use_llmlingua2 = False

    def shorten(text: str, target: int) -> str:
        count = len(counter.encode(text))
        if count <= target:
            return text
        # One step over the whole text: the package leaves what remains after its last full step uncompressed. Its
        # threshold is strict, so that the token at the threshold is lost.
        steps = math.ceil(count / (inner.max_position_embeddings // 2))
        made = inner.compress_prompt(
            [text],
            target_token=target,
            iterative_size=count // steps,
            use_context_level_filter=False,
            use_sentence_level_filter=False,
            concate_question=False,
        )
        return str(made["compressed_prompt"]).strip()

    return shorten


def classifier_compressor(folder: Path, counter: TokenCounter, device: str) -> Shorten:
    """LLMLingua-2: keeps the words that the published token classifier selects (ModelError: another kind of model)."""
    import torch  # noqa: PLC0415 - slow
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer  # noqa: PLC0415 - slow

    kind = str(AutoConfig.from_pretrained(folder, local_files_only=True).model_type)
    if kind not in _CLASSIFIERS:
        known = ", ".join(_CLASSIFIERS)
        raise ModelError(f"{folder} is a {kind} model; LLMLingua-2's published encoders are of kind {known}")
    model = AutoModelForTokenClassification.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    inner = _blank(_CLASSIFIERS[kind], tokenizer, counter, device)
    inner.model = model.to(torch.device(device)).eval().requires_grad_(requires_grad=False)
    inner.use_llmlingua2 = True
    inner.max_batch_size = 8
    inner.max_seq_len = _MAX_CLASSIFIER_TOKENS
    inner.max_force_token = 0  # no token is forced, so the package's extra tokens are not needed
    inner.added_tokens = []
    inner.special_tokens = set(tokenizer.all_special_tokens)

    def shorten(text: str, target: int) -> str:
        if len(counter.encode(text)) <= target:
            return text
        return str(inner.compress_prompt([text], target_token=target)["compressed_prompt"]).strip()

    return shorten


def _blank(name: str, tokenizer: Any, counter: TokenCounter, device: str) -> Any:  # noqa: ANN401 - untyped library
    """The package's compressor without its constructor, which would go to the network."""
    kind = optional("llmlingua", package="llmlingua", extra="eval").PromptCompressor
    inner = kind.__new__(kind)
    inner.model_name = name
    inner.tokenizer = tokenizer
    inner.oai_tokenizer = counter
    inner.device = device
    inner.cache_bos_num, inner.prefix_bos_num = 10, 100  # as in its constructor
    inner.context_idxs = []
    return inner
