"""Inside a loaded model: hidden states, the logit lens, attention to memories, gradients of the selection.

The tensor side of ``clara inspect`` and of ``clara.analysis``, which see only the records of numpy arrays made here.
Shape letters: D candidates, K selected, N memory tokens, H hidden size, T answer tokens, L prompt positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from clara.errors import InputError
from clara.model.attention import attending
from clara.model.backbone import Tokenizer
from clara.model.decoder import Role, RoleWeights
from clara.model.generator import memory_vectors, prompt_embeds
from clara.model.losses import MIN_TEMPERATURE, select, straight_through_top_k
from clara.model.network import Encoded, Network, StoredNetwork, encode
from clara.model.prompting import Prompt, Prompter
from clara.records import FloatArray, Memory, QueryMemory
from clara.similarity import similarities

EncoderRole = Literal["compressor", "query_reasoner"]
Space = Literal["hidden", "memory"]

_CANDIDATES_AT_ONCE = 8
"""Prompts scored in one forward pass."""

_WORD_STARTS = ("Ġ", "▁", " ")
"""Marks of a token that begins a word, in byte-level and SentencePiece vocabularies."""


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Hidden states and memory of one text.

    Attributes:
        text_mean: float32 [H], mean last hidden state of the text's own tokens.
        hidden: float32 [N, H], last hidden states that the memory is read from.
        memory: float32 [N, H]; equal to ``hidden`` where the checkpoint has no residual and no gain.
    """

    text_mean: FloatArray
    hidden: FloatArray
    memory: FloatArray


@dataclass(frozen=True, slots=True)
class _LensToken:
    """A vocabulary token near a memory vector, with the space before it if it has one; its logit or cosine.

    ``begins_word`` is false for a later piece of a word.
    """

    token: str
    score: float
    begins_word: bool


