"""The look inside, against the switched (unmerged) network and slow second versions, on the tiny checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clara.errors import ConfigError, InputError
from clara.model import ClaraModel, create
from clara.model.create import Loaded
from clara.model.inspection import EncoderRole, _centred_cosines
from clara.model.placement import Placement
from clara.records import FloatArray, Memory

QUESTION = "Who built the tower?"
TEXTS = ("The tower was built by Ann.", "Rye bread is baked twice a year.", "Owls hunt at dusk.", "It has nine arches.")
RATE = 16


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> Loaded:
    """The checkpoint's network, whose adapters are switched and never merged: another way to the same numbers."""
    made = create.from_checkpoint(tiny_checkpoint, tiny_checkpoint, Placement())
    made.network.eval()
    return made


def hidden_and_memory(loaded: Loaded, text: str) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.tensor([loaded.prompter().encoder_ids(text)])
    with torch.no_grad():
        out = loaded.network.encode("compressor", ids, torch.ones_like(ids).bool(), rate=RATE)
    return out.read_out.text_mean[0], out.read_out.read[0], out.memory[0]


def test_states_are_the_networks_and_the_memories_compress_gives(tiny_model: ClaraModel, loaded: Loaded) -> None:
    found = tiny_model.inspector().states(TEXTS, role="compressor", rate=RATE)
    for text, states, memory in zip(TEXTS, found, tiny_model.compress(TEXTS, rate=RATE), strict=True):
        mean, hidden, values = hidden_and_memory(loaded, text)
        np.testing.assert_allclose(states.text_mean, mean, atol=1e-4)
        np.testing.assert_allclose(states.hidden, hidden, atol=1e-4)
        np.testing.assert_allclose(states.memory, values, atol=1e-4)
        np.testing.assert_allclose(states.memory, memory.values, atol=1e-4)
        assert np.abs(states.memory - states.hidden).max() > 0.01, "this checkpoint scales its memories"


@pytest.mark.parametrize("role", ["compressor", "query_reasoner"])
def test_the_lens_of_hidden_states_is_a_product_with_the_head(
    tiny_model: ClaraModel, loaded: Loaded, role: EncoderRole
) -> None:
    inspector = tiny_model.inspector()
    assert inspector.weights_of(role) == "compressor", "an untrained reasoner reads with the compressor's weights"
    lens = inspector.lens(QUESTION, role=role, rate=RATE, top=3)
    head = loaded.network.adapters.bare().get_output_embeddings().weight
    tokenizer = loaded.base.tokenizer
    assert (lens.space, lens.score, len(lens.slots)) == ("hidden", "logit", 64 // RATE)
    for slot, state in zip(lens.slots, hidden_and_memory(loaded, QUESTION)[1], strict=True):
        scores = [float(torch.dot(state, row)) for row in head.detach()]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:3]
        assert [item.token for item in slot] == [tokenizer.decode([i]) for i in order]
        assert [item.score for item in slot] == pytest.approx([scores[i] for i in order], abs=1e-3)
        starts = [str(tokenizer.convert_ids_to_tokens(i)).startswith("Ġ") for i in order]
        assert [item.begins_word for item in slot] == starts


def test_the_lens_of_memories_compares_with_token_embeddings(tiny_model: ClaraModel, loaded: Loaded) -> None:
    lens = tiny_model.inspector().lens(QUESTION, role="query_reasoner", rate=RATE, space="memory", top=2)
    table = loaded.network.adapters.bare().get_input_embeddings().weight.detach().double().numpy()
    mean = table.mean(axis=0)
    for slot, memory in zip(lens.slots, hidden_and_memory(loaded, QUESTION)[2].double().numpy(), strict=True):
        away = memory - mean
        cosines = [float((row - mean) @ away / np.linalg.norm(row - mean) / np.linalg.norm(away)) for row in table]
        best = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:2]
        assert [item.token for item in slot] == [loaded.base.tokenizer.decode([i]) for i in best]
        assert [item.score for item in slot] == pytest.approx([cosines[i] for i in best], abs=1e-4)
    assert lens.score == "cosine"


