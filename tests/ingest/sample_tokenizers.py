"""Token spans to split with: real tokenizers, and made-up ones that are hard to please."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from clara.ingest import Reader, TokenSpans, find_files
from clara.samples import sample_folder

_GOLDEN = Path(__file__).parents[3] / "shared" / "goldens" / "tiny_llama_base" / "tokenizer.json"


@cache
def trained() -> TokenSpans:
    """Byte-level BPE, the kind that most backbones have, trained on the sample documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [document.text for document in Reader(find_files([sample_folder()])).documents()]
    tokenizer.train_from_iterator(texts, trainer)
    return _spans_of(tokenizer)


def golden() -> TokenSpans | None:
    """The tokenizer of the tiny golden model, where the checkout has it beside itself."""
    return _spans_of(Tokenizer.from_file(str(_GOLDEN))) if _GOLDEN.exists() else None


def _spans_of(tokenizer: Tokenizer) -> TokenSpans:
    def spans(text: str) -> Sequence[tuple[int, int]]:
        offsets: Sequence[tuple[int, int]] = tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets

    return spans


def characters(text: str) -> Sequence[tuple[int, int]]:
    """One token a character: the one tokenizer whose counts add up."""
    return [(place, place + 1) for place in range(len(text))]


def words(text: str) -> Sequence[tuple[int, int]]:
    """A word is one token, however long, and white space is none: few tokens for many characters."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def moody(text: str) -> Sequence[tuple[int, int]]:
    """Tokens of two characters counted from the beginning, and more of them, of no width, after each "e".

    What a part of a text costs says little about what the text costs, and the tokens of a place depend on all before.
    """
    spans = []
    for place in range(0, len(text), 2):
        spans.append((place, min(place + 2, len(text))))
        if "e" in text[place : place + 2] and (len(text) + place) % 3:
            spans.append((place, place))
    return spans