@dataclass(frozen=True, slots=True)
class Lens:
    """The logit lens of one text: the kind of its scores, and the top tokens of each memory vector, best first."""

    space: Space
    score: Literal["logit", "cosine"]
    slots: tuple[tuple[_LensToken, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class SelectionGradient:
    """The selection of one question, and the gradient of its answer's loss.

    Attributes:
        scores: float32 [D], similarity of question and candidate.
        probability: float32 [D], softmax of scores / tau: the first slot's soft selection.
        gradient: float32 [D], of minus the answer's log-likelihood (nats, summed over its tokens) with respect to the
            scores, through the straight-through selector; a descent step raises scores with a negative one.
        likelihood: float32 [D], log-likelihood of the answer (nats, summed) with that candidate alone in the prompt.
        selected: the K candidates of the forward pass, best first.
    """

    scores: FloatArray
    probability: FloatArray
    gradient: FloatArray
    likelihood: FloatArray
    selected: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AnswerAttention:
    """The generator's attention while it writes an answer, averaged over heads.

    A row belongs to the position that an answer token is predicted from; over all key positions it sums to one.

    Attributes:
        memories: float32 [layers, T, K, N], to each memory vector.
        question: float32 [layers, T], to everything between the last memory and the answer.
        before: float32 [layers, T], to the answer tokens before.
        rest: float32 [layers, T], to all else: system prompt, separators between memories.
        first: float32 [layers, T], the part of ``rest`` at the first position: the attention sink.
    """

    memories: FloatArray
    question: FloatArray
    before: FloatArray
    rest: FloatArray
    first: FloatArray


class Inspector:
    """Looks inside a model; made by ``ClaraModel.inspector``."""

    def __init__(
        self,
        network: Network | StoredNetwork,
        weights: RoleWeights,
        tokenizer: Tokenizer,
        prompter: Prompter,
        ids: Callable[[str, str], list[int]],
    ) -> None:
        """``ids`` gives checked tokens of (text, name of the text in errors)."""
        self._network = network
        self._weights = weights
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._ids = ids

    def weights_of(self, role: EncoderRole) -> Role:
        """The role whose adapter ``role`` uses: an untrained query reasoner is the compressor."""
        return self._network.adapters.weights_of(role)

    def states(self, texts: Sequence[str], *, role: EncoderRole, rate: int) -> list[States]:
        """Last hidden states and memories of texts, in order, as encoded by ``role``.

        Raises:
            InputError: a text is empty or too long.
            ConfigError: the rate is not served.
        """
        made = []
        with self._weights.acting_as(role) as model, torch.inference_mode():
            for place, text in enumerate(texts):
                encoded = self._encode(model, text, f"text {place}", role, rate)
                parts = (encoded.read_out.text_mean, encoded.read_out.read, encoded.memory)
                made.append(States(*(part[0].float().cpu().numpy() for part in parts)))
        return made

    def lens(self, text: str, *, role: EncoderRole, rate: int, space: Space = "hidden", top: int = 5) -> Lens:
        """The top tokens of each memory vector of a text (clara.md section 7).

        ``hidden`` multiplies the last hidden states by the LM head, as the paper does. ``memory`` compares the memory
        with the token embeddings that it stands among in the generator's prompt: cosine after their mean is taken off
        both. There the LM head says little: tokens with long embeddings win every slot.


        Raises:
            InputError: the text is empty or too long.
            ConfigError: the rate is not served.
        """
        with self._weights.acting_as(role) as model, torch.inference_mode():
            encoded = self._encode(model, text, "the text", role, rate)
            if space == "hidden":
                scores = encoded.read_out.read[0].float() @ model.get_output_embeddings().weight.float().T
            else:
                scores = _centred_cosines(encoded.memory[0], model.get_input_embeddings().weight)
            best = scores.topk(min(top, scores.shape[-1]), dim=-1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        slots = tuple(tuple(map(self._token, ids, values)) for ids, values in rows)
        return Lens(space, "logit" if space == "hidden" else "cosine", slots)

    def log_likelihood(self, question: str, contexts: Sequence[Sequence[Memory]], answer: str) -> FloatArray:
        """Log-likelihood of an answer and its end token under each context: float32 [contexts], nats, summed.

        A context is the memories of a prompt, best first; prompts of equal length share a forward pass.
        """
        likelihoods = np.zeros(len(contexts), dtype=np.float32)
        lengths = [sum(len(memory.values) for memory in context) for context in contexts]
        order = sorted(range(len(contexts)), key=lambda place: (len(contexts[place]), lengths[place]))
        with self._weights.acting_as("generator") as model, torch.inference_mode():
            for start in range(0, len(order), _CANDIDATES_AT_ONCE):
                for places in _alike(order[start : start + _CANDIDATES_AT_ONCE], contexts):
                    prompt, reply = self._prompt(question, contexts[places[0]]), self._reply(answer)
                    rows = [memory_vectors(model, contexts[place]) for place in places]
                    scores = _reply_scores(model, prompt, reply, torch.cat(rows), count=len(places))
                    likelihoods[places] = scores.cpu().numpy()
        return likelihoods

    def selection_gradient(
        self,
        question: str,
        query: QueryMemory,
        candidates: Sequence[Memory],
        answer: str,
        *,
        k: int,
        temperature: float,
    ) -> SelectionGradient:
        """The straight-through selector of ``k`` slots on one question and its gold answer (clara.md section 5).

        Raises:
            InputError: ``k`` is not between 1 and the number of candidates.
        """
        stacked = torch.from_numpy(np.stack([memory.values for memory in candidates]))[None]
        scores = torch.tensor([similarities(query, candidates)]).requires_grad_()
        chosen = straight_through_top_k(scores, k, temperature=temperature)
        prompt = self._prompt(question, [candidates[i] for i in chosen.indices[0].tolist()])
        with self._weights.acting_as("generator") as model:
            picked = select(chosen, stacked)[0].flatten(0, 1).to(model.device)
            loss = -_reply_scores(model, prompt, self._reply(answer), picked, count=1).sum()
            (gradient,) = torch.autograd.grad(loss, scores)
        return SelectionGradient(
            scores=scores.detach()[0].numpy(),
            probability=(scores.detach() / max(temperature, MIN_TEMPERATURE)).softmax(dim=1)[0].numpy(),
            gradient=gradient[0].numpy(),
            likelihood=self.log_likelihood(question, [[memory] for memory in candidates], answer),
            selected=tuple(chosen.indices[0].tolist()),
        )

    def attention(self, question: str, memories: Sequence[Memory], answer_ids: Sequence[int]) -> AnswerAttention:
        """Attention while an answer is written, averaged over heads.

        Memories are the prompt's, best first, all at one rate. Only the answer's rows are computed by the eager
        kernels, which alone return attention weights; no [L, L] matrix is held.

        Raises:
            InputError: there is no memory or no answer token.
        """
        if not memories or not answer_ids:
            raise InputError(
                f"attention needs memories and an answer, got {len(memories)} and {len(answer_ids)} tokens"
            )
        prompt, t = self._prompt(question, memories), len(answer_ids)
        with self._weights.acting_as("generator") as model, torch.inference_mode():
            embeds = prompt_embeds(model, prompt, memory_vectors(model, memories), more=answer_ids[:-1])
            decoder, split = model.get_decoder(), len(prompt.ids) - 1
            read = decoder(inputs_embeds=embeds[:, :split], use_cache=True)
            with attending(model, "eager"):
                out = decoder(
                    inputs_embeds=embeds[:, split:],
                    past_key_values=read.past_key_values,
                    use_cache=True,
                    output_attentions=True,
                )
            rows = torch.stack([layer[0].float().mean(dim=0) for layer in out.attentions]).cpu().numpy()
        slots, length = list(prompt.slots), len(prompt.ids)
        words = [place for place in range(slots[-1]) if place not in set(slots)]
        return AnswerAttention(
            memories=rows[:, :, slots].reshape(rows.shape[0], t, len(memories), -1),
            question=rows[:, :, slots[-1] + 1 : length].sum(axis=2),
            before=rows[:, :, length:].sum(axis=2),
            rest=rows[:, :, words].sum(axis=2),
            first=rows[:, :, 0],
        )

    def _encode(self, model: PreTrainedModel, text: str, label: str, role: EncoderRole, rate: int) -> Encoded:
        network, query = self._network, role == "query_reasoner"
        ids = torch.tensor([self._ids(text, label)], device=model.device)
        return encode(model, network.table, ids, torch.ones_like(ids).bool(), rate=rate, query=query)

    def _prompt(self, question: str, memories: Sequence[Memory]) -> Prompt:
        return self._prompter.from_passages(question, [len(memory.values) for memory in memories])

    def _reply(self, answer: str) -> list[int]:
        """The answer as in training: its tokens and the end token."""
        return [*self._prompter.plain(answer.strip()), self._prompter.eos]

    def _token(self, number: int, score: float) -> _LensToken:
        piece = self._tokenizer.convert_ids_to_tokens(number)
        begins = isinstance(piece, str) and piece.startswith(_WORD_STARTS)
        text: str = self._tokenizer.decode([number])
        return _LensToken(text, score, begins)


def _centred_cosines(memory: Tensor, embeddings: Tensor) -> Tensor:
    """Cosine of memory vectors [N, H] with token embeddings [V, H], their mean taken off both: float32 [N, V]."""
    table = embeddings.float()
    mean = table.mean(dim=0)
    return functional.normalize(memory.float() - mean, dim=-1) @ functional.normalize(table - mean, dim=-1).T


def _alike(places: Sequence[int], contexts: Sequence[Sequence[Memory]]) -> Iterator[list[int]]:
    """Runs of places whose prompts have the same slots."""
    for _, run in groupby(places, key=lambda place: [len(memory.values) for memory in contexts[place]]):
        yield list(run)


def _reply_scores(model: PreTrainedModel, prompt: Prompt, reply: list[int], values: Tensor, *, count: int) -> Tensor:
    """Summed log-probability of a reply after each of ``count`` prompts: float32 [count]."""
    embeds = prompt_embeds(model, prompt, values, count=count, more=reply[:-1])
    out = model.get_decoder()(inputs_embeds=embeds, use_cache=False)
    scores: Tensor = model.get_output_embeddings()(out.last_hidden_state[:, len(prompt.ids) - 1 :])
    chances = scores.float().log_softmax(dim=-1)
    labels = torch.tensor(reply, device=model.device).expand(count, -1)
    return chances.gather(2, labels[:, :, None])[:, :, 0].sum(dim=1)