def test_cosines_are_centred() -> None:
    embeddings = torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 4.0]])  # mean (2, 2)
    found = _centred_cosines(torch.tensor([[4.0, 0.0]]), embeddings)  # (2, -2) from the mean
    wanted = [1.0, 0.0, -math.sqrt(0.5)]  # of (1, -1), (-1, -1), (0, 2)
    assert found[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_faults_are_named(tiny_model: ClaraModel) -> None:
    inspector = tiny_model.inspector()
    with pytest.raises(InputError, match="empty"):
        inspector.lens("", role="compressor", rate=RATE)
    with pytest.raises(ConfigError, match="4x, 16x"):
        inspector.states(["a"], role="compressor", rate=8)
    with pytest.raises(InputError, match="0 tokens"):
        inspector.attention(QUESTION, tiny_model.compress(["a"], rate=RATE), ())


def slow_prompt(loaded: Loaded, memories: Sequence[FloatArray], reply: Sequence[int]) -> tuple[Tensor, int]:
    """Input embeddings [1, L, H] put together row by row, and the prompt's length."""
    prompt = loaded.prompter().from_passages(QUESTION, [len(values) for values in memories])
    table = loaded.network.adapters.bare().get_input_embeddings().weight.detach()
    vectors = iter([torch.tensor(row) for values in memories for row in values])
    rows = [next(vectors) if place in prompt.slots else table[i] for place, i in enumerate(prompt.ids)]
    return torch.stack([*rows, *(table[i] for i in reply)])[None], len(prompt.ids)


def slow_likelihood(loaded: Loaded, memories: Sequence[FloatArray], answer: str) -> float:
    """One token after the other, the prompt read anew for each."""
    tokenizer = loaded.base.tokenizer
    reply = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    total = 0.0
    for place, token in enumerate(reply):
        embeds, _ = slow_prompt(loaded, memories, reply[:place])
        with torch.no_grad(), loaded.network.adapters.use("generator"):
            logits = loaded.network.adapters.bare()(inputs_embeds=embeds).logits[0, -1].double()
        total += float(logits[token] - logits.logsumexp(dim=0))
    return total


def test_likelihoods_are_those_of_one_prompt_at_a_time(tiny_model: ClaraModel, loaded: Loaded) -> None:
    m = tiny_model.compress(TEXTS, rate=RATE)
    contexts = [[m[0]], [m[1], m[2]], [], [m[3]], [m[2], m[1]], [tiny_model.compress([TEXTS[0]], rate=4)[0]]]
    found = tiny_model.inspector().log_likelihood(QUESTION, contexts, " Ann of Holm ")
    wanted = [slow_likelihood(loaded, [memory.values for memory in context], "Ann of Holm") for context in contexts]
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert len(set(np.round(found, 3))) == len(contexts), "every context gives another likelihood"


def test_selection_gradient_equals_differences_through_the_softmax(tiny_model: ClaraModel) -> None:
    """The generator's part by finite differences, the selector's by the softmax's Jacobian written out."""
    k, tau, answer, step = 2, 0.7, "Ann", 0.02
    candidates = tiny_model.compress(TEXTS, rate=RATE)
    query = tiny_model.encode_queries([QUESTION], rate=RATE)[0]
    inspector = tiny_model.inspector()
    found = inspector.selection_gradient(QUESTION, query, candidates, answer, k=k, temperature=tau)

    scores = np.array([float(query.search_vector() @ memory.search_vector()) for memory in candidates], np.float64)
    order = [int(i) for i in np.argsort(-scores, kind="stable")[:k]]
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    assert list(found.selected) == order
    powers = np.exp(scores / tau)
    np.testing.assert_allclose(found.probability, powers / powers.sum(), atol=1e-5)
    alone = [inspector.log_likelihood(QUESTION, [[memory]], answer)[0] for memory in candidates]
    np.testing.assert_allclose(found.likelihood, alone, atol=1e-4)

    def loss(slot: int, towards: int, amount: float) -> float:
        values = [candidates[i].values.copy() for i in order]
        values[slot] = values[slot] + amount * candidates[towards].values
        moved = [Memory(v.astype(np.float32), query.fingerprint, RATE, 1) for v in values]
        return -float(inspector.log_likelihood(QUESTION, [moved], answer)[0])

    wanted = np.zeros(len(candidates))
    for slot in range(k):
        left = [i for i in range(len(candidates)) if i not in order[:slot]]
        soft = {i: math.exp(scores[i] / tau) for i in left}
        total = sum(soft.values())
        slopes = {i: (loss(slot, i, step) - loss(slot, i, -step)) / (2 * step) for i in left}
        for a in left:
            for i in left:
                p_i, p_a = soft[i] / total, soft[a] / total
                wanted[a] += slopes[i] * p_i * ((i == a) - p_a) / tau
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(found.gradient, wanted, atol=0.03 * np.abs(wanted).max())


def test_attention_is_that_of_one_whole_pass(tiny_model: ClaraModel, loaded: Loaded) -> None:
    memories = tiny_model.compress(TEXTS[:3], rate=RATE)
    answer = [40, 41, 42]
    found = tiny_model.inspector().attention(QUESTION, memories, answer)
    n, layers = 64 // RATE, 2
    assert found.memories.shape == (layers, len(answer), 3, n)
    whole = found.memories.sum(axis=(2, 3)) + found.question + found.before + found.rest
    np.testing.assert_allclose(whole, 1, atol=1e-5)
    np.testing.assert_allclose(found.before[:, 0], 0, atol=1e-7)

    embeds, length = slow_prompt(loaded, [memory.values for memory in memories], answer[:-1])
    model = loaded.network.adapters.bare()
    model.set_attn_implementation("eager")
    with torch.no_grad(), loaded.network.adapters.use("generator"):
        attentions = model(inputs_embeds=embeds, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    slots = loaded.prompter().from_passages(QUESTION, [n] * 3).slots
    for layer, weights in enumerate(attentions):
        heads = weights[0].numpy()
        for row in range(len(answer)):
            place = length - 1 + row
            mean = sum(heads[h, place] for h in range(heads.shape[0])) / heads.shape[0]
            wanted = [[mean[slots[p * n + i]] for i in range(n)] for p in range(3)]
            np.testing.assert_allclose(found.memories[layer, row], wanted, atol=1e-5)
            np.testing.assert_allclose(found.question[layer, row], mean[slots[-1] + 1 : length].sum(), atol=1e-5)
            np.testing.assert_allclose(found.first[layer, row], mean[0], atol=1e-5)


def test_attention_leaves_the_models_kernels_as_they_were(tiny_model: ClaraModel) -> None:
    memories = tiny_model.compress(TEXTS[:1], rate=RATE)
    before = tiny_model.generate(QUESTION, memories, max_new_tokens=3)
    tiny_model.inspector().attention(QUESTION, memories, (50,))
    assert tiny_model.generate(QUESTION, memories, max_new_tokens=3).token_ids == before.token_ids
    with tiny_model._weights.acting_as("generator") as model:
        assert model.config._attn_implementation != "eager"
