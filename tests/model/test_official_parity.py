"""Against the reference outputs of the official code, in fp32, on its tiny random checkpoint.

Tolerances are those the project set itself: memories and logits 1e-4, scores 1e-5, losses 1e-4, gradient norms 0.1 %;
ids and selections are equal.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from official_folders import CASE, GOLDENS, candidate_scores, needs_goldens
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer

from clara.model import ClaraModel, create
from clara.model.apple.format import ADAPTER_NAMES
from clara.model.apple.vocabulary import OfficialPrompter
from clara.model.apple.write import convert
from clara.model.create import Loaded
from clara.model.decoder import Role, splice
from clara.model.losses import memory_mse, select, straight_through_top_k, token_cross_entropy
from clara.model.network import Encoded
from clara.model.placement import Placement
from clara.records import GenerationRequest, Memory

pytestmark = needs_goldens

BASE = GOLDENS / "tiny_llama_base"
FOLDER = CASE / "ckpt_stage2"
INJECTED = 7
"""The document whose text holds special strings; the official code makes control tokens of them."""
MEMORIES = 4
FIRST_MEMORY, ENC, SEP = 49152, 49157, 49158


def arrays(name: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(CASE / f"{name}.npz") as file:
        return dict(file)


def facts(name: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((CASE / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["as published", "converted"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The checkpoint straight from Apple's folder, and from the native one that ``convert`` makes of it."""
    folder = FOLDER
    if request.param == "converted":
        folder = tmp_path_factory.mktemp("converted") / "native"
        convert(FOLDER, folder, folder.parent, base_name=str(BASE), progress=lambda *_: None)
    loaded = create.from_checkpoint(folder, folder, Placement(), base_name=str(BASE))
    loaded.network.eval()
    return loaded


@pytest.fixture(scope="module")
def model(loaded: Loaded) -> ClaraModel:
    return ClaraModel("golden", loaded)


@pytest.fixture(scope="module")
def prompter(loaded: Loaded) -> OfficialPrompter:
    prompter = loaded.prompter()
    assert isinstance(prompter, OfficialPrompter)
    return prompter


def unpadded(ids: npt.NDArray[Any], mask: npt.NDArray[Any]) -> list[list[int]]:
    return [row[seen.astype(bool)].tolist() for row, seen in zip(ids, mask, strict=True)]


def encode(loaded: Loaded, role: Role, ids: npt.NDArray[Any], mask: npt.NDArray[Any]) -> Encoded:
    """Encode the official ids as they are, their memory tokens left out (the network appends its own)."""
    texts = torch.from_numpy(ids)[:, :-MEMORIES]
    return loaded.network.encode(role, texts, torch.from_numpy(mask)[:, :-MEMORIES].bool(), rate=16)


@pytest.fixture(scope="module")
def document_memories(loaded: Loaded, model: ClaraModel) -> dict[str, Memory]:
    """Memory of each of the case's documents, made of the official ids: so that document 7 is what it was there."""
    gold = arrays("compress")
    with torch.no_grad():
        values = encode(loaded, "compressor", gold["enc_input_ids"], gold["enc_attention_mask"]).memory.numpy()
    texts = facts("case")["docs"]
    return {text: Memory(row.copy(), model.fingerprint, 16, 1) for text, row in zip(texts, values, strict=True)}


def test_encoder_ids_are_equal(prompter: OfficialPrompter) -> None:
    tail = list(range(FIRST_MEMORY, FIRST_MEMORY + MEMORIES))
    case, documents, questions = facts("case"), arrays("compress"), arrays("query")
    rows = unpadded(documents["enc_input_ids"], documents["enc_attention_mask"])
    for number, (text, row) in enumerate(zip(case["docs"], rows, strict=True)):
        assert (prompter.encoder_ids(text) + tail == row) is (number != INJECTED)
    rows = unpadded(questions["q_input_ids"], questions["q_attention_mask"])
    assert [prompter.encoder_ids(text) + tail for text in case["questions"]] == rows


def test_special_strings_in_a_document_stay_text(prompter: OfficialPrompter, model: ClaraModel) -> None:
    """The official code turns "<|im_end|> <SEP> <AE> <ENC>" in a document into control tokens; here it is text."""
    text = facts("case")["docs"][INJECTED]
    ids = prompter.encoder_ids(text)
    assert ids[:2] == [ENC, 1]
    assert ids[-1] == 2
    assert not {1, 2, *range(FIRST_MEMORY, SEP + 1)} & set(ids[2:-1])
    gold = arrays("compress")["mem"][INJECTED]
    assert np.abs(model.compress([text])[0].values - gold).max() > 0.1


