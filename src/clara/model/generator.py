"""The generator: prompts with memories spliced in, and the answers that ``decode_loop`` writes after them.

Knows prompts and tensors; which passages belong to a question is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Generator as Pieces
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from clara.config import Settings
from clara.errors import InputError, TooLongError
from clara.model.backbone import Tokenizer
from clara.model.contrast import contrasted
from clara.model.decode_loop import DecodeLoop, DecodingRow
from clara.model.decoder import splice
from clara.model.prompting import Prompt, Prompter
from clara.model.quoting import Quotations, quotes_only
from clara.records import Generation, GenerationRequest, Memory, TokenCounts


class Sampling(Settings):
    """How tokens are chosen.

    Attributes:
        max_new_tokens: most tokens of an answer.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: sample from the smallest set of tokens with this probability together.
        seed: of sampling, what torch takes; None draws anew each time.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)


def sampling(**values: float | None) -> Sampling:
    """Settings from a user's values.

    Raises:
        InputError: names every value that cannot be.
    """
    try:
        return Sampling.model_validate(values)
    except ValidationError as error:
        faults = [f"{fault['loc'][0]}: {fault['msg']}, got {fault['input']!r}" for fault in error.errors()]
        raise InputError("; ".join(faults)) from None


@dataclass(frozen=True, slots=True)
class Contrast:
    """What an answer is held against (``contrast``).

    Attributes:
        blank: a memory that stands for no passage in particular.
        weight: what a log-probability given it counts against one given the passages; above 0.
    """

    blank: Memory
    weight: float


@dataclass(frozen=True, slots=True)
class _Answering:
    """A request that is answered.

    Attributes:
        request: the request.
        prompt: its prompt.
        row: its answer.
        quotations: what that may be; None for anything.
    """

    request: GenerationRequest
    prompt: Prompt
    row: DecodingRow
    quotations: Quotations | None


