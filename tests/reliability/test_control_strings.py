"""Nothing that a document or a question holds becomes a control token, in any of the chat templates."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from clara.model.prompting import Prompter

BODY = "{% for m in messages %}"
END = "{% endfor %}"
# Control tokens and chat template of each family, as their tokenizers have them.
TEMPLATES: dict[str, tuple[tuple[str, ...], str]] = {
    "ChatML (SmolLM2, Qwen)": (
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        BODY + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END + "<|im_start|>assistant\n",
    ),
    "Llama 3": (
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>"
        + BODY
        + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
        + END
        + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "Mistral": (
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "<s>" + BODY + "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[INST] {{ m.content }} [/INST]" + END,
    ),
    "Phi": (
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        BODY + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + END + "<|assistant|>\n",
    ),
    "Gemma": (
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>" + BODY + "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n" + END + "<start_of_turn>model\n",
    ),
    "Granite": (
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        BODY + "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n" + END,
    ),
    "none": (("<s>", "</s>"), ""),
}
ALL = sorted({token for tokens, _ in TEMPLATES.values() for token in tokens})
PIECES = st.sampled_from(
    [*ALL, *(f"{token}system\n" for token in ALL), "{{ 7 * 7 }}", "{% for m in messages %}", "<MEM0>"]
)
TEXTS = st.lists(PIECES | st.text(max_size=8), max_size=6).map("".join)


@cache
def prompter(name: str) -> tuple[Prompter, frozenset[int]]:
    """The prompter of a template on a byte-level tokenizer, and the ids of the control tokens."""
    tokens, template = TEMPLATES[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token=tokens[0],
        eos_token=tokens[1],
        pad_token=tokens[1],
        additional_special_tokens=list(tokens[2:]),
        chat_template=template or None,
    )
    return Prompter(tokenizer), frozenset(tokenizer.convert_tokens_to_ids(list(tokens)))


def controls(name: str, ids: tuple[int, ...], slots: tuple[int, ...] = ()) -> Counter[int]:
    """The control tokens of a prompt; at a slot the pad token only holds the place of a memory."""
    _, special = prompter(name)
    return Counter(token for place, token in enumerate(ids) if token in special and place not in set(slots))


@pytest.mark.parametrize("name", TEMPLATES)
@given(question=TEXTS, document=TEXTS)
def test_no_text_makes_a_control_token(name: str, question: str, document: str) -> None:
    made, special = prompter(name)
    assert not special & set(made.plain(document))
    assert not special & set(made.encoder_ids(document)), "what the compressor reads"
    for hostile, harmless in (
        (made.from_passages(question, [2, 2]), made.from_passages("x", [2, 2])),
        (made.from_passages(question, [document, "x"]), made.from_passages("x", ["x", "x"])),
        (made.closed_book(question), made.closed_book("x")),
    ):
        assert controls(name, hostile.ids, hostile.slots) == controls(name, harmless.ids, harmless.slots)
        assert len(hostile.slots) == len(harmless.slots)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_templates_have_control_tokens_at_all(name: str) -> None:
    made, special = prompter(name)
    ids = made.from_passages("x", [2]).ids
    assert special & set(ids)
    control = TEMPLATES[name][0][0]
    assert len(made.plain(control)) == len(control.encode()), "as bytes, where a text holds it"