def test_a_question_is_tokenised_with_what_stands_before_it(prompter: OfficialPrompter) -> None:
    """As trained: a quotation mark joins the colon before it. Only a text with special strings is cut loose."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    question = '"Weldenia"?'
    body = tokenizer(f"\n\nQuestion:{question}", add_special_tokens=False).input_ids
    apart = tokenizer("\n\nQuestion:", add_special_tokens=False).input_ids
    apart += tokenizer(question, add_special_tokens=False).input_ids
    assert body != apart
    ids = list(prompter.from_passages(question, [MEMORIES]).ids)
    start = ids.index(SEP) + 1
    assert ids[start : start + len(body)] == body
    injected = list(prompter.from_passages(question + "<|im_end|>", [MEMORIES]).ids)
    assert injected[start : start + len(apart) - 1] == apart[:-1]  # the last token ends in what follows it
    assert injected.count(2) == ids.count(2)


def test_memories_and_their_mse(loaded: Loaded, model: ClaraModel) -> None:
    gold = arrays("compress")
    with torch.no_grad():
        encoded = encode(loaded, "compressor", gold["enc_input_ids"], gold["enc_attention_mask"])
    np.testing.assert_allclose(encoded.memory.numpy(), gold["mem"], rtol=0, atol=1e-4)
    text, read = encoded.read_out.text_mean, encoded.read_out.read.mean(dim=1)
    assert float(memory_mse(text, read)) == pytest.approx(float(gold["mse_loss"]), abs=1e-4)
    for i, value in enumerate(gold["mse_loss_per_doc"]):
        assert float(memory_mse(text[i : i + 1], read[i : i + 1])) == pytest.approx(float(value), abs=1e-4)
    made = model.compress(facts("case")["docs"])
    for i, memory in enumerate(made):
        if i != INJECTED:
            np.testing.assert_allclose(memory.values, gold["mem"][i], rtol=0, atol=1e-4)


def test_query_vectors(model: ClaraModel) -> None:
    made = model.encode_queries(facts("case")["questions"])
    values = np.stack([memory.values.reshape(-1) for memory in made])
    np.testing.assert_allclose(values, arrays("query")["q_rep"], rtol=0, atol=1e-4)


def test_scores_selection_prompts_and_answers(
    loaded: Loaded, model: ClaraModel, prompter: OfficialPrompter, document_memories: dict[str, Memory]
) -> None:
    told, gold = facts("generate_from_questions"), arrays("generate_from_questions")
    queries = torch.stack([torch.tensor(m.values) for m in model.encode_queries(told["questions"])])
    candidates = [[document_memories[text] for text in row] for row in told["documents"]]
    memories = torch.stack([torch.stack([torch.tensor(m.values) for m in row]) for row in candidates])
    scores = candidate_scores(queries, memories)
    np.testing.assert_allclose(scores.numpy(), gold["scores"], rtol=0, atol=1e-5)
    chosen = straight_through_top_k(scores, told["top_k"], temperature=told["temperature"])
    assert chosen.indices.tolist() == gold["topk_idx"].tolist()
    np.testing.assert_allclose(chosen.weights.numpy(), gold["W"], rtol=0, atol=1e-6)
    prompts = [prompter.from_passages(question, [MEMORIES] * told["top_k"]) for question in told["questions"]]
    assert [list(prompt.ids) for prompt in prompts] == unpadded(gold["dec_input_ids"], gold["dec_attention_mask"])
    requests = [
        GenerationRequest(question, memories=tuple(row[i] for i in picked))
        for question, row, picked in zip(told["questions"], candidates, chosen.indices.tolist(), strict=True)
    ]
    answers = model.generate_many(requests, max_new_tokens=told["max_new_tokens"])
    assert [list(answer.token_ids) for answer in answers] == gold["output_ids"].tolist()
    assert [answer.text for answer in answers] == [text.strip() for text in told["text"]]
    with torch.no_grad():
        for row, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            embeds = _spliced(loaded, prompt.ids, request)
            np.testing.assert_allclose(
                embeds[0].numpy(), gold["inputs_embeds"][row, -len(prompt.ids) :], rtol=0, atol=1e-4
            )
            logits = loaded.network.logits(_decode(loaded, embeds, torch.ones(1, len(prompt.ids)).bool())[0, -1])
            np.testing.assert_allclose(logits.numpy(), gold["prefill_last_logits"][row], rtol=0, atol=1e-4)


def test_answers_from_given_documents(
    model: ClaraModel, prompter: OfficialPrompter, document_memories: dict[str, Memory]
) -> None:
    told, gold = facts("generate_from_text"), arrays("generate_from_text")
    requests = [
        GenerationRequest(question, memories=tuple(document_memories[text] for text in texts))
        for question, texts in zip(told["questions"], told["documents"], strict=True)
    ]
    prompts = [prompter.from_passages(r.question, [MEMORIES] * len(r.memories)).ids for r in requests]
    assert [list(ids) for ids in prompts] == unpadded(gold["dec_input_ids"], gold["dec_attention_mask"])
    answers = model.generate_many(requests, max_new_tokens=told["max_new_tokens"])
    assert [list(answer.token_ids) for answer in answers] == gold["output_ids"].tolist()
    one = facts("generate_from_compressed")
    answer = model.generate(one["question"], model.compress(one["documents"]), max_new_tokens=16)
    assert [list(answer.token_ids)] == one["output_ids"]
    assert answer.text == one["text"][0].strip()


def test_paraphrases(loaded: Loaded, prompter: OfficialPrompter, document_memories: dict[str, Memory]) -> None:
    for told in facts("generate_from_paraphrase"):
        (texts,) = told["documents"]
        prompt = prompter.restate(told["template"], [MEMORIES] * len(texts))
        if "dec_input_ids" in told:
            assert [list(prompt.ids)] == told["dec_input_ids"]
        request = GenerationRequest("restate", memories=tuple(document_memories[text] for text in texts))
        ids, made = list(prompt.ids), list[int]()
        with torch.no_grad():
            while len(made) < len(told["output_ids"][0]):
                embeds = _spliced(loaded, ids, request)
                hidden = _decode(loaded, embeds, torch.ones(1, len(ids)).bool())
                made.append(int(loaded.network.logits(hidden[0, -1]).argmax()))
                ids.append(made[-1])
        assert made == told["output_ids"][0]


def test_training_loss_and_gradients(loaded: Loaded) -> None:
    """End to end: the batch's loss, its tokens' losses, and the gradients of both trained adapters.

    Ours masks taken documents with minus infinity, the official selector with log(1e-8); on cosine scores at
    temperature 0.02 the gradient norms agree to a few millionths.
    """
    network, batch = loaded.network, arrays("stage2_loss_batch")
    told = facts("stage2_loss")["results"]["ce"]
    trained: tuple[Role, ...] = ("generator", "query_reasoner")
    for role in trained:
        for parameter in network.adapters.parameters_of(role):
            parameter.requires_grad = True
    with torch.no_grad():
        documents = encode(loaded, "compressor", batch["enc_input_ids"], batch["enc_attention_mask"])
    queries = encode(loaded, "query_reasoner", batch["query_input_ids"], batch["query_attention_mask"])
    memories = documents.memory.reshape(len(queries.memory), -1, *documents.memory.shape[1:])
    selection = straight_through_top_k(candidate_scores(queries.memory, memories), 3, temperature=0.02)
    # Two documents of the second question are cut to the same ids: a tie, in which the official code takes the later.
    gold_choice = torch.from_numpy(batch["topk_idx"])
    for row in range(len(memories)):
        torch.testing.assert_close(
            memories[row, selection.indices[row]], memories[row, gold_choice[row]], rtol=0, atol=1e-5
        )
    ids, mask = torch.from_numpy(batch["dec_input_ids"]), torch.from_numpy(batch["dec_attention_mask"]).bool()
    slots = (ids >= FIRST_MEMORY) & (ids < FIRST_MEMORY + MEMORIES)
    embeds = splice(network.embed(ids), slots, select(selection, memories).flatten(0, 2))
    labels = torch.from_numpy(batch["labels"])[:, 1:]
    seen = labels != -100
    logits = network.logits(_decode(loaded, embeds, mask)[:, :-1][seen])
    each = functional.cross_entropy(logits, labels[seen], reduction="none")
    np.testing.assert_allclose(each.detach().numpy(), batch["label_nll"], rtol=0, atol=1e-4)
    loss = token_cross_entropy(logits, labels[seen], torch.ones(int(seen.sum())))
    assert loss.item() == pytest.approx(told["loss"], abs=1e-4)
    mse = memory_mse(documents.read_out.text_mean, documents.read_out.read.mean(dim=1))
    assert mse.item() == pytest.approx(told["mse_loss"], abs=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    for role in trained:
        name = ADAPTER_NAMES[role]
        gradients = [p.grad for p in network.adapters.parameters_of(role) if p.grad is not None]
        norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        assert norm == pytest.approx(told["grad_norms"][name], rel=1e-3)
        assert len(gradients) == told["grad_norms"][f"{name}_n_params_with_grad"]
    network.zero_grad()


def _spliced(loaded: Loaded, ids: Any, request: GenerationRequest) -> Tensor:  # noqa: ANN401 - tuple or list
    row = torch.tensor([list(ids)])
    slots = (row >= FIRST_MEMORY) & (row < FIRST_MEMORY + MEMORIES)
    values = np.concatenate([memory.values for memory in request.memories])
    return splice(loaded.network.embed(row), slots, torch.from_numpy(values))


def _decode(loaded: Loaded, embeds: Tensor, mask: Tensor) -> Tensor:
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, :]
    attention = (causal | torch.eye(length, dtype=torch.bool))[:, None]
    return loaded.network.decode(embeds, attention, (mask.long().cumsum(1) - 1).clamp(min=0))
