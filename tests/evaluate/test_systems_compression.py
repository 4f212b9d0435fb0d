"""LLMLingua and LLMLingua-2: the packages' own code on tiny models, at the budget that memories would take."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from system_cases import ASKS, LONG, replies, settings
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForTokenClassification

from clara.errors import ModelError
from clara.evaluate.lingua import TokenCounter, _PairCache, classifier_compressor, perplexity_compressor
from clara.evaluate.rankers import _minilm_folder
from clara.evaluate.systems import SYSTEMS
from clara.model import ClaraModel


def is_shortening(short: list[int], whole: list[int]) -> bool:
    """Whether ``short`` is ``whole`` with some tokens left out."""
    rest = iter(whole)
    return all(token in rest for token in short)


def test_a_text_is_read_on_from_pairs_as_in_one_piece(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    ids = torch.arange(2, 42)[None]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask).logits
        called = _PairCache(model)
        first = called(ids[:, :25], attention_mask=mask[:, :25])
        # The package drops the last keys and values and computes them again.
        pairs = [(keys[:, :, :20], values[:, :, :20]) for keys, values in first.past_key_values]
        second = called(ids[:, 20:], attention_mask=mask, past_key_values=pairs)
    torch.testing.assert_close(first.logits, whole[:, :25], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second.logits, whole[:, 20:], atol=1e-4, rtol=1e-4)
    assert first.past_key_values[0][0].shape[2] == 25  # what is handed out does not grow with later calls


def test_llmlingua_keeps_the_tokens_that_are_hardest_to_guess(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    compressor = perplexity_compressor(tiny_base, "cpu", dtype=torch.float32)
    text = LONG.text[:400]
    ids = TokenCounter(tokenizer).encode(text)
    target = len(ids) // 3
    with torch.no_grad():
        log = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    surprise = [-float(log[place, token]) for place, token in enumerate(ids[1:])]
    # Of the share that the target is of the whole, the package's threshold is the last token's own, and strict.
    ratio = target / (len(ids) + 3)
    threshold = sorted(surprise, reverse=True)[int(len(surprise) * ratio) - 1]
    # It reads the loss of a token's successor as the token's own.
    kept = [token for token, value in zip(ids, surprise, strict=False) if value > threshold]
    short = TokenCounter(tokenizer).encode(compressor(text, target))
    assert abs(len(short) - target) <= math.ceil(0.2 * target)
    assert len(set(short) & set(kept)) >= 0.8 * len(set(kept))
    assert compressor("Salt.", 16) == "Salt."


@pytest.mark.parametrize("rate", [4, 16])
def test_llmlingua_takes_what_memories_take(rate: int, tiny_model: ClaraModel, tmp_path: Path) -> None:
    run = settings(tiny_model, tmp_path, rate=rate)
    memory = replies(SYSTEMS["clara-bm25"](run))
    text = replies(SYSTEMS["llmlingua"](run))
    for ask, short, wanted in zip(ASKS, text, memory, strict=True):
        assert short.ranking == wanted.ranking
        # The same windows at the same budget, short of it by what a strict threshold and the tokenizer's joins lose.
        assert 0.5 * wanted.context_tokens <= short.context_tokens <= 1.25 * wanted.context_tokens, ask.id
        assert short.compressed_to is not None
        assert 0 < short.compressed_to < 1


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A token classifier with random weights, of the kind that LLMLingua-2's encoders are."""
    tokenizer = AutoTokenizer.from_pretrained(_minilm_folder())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=2,
            initializer_range=1.0,
        )
        model = BertForTokenClassification(config)
    folder = tmp_path / "classifier"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_llmlingua2_keeps_the_likeliest_words(classifier: Path, tiny_base: Path) -> None:
    text = "bakers call every clay oven kindly since snow foxes visit their northern harbour town near salty canals"
    seed = torch.initial_seed()
    counter = TokenCounter(AutoTokenizer.from_pretrained(tiny_base))
    compressor = classifier_compressor(classifier, counter, "cpu")
    short = compressor(text, len(counter.encode(text)) // 2).split()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = BertForTokenClassification.from_pretrained(classifier).eval()
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        keep = model(**encoded).logits[0].softmax(dim=-1)[:, 1]
    places = encoded.word_ids()
    words = text.split()
    likely = {
        word: float(torch.stack([keep[i] for i, place in enumerate(places) if place == number]).mean())
        for number, word in enumerate(words)
    }
    assert 0 < len(short) < len(words)
    assert short == [word for word in words if word in short]
    assert min(likely[word] for word in short) >= max(likely[word] for word in words if word not in short)
    assert torch.initial_seed() == seed  # the package's own constructor seeds the whole process


def test_llmlingua2_takes_what_memories_take(classifier: Path, tiny_model: ClaraModel, tmp_path: Path) -> None:
    run = settings(tiny_model, tmp_path, options={"llmlingua2": classifier}, given="gold")
    memory = replies(SYSTEMS["clara"](run))
    for ask, reply, wanted in zip(ASKS, replies(SYSTEMS["llmlingua2"](run)), memory, strict=True):
        assert reply.used == tuple(range(len(ask.docs)))
        assert 0 < reply.context_tokens <= wanted.context_tokens
        assert reply.compressed_to is not None
        assert 0 < reply.compressed_to < 1


def test_llmlingua2_refuses_another_kind_of_model(tiny_base: Path, tiny_model: ClaraModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a llama model; LLMLingua-2's published encoders are of kind bert"):
        SYSTEMS["llmlingua2"](settings(tiny_model, tmp_path, options={"llmlingua2": tiny_base}))
