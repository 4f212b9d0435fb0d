"""The generator: prompts with memories spliced in, decoded by transformers' own generation loop.

Knows prompts and tensors; which passages belong to a question is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Pieces
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from clara.config import Settings
from clara.errors import InputError, TooLongError
from clara.model.backbone import Tokenizer
from clara.model.contrast import Blanks, ContextAware
from clara.model.decoder import splice
from clara.model.prompting import Prompt, Prompter
from clara.model.quoting import Quotations, QuotesOnly
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
class _Inputs:
    """A left-padded batch of prompts.

    Attributes:
        embeds: [B, L, H].
        mask: int64 [B, L].
    """

    embeds: Tensor
    mask: Tensor


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
        if request.texts:
            return self._prompter.from_texts(request.question, request.texts)
        return self._prompter.from_memories(request.question, [len(memory.values) for memory in request.memories])

    def generate(
        self, model: PreTrainedModel, requests: Sequence[GenerationRequest], sampling: Sampling, *, scored: bool = False
    ) -> list[Generation]:
        """One answer a request; they may have different numbers of passages.

        Args:
            model: acting as the requests' reader.
            requests: all for one reader.
            sampling: how tokens are chosen.
            scored: report the answers' log-probabilities, which keeps all scores until the end.

        Raises:
            InputError: a prompt is longer than the model's context.
        """
        prompts = [self.prompt(request) for request in requests]
        inputs = self._inputs(model, prompts, requests, sampling)
        with torch.inference_mode(), _seeded(sampling.seed, model.device):
            out = model.generate(
                inputs_embeds=inputs.embeds,
                attention_mask=inputs.mask,
                generation_config=self._config(
                    model, sampling, output_logits=scored, output_scores=scored, return_dict_in_generate=True
                ),
                logits_processor=self._processors(model, requests, sampling),
            )
        stops = _stop_ids(model, self._tokenizer)
        free: list[Any] = [None] * len(requests)
        held = free
        if scored:
            free, held = (_logprobs(of, out.sequences).tolist() for of in (out.logits, out.scores))
        rows = zip(out.sequences.tolist(), free, held, prompts, requests, strict=True)
        return [self._generation(*row, stops) for row in rows]

    def stream(
        self,
        acting: Callable[[], AbstractContextManager[PreTrainedModel]],
        request: GenerationRequest,
        sampling: Sampling,
    ) -> Pieces[str, None, None]:
        """Pieces of one answer as they come; together they are its text. Closing it ends the generation.

        Args:
            acting: gives the causal LM to the thread that generates, for as long as it does.
            request: of a prompt that fits (``check_length``).
            sampling: how tokens are chosen.
        """
        streamer = TextIteratorStreamer(self._tokenizer, skip_special_tokens=True)
        if request.quote_from:
            streamer = _QuotationStreamer(self._tokenizer, self._prompter.quotations(request.quote_from))
        failure: list[BaseException] = []
        unwanted = Event()

        def work() -> None:
            try:
                with acting() as model, torch.inference_mode(), _seeded(sampling.seed, model.device):
                    inputs = self._inputs(model, [self.prompt(request)], [request], sampling)
                    model.generate(
                        inputs_embeds=inputs.embeds,
                        attention_mask=inputs.mask,
                        generation_config=self._config(model, sampling),
                        logits_processor=self._processors(model, [request], sampling),
                        stopping_criteria=StoppingCriteriaList([_Unwanted(unwanted)]),
                        streamer=streamer,
                    )
            except BaseException as error:  # noqa: BLE001 - carried to the reader's thread and raised there
                failure.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            # A reader that goes away must not leave a thread behind: at exit it would tear the process down.
            unwanted.set()
            thread.join()
        if failure:
            raise failure[0]

    def _inputs(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
    ) -> _Inputs:
        length = max(len(prompt.ids) for prompt in prompts)
        check_length(model, length, sampling)
        device = model.device
        ids = torch.full((len(prompts), length), self._prompter.eos)
        mask = torch.zeros(len(prompts), length, dtype=torch.int64)
        slots = torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            start = length - len(prompt.ids)
            ids[row, start:] = torch.tensor(prompt.ids)
            mask[row, start:] = 1
            slots[row, [start + slot for slot in prompt.slots]] = True
        embeds = model.get_input_embeddings()(ids.to(device))
        values = [memory.values for request in requests for memory in request.memories]
        if values:
            embeds = splice(embeds, slots.to(device), torch.from_numpy(np.concatenate(values)).to(device))
        return _Inputs(embeds=embeds, mask=mask.to(device))

    def _processors(
        self, model: PreTrainedModel, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> LogitsProcessorList:
        """What changes the scores: first the contrast, then what holds answers to the words of their sources."""
        made = LogitsProcessorList()
        found = [(row, contrast) for row, r in enumerate(requests) if (contrast := self._contrast(r)) is not None]
        if found:
            blank = [GenerationRequest(requests[row].question, memories=(contrast.blank,)) for row, contrast in found]
            inputs = self._inputs(model, [self.prompt(request) for request in blank], blank, sampling)
            weights = [contrast.weight for _, contrast in found]
            made.append(ContextAware(model, Blanks([row for row, _ in found], weights, inputs.embeds, inputs.mask)))
        quotations = [self._prompter.quotations(r.quote_from) if r.quote_from else None for r in requests]
        if any(quotations):
            made.append(QuotesOnly(quotations, _stop_ids(model, self._tokenizer)))
        return made

    def _config(self, model: PreTrainedModel, sampling: Sampling, **outputs: bool) -> GenerationConfig:
        chosen = (
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
        )
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=bool(sampling.temperature),
            eos_token_id=sorted(_stop_ids(model, self._tokenizer)),
            pad_token_id=self._prompter.eos,
            **chosen,
            **outputs,
        )

    def _generation(
        self,
        ids: list[int],
        free: list[float] | None,
        held: list[float] | None,
        prompt: Prompt,
        request: GenerationRequest,
        stops: set[int],
    ) -> Generation:
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        kept = ids if end is None else ids[:end]
        if end is None and request.quote_from:
            quotations = self._prompter.quotations(request.quote_from)
            while kept and not quotations.may_end(kept):  # cut off within a word, it would be no quotation
                kept = kept[:-1]
        memory = len(prompt.slots)
        judged = len(ids) if end is None else end + 1
        return Generation(
            text=self._tokenizer.decode(kept, skip_special_tokens=True).strip(),
            token_ids=tuple(kept),
            tokens=TokenCounts(
                prompt=len(prompt.ids),
                memory=memory,
                text_equivalent=len(prompt.ids) - memory + sum(m.token_count for m in request.memories),
                generated=len(kept),
            ),
            finish_reason="length" if end is None else "stop",
            evidence=None if free is None or held is None else _evidence(free[:judged], held[:judged]),
        )


def _evidence(free: Sequence[float], held: Sequence[float]) -> float:
    """Mean log-probability, a token, that an answer which nothing held to quotations would have been one so far.

    A token's log-probability among all tokens, less that among those allowed, is the logarithm of the share that the
    allowed ones had. What is rare in itself, an identifier, so does not count as doubt.
    """
    return sum(one - other for one, other in zip(free, held, strict=True)) / len(free)


def _logprobs(scores: Sequence[Tensor], ids: Tensor) -> Tensor:
    """Log-probabilities [B, generated] of generated ids [B, generated], given the scores [B, V] of each step."""
    steps = zip(scores, ids.T, strict=True)
    return torch.stack([one.float().log_softmax(-1).gather(1, step[:, None])[:, 0] for one, step in steps], dim=1)


def _stop_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> set[int]:
    """Ids that end an answer: the tokenizer's end token and those the model's own generation settings name."""
    named = model.generation_config.eos_token_id
    listed = named if isinstance(named, list) else [named]
    return {int(tokenizer.eos_token_id), *(int(i) for i in listed if i is not None)}


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


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for a while, and put those of the CPU and of GPUs back; nothing for seed None."""
    if seed is None:
        yield
        return
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield


class _QuotationStreamer(TextIteratorStreamer):  # type: ignore[misc]  # transformers is untyped here
    """Passes on a quotation as far as it is whole: what is cut off within a word is never shown."""

    def __init__(self, tokenizer: Tokenizer, quotations: Quotations) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self._quotations = quotations
        self._written: list[int] = []
        self._passed = 0

    def put(self, value: Tensor) -> None:
        """Take the next token; an end token makes no quotation longer and is held back for good."""
        self._written += value.flatten().tolist()
        if self._quotations.may_end(self._written):
            super().put(value.new_tensor(self._written[self._passed :]))
            self._passed = len(self._written)


class _Unwanted(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Ends a generation whose reader has gone."""

    def __init__(self, unwanted: Event) -> None:
        self._unwanted = unwanted

    def __call__(self, input_ids: Tensor, *_: object, **__: object) -> Tensor:
        """Whether each row is done: bool [B]."""
        return torch.full((len(input_ids),), self._unwanted.is_set(), device=input_ids.device)
