"""A model whose answers vLLM decodes (``--engine vllm``); it compresses and searches as always.

Prompts are handed over as embeddings, memories spliced in here, and the readers' adapters as LoRA requests. vLLM holds
the base weights and decodes all questions under way together, in a process of its own. Quotations and contrast need the
scores of every token and stay with our own loop: answers of vLLM are free ones.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import secrets
from collections.abc import Generator, Mapping, Sequence
from collections.abc import Generator as Pieces
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from clara.errors import ConfigError, InputError, MissingExtraError
from clara.model.clara_model import ClaraModel, default_cache, find_checkpoint
from clara.model.decoder import Role
from clara.model.generator import Sampling, stop_ids
from clara.model.hub.base import find_base
from clara.records import Generation, GenerationRequest, Wording

try:
    from vllm import SamplingParams
    from vllm.inputs import EmbedsPrompt
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind
except ModuleNotFoundError:
    raise MissingExtraError("vllm", "vllm") from None

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


class _VLLMEngine:
    """vLLM with the base weights, on an event loop in a thread of its own; threads may share it.

    ``adapters``: PEFT's folder of each role.
    """

    def __init__(self, arguments: Mapping[str, Any], adapters: Mapping[Role, Path]) -> None:
        self._adapters = {
            role: LoRARequest(role, number, str(folder)) for number, (role, folder) in enumerate(adapters.items(), 1)
        }
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._engine = asyncio.run_coroutine_threadsafe(_made(arguments), self._loop).result()
        atexit.register(self.close)

    def close(self) -> None:
        """End vLLM, if it has not ended."""
        atexit.unregister(self.close)
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._engine.shutdown)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def tokens(
        self, embeds: Tensor, *, role: Role | None, longest: int, stops: Sequence[int]
    ) -> Generator[int, None, bool]:
        """The tokens that follow a prompt [L, H] as they come, without ``stops``; returns whether it ended by itself.

        ``role``: whose adapter acts; None for the base alone. Closing it ends the request.
        """
        events: queue.SimpleQueue[int | bool | BaseException] = queue.SimpleQueue()
        prompt = EmbedsPrompt(prompt_embeds=embeds.detach().cpu().contiguous())  # vLLM takes them on the CPU
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=longest,
            stop_token_ids=sorted(stops),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        running: Future[None] = asyncio.run_coroutine_threadsafe(
            self._follow(prompt, sampling, role, frozenset(stops), events), self._loop
        )
        try:
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, bool):
                    return event
                yield event
        finally:
            running.cancel()  # vLLM aborts a request whose reader has gone

    async def _follow(
        self,
        prompt: EmbedsPrompt,
        sampling: SamplingParams,
        role: Role | None,
        stops: frozenset[int],
        events: queue.SimpleQueue[int | bool | BaseException],
    ) -> None:
        adapter = None if role is None else self._adapters[role]
        stopped = False
        try:
            output: RequestOutput
            async for output in self._engine.generate(prompt, sampling, secrets.token_hex(8), lora_request=adapter):
                (written,) = output.outputs
                for token in written.token_ids:
                    if token not in stops:
                        events.put(token)
                stopped = written.finish_reason == "stop"
        except BaseException as error:
            events.put(error)
            raise
        events.put(stopped)


async def _made(arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401 - vLLM's
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415 - loads CUDA's libraries
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415 - as above

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


_READERS: tuple[Role, ...] = ("generator", "text_reader")


class VLLMModel(ClaraModel):
    """A native checkpoint, read from by vLLM. Answers are free: quotations need our own loop."""

    _engine: _VLLMEngine

    @classmethod
    def load(cls, name: Any = "smollm2-135m", **options: Any) -> Self:  # noqa: ANN401 - of ClaraModel.load
        """As ``ClaraModel.load``; vLLM is started with the same base weights.

        Raises:
            ConfigError: the weights are quantised, or the checkpoint has Apple's format.
        """
        if options.get("dtype") in {"int8", "int4"}:
            raise ConfigError("--engine vllm takes plain weights; give --dtype bf16, fp16 or fp32")
        model = super().load(name, **options)
        assert isinstance(model, cls)  # noqa: S101 - made of cls
        folder = find_checkpoint(str(name)) / "adapters"
        adapters: dict[Role, Any] = {role: folder / role for role in _READERS if (folder / role).is_dir()}
        if not adapters:
            raise ConfigError(f"--engine vllm takes a native checkpoint with adapters, and {name} has none")
        base = find_base(options.get("base") or model.manifest.base_model, options.get("cache") or default_cache())
        bare = model._network.adapters.bare()
        arguments = {
            "model": str(base),
            "dtype": str(bare.dtype).removeprefix("torch."),
            "enable_prompt_embeds": True,
            "enable_lora": True,
            "max_lora_rank": next(room for room in _RANKS if room >= model.manifest.lora.rank),
            "max_loras": len(adapters),
        }
        model._engine = _VLLMEngine(arguments, adapters)
        return model

    @property
    def wording(self) -> Wording:
        """Free: vLLM is not held to quotations."""
        return "free"

    def stream(
        self, request: GenerationRequest, sampling: Sampling, *, scored: bool = False
    ) -> Pieces[str, None, Generation]:
        """As ``ClaraModel.stream``."""
        del scored  # only quotations are judged
        self._check([request])
        return self._pieces(request, sampling)

    def close(self) -> None:
        """End vLLM."""
        self._engine.close()

    def _generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, *, scored: bool = False
    ) -> list[Generation]:
        del scored
        self._check(requests)
        # All are under way before the first is waited for.
        with ThreadPoolExecutor(max(1, len(requests))) as pool:
            return list(pool.map(lambda request: self._whole(request, sampling), requests))

    def _whole(self, request: GenerationRequest, sampling: Sampling) -> Generation:
        pieces = self._pieces(request, sampling)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                generation: Generation = end.value
                return generation

    def _pieces(self, request: GenerationRequest, sampling: Sampling) -> Pieces[str, None, Generation]:
        shown, ids, stopped = "", list[int](), False
        with closing(self._tokens(request, sampling)) as tokens:
            while True:
                try:
                    ids.append(next(tokens))
                except StopIteration as end:
                    stopped = end.value
                    break
                text = self._tokenizer.decode(ids, skip_special_tokens=True)
                if text.endswith("\N{REPLACEMENT CHARACTER}"):  # within a character
                    yield ""
                    continue
                yield text[len(shown) :]
                shown = text
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        yield text[len(shown) :]
        return self._generator.written(request, ids, stopped=stopped)

    def _tokens(self, request: GenerationRequest, sampling: Sampling) -> Pieces[int, None, bool]:
        """The tokens of an answer (InputError: it was to be a quotation, or sampled; or the prompt is too long)."""
        if request.quote_from:
            raise InputError("vLLM cannot be held to quotations; use wording free, or another engine")
        if sampling.temperature:
            raise InputError("answers by vLLM are greedy; leave temperature at 0, or use another engine")
        bare = self._network.adapters.bare()
        role: Role | None = None if request.reader == "base" else request.reader
        with torch.inference_mode():
            embeds = self._generator.embeds(bare, request, sampling)
        stops = sorted(stop_ids(bare, self._tokenizer))
        return self._engine.tokens(embeds, role=role, longest=sampling.max_new_tokens, stops=stops)