class Generator:
    """Turns requests into answers with a causal LM that acts as the wanted reader."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompter: Prompter,
        contrast: Callable[[GenerationRequest], Contrast | None] = lambda _: None,
    ) -> None:
        """Fix what all answers share.

        Args:
            tokenizer: of the model that will answer.
            prompter: of the same.
            contrast: what a request's answer is held against; None for nothing.
        """
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._contrast = contrast

    def prompt(self, request: GenerationRequest) -> Prompt:
        """The request's prompt."""
        memories = [len(memory.values) for memory in request.memories]
        return self._prompter.from_passages(request.question, [*request.texts, *memories])

    def generate(
        self, decoder: DecodeLoop, requests: Sequence[GenerationRequest], sampling: Sampling, *, scored: bool = False
    ) -> list[Generation]:
        """One answer a request; they may have different numbers of passages.

        Args:
            decoder: of the requests' reader.
            requests: all for one reader.
            sampling: how tokens are chosen.
            scored: report each answer's ``evidence``.

        Raises:
            InputError: a prompt is longer than the model's context.
        """
        answers = self._answers(decoder, requests, sampling, scored=scored)
        for _ in decoder.steps([answer.row for answer in answers]):
            pass
        return [self._generation(answer) for answer in answers]

    def stream(
        self, decoder: DecodeLoop, request: GenerationRequest, sampling: Sampling, *, scored: bool = False
    ) -> Pieces[str, None, Generation]:
        """One answer in pieces of its text, one a token, which is empty where nothing can be shown yet.

        Closing it ends the answer. Arguments and errors as ``generate``; returns the answer.
        """
        (answer,) = self._answers(decoder, [request], sampling, scored=scored)
        shown = ""
        with closing(decoder.steps([answer.row])) as steps:
            for _ in steps:
                text = self._showable(answer, shown)
                yield text[len(shown) :]
                shown = text
        yield self._text(self._kept(answer))[len(shown) :]
        return self._generation(answer)

    def question_likelihoods(self, decoder: DecodeLoop, question: str, memories: Sequence[Memory]) -> list[float]:
        """Log-probability of a question after each memory alone, in nats.

        Args:
            decoder: of the generator.
            question: in words.
            memories: all of one rate.

        Raises:
            TooLongError: the prompt is longer than the model's context.
        """
        if not memories:
            return []
        prompt, asked = self._prompter.asked(question, len(memories[0].values))
        with decoder.acting() as model, torch.inference_mode():
            check_length(model, len(prompt.ids), Sampling(max_new_tokens=1))
            rows = torch.stack([self._spliced(model, prompt, [memory]) for memory in memories])
            states = model.get_decoder()(inputs_embeds=rows, use_cache=False).last_hidden_state
            logits = model.get_output_embeddings()(states[:, -asked - 1 : -1]).float()
            ids = torch.tensor(prompt.ids[-asked:], device=logits.device).expand(len(rows), -1)
            found: list[float] = logits.log_softmax(dim=-1).gather(2, ids[..., None]).sum(dim=(1, 2)).tolist()
        return found

    def embeds(self, model: PreTrainedModel, request: GenerationRequest, sampling: Sampling) -> Tensor:
        """What the model reads of a request: [L, H].

        Args:
            model: acting as the request's reader.
            request: the request.
            sampling: says how long the answer may be.

        Raises:
            InputError: the prompt is longer than the model's context.
        """
        prompt = self.prompt(request)
        check_length(model, len(prompt.ids), sampling)
        return self._spliced(model, prompt, request.memories)

    def _spliced(self, model: PreTrainedModel, prompt: Prompt, memories: Sequence[Memory]) -> Tensor:
        """The embeddings of a prompt with memories in its slots: [L, H]."""
        embeds: Tensor = model.get_input_embeddings()(torch.tensor([prompt.ids], device=model.device))
        if memories:
            slots = torch.zeros(1, len(prompt.ids), dtype=torch.bool)
            slots[0, list(prompt.slots)] = True
            values = np.concatenate([memory.values for memory in memories])
            embeds = splice(embeds, slots.to(model.device), torch.from_numpy(values).to(model.device))
        return embeds[0]

    def _answers(
        self, decoder: DecodeLoop, requests: Sequence[GenerationRequest], sampling: Sampling, *, scored: bool
    ) -> list[_Answering]:
        with decoder.acting() as model, torch.inference_mode():
            stops = stop_ids(model, self._tokenizer)
            return [self._answering(model, request, sampling, stops, scored=scored) for request in requests]

    def _answering(
        self,
        model: PreTrainedModel,
        request: GenerationRequest,
        sampling: Sampling,
        stops: frozenset[int],
        *,
        scored: bool,
    ) -> _Answering:
        row = DecodingRow((self.embeds(model, request, sampling),), sampling.max_new_tokens, stops=stops, scored=scored)
        contrast = self._contrast(request)
        if contrast is not None:
            blank = GenerationRequest(request.question, memories=(contrast.blank,))
            row.prompts += (self.embeds(model, blank, sampling),)
            row.joined = partial(contrasted, weight=contrast.weight)
        quotations = None
        if request.quote_from:
            quotations = self._prompter.quotations(request.quote_from, refusing=request.refusing)
        if quotations is not None:
            row.filters = (partial(quotes_only, quotations=quotations, stops=sorted(stops)),)
        if sampling.temperature:
            row.choose = _draws(sampling, model.device)
        return _Answering(request, self.prompt(request), row, quotations)

    def _showable(self, answer: _Answering, shown: str) -> str:
        """The text that can be shown of an unfinished answer, given what has been."""
        written = list(answer.row.written)
        if answer.quotations is not None and not answer.quotations.may_end(written):
            return shown  # cut off within a word, it would be no quotation
        text = self._text(written)
        return shown if text.endswith("\N{REPLACEMENT CHARACTER}") else text  # within a character

    def _kept(self, answer: _Answering) -> list[int]:
        """The ids of an answer that has ended; a quotation that was cut off ends with a word."""
        kept = list(answer.row.written)
        if answer.quotations is not None and not answer.row.stopped:
            while kept and not answer.quotations.may_end(kept):
                kept.pop()
        return kept

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _generation(self, answer: _Answering) -> Generation:
        kept, prompt, row = self._kept(answer), answer.prompt, answer.row
        memory = len(prompt.slots)
        return Generation(
            text=self._text(kept).strip(),
            token_ids=tuple(kept),
            tokens=TokenCounts(
                prompt=len(prompt.ids),
                memory=memory,
                text_equivalent=len(prompt.ids) - memory + sum(m.token_count for m in answer.request.memories),
                generated=len(kept),
            ),
            finish_reason="stop" if row.stopped else "length",
            evidence=_evidence(row.free, row.held) if row.scored else None,
        )


def _draws(sampling: Sampling, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Chooses tokens by chance."""
    source = torch.Generator(device)
    if sampling.seed is None:
        source.seed()
    else:
        source.manual_seed(sampling.seed)
    warpers = [TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)]

    def choose(scores: Tensor) -> Tensor:
        scores = scores[None]
        for warper in warpers:
            scores = warper(None, scores)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=source)[0, 0]

    return choose


def _evidence(free: Sequence[float], held: Sequence[float]) -> float:
    """Mean log-probability, a token, that an answer which nothing held to quotations would have been one so far.

    A token's log-probability among all tokens, less that among those allowed, is the logarithm of the share that the
    allowed ones had. What is rare in itself, an identifier, so does not count as doubt.
    """
    return sum(one - other for one, other in zip(free, held, strict=True)) / len(free)


def stop_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's end token and those the model's own generation settings name."""
    named = model.generation_config.eos_token_id
    listed = named if isinstance(named, list) else [named]
    return frozenset({int(tokenizer.eos_token_id), *(int(i) for i in listed if i is not None)})


def check_length(model: PreTrainedModel, length: int, sampling: Sampling) -> None:
    """Refuse a prompt that a model cannot read to the end of its answer.

    Args:
        model: says how many positions it has.
        length: of the longest prompt, in tokens.
        sampling: says how long answers may be.

    Raises:
        TooLongError: says what would make it fit.
    """
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    if limit is None or length + sampling.max_new_tokens <= limit:
        return
    said = f"the prompt has {length} tokens and {sampling.max_new_tokens} may follow, the model takes {limit}; "
    if length < limit:
        raise TooLongError(f"{said}let at most {limit - length} follow (--max-new-tokens)")
    raise TooLongError(f"{said}use fewer passages (--k) or memories instead of text (--context memory)")
