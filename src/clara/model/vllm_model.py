"""A model whose answers vLLM decodes (``--engine vllm``); it compresses and searches as always."""

from __future__ import annotations

from collections.abc import Generator as Pieces
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Self

import torch

from clara.errors import ConfigError, InputError
from clara.model.clara_model import ClaraModel, default_cache, find_checkpoint
from clara.model.generator import Sampling, stop_ids
from clara.model.hub.base import find_base
from clara.model.roles import Role
from clara.model.vllm_engine import VLLMEngine, engine_arguments
from clara.records import Generation, GenerationRequest, TokenCounts, Wording

_READERS: tuple[Role, ...] = ("generator", "text_reader")


class VLLMModel(ClaraModel):
    """A native checkpoint, read from by vLLM. Answers are free: quotations need our own loop."""

    _engine: VLLMEngine

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
        dtype = str(bare.dtype).removeprefix("torch.")
        arguments = engine_arguments(base, rank=model.manifest.lora.rank, adapters=len(adapters), dtype=dtype)
        model._engine = VLLMEngine(arguments, adapters)
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
        prompt = self._generator.prompt(request)
        memory = len(prompt.slots)
        return Generation(
            text=text.strip(),
            token_ids=tuple(ids),
            tokens=TokenCounts(
                prompt=len(prompt.ids),
                memory=memory,
                text_equivalent=len(prompt.ids) - memory + sum(each.token_count for each in request.memories),
                generated=len(ids),
            ),
            finish_reason="stop" if stopped else "length",
            evidence=None,
        )

    def _tokens(self, request: GenerationRequest, sampling: Sampling) -> Pieces[int, None, bool]:
        """The tokens of an answer.

        Raises:
            InputError: it was to be a quotation, or drawn by chance; or the prompt is too long.
        """
        if request.quote_from:
            raise InputError("vLLM cannot be held to quotations; use wording free, or --engine torch")
        if sampling.temperature:
            raise InputError("with --engine vllm answers are greedy; leave temperature at 0, or use --engine torch")
        bare = self._network.adapters.bare()
        role: Role | None = None if request.reader == "base" else request.reader
        with torch.inference_mode():
            embeds = self._generator.embeds(bare, request, sampling)
        stops = sorted(stop_ids(bare, self._tokenizer))
        return self._engine.tokens(embeds, role=role, longest=sampling.max_new_tokens, stops=stops)
