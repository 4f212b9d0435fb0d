"""Prompts handed to vLLM: what it is given, and that its tokens become the answers of our own loop.

vLLM itself needs a GPU; an engine that decodes with transformers stands in for it. Where vLLM's package is installed,
the requests are made of its own types and must fit the signatures of its own engine.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from clara.errors import InputError, MissingExtraError
from clara.model import ClaraModel
from clara.model.decoder import Role
from clara.model.generator import Sampling
from clara.records import GenerationRequest

INSTALLED = find_spec("vllm") is not None
QUESTIONS = ("Where does coffee come from?", "Who won?")


def _stand_ins() -> dict[str, ModuleType]:
    """The names of vLLM 0.33 that we import, with the fields that we give them."""
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.inputs", "vllm.lora", "vllm.lora.request")}
    modules["vllm.sampling_params"] = ModuleType("vllm.sampling_params")
    modules["vllm"].SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    modules["vllm.inputs"].EmbedsPrompt = dict  # type: ignore[attr-defined]
    modules["vllm.lora.request"].LoRARequest = lambda name, number, path: SimpleNamespace(  # type: ignore[attr-defined]
        lora_name=name, lora_int_id=number, lora_path=path
    )
    modules["vllm.sampling_params"].RequestOutputKind = SimpleNamespace(DELTA="delta")  # type: ignore[attr-defined]
    return modules


class Engine:
    """Decodes like vLLM, with the model of the test.

    Attributes:
        arguments: that it was made of.
        given: prompts, with their sampling and adapter.
        aborted: requests whose reader went away.
    """

    def __init__(self, model: ClaraModel, /, **arguments: object) -> None:
        self.arguments: dict[str, Any] = arguments
        self.given: list[tuple[Any, Any, Any]] = []
        self.aborted = 0
        self._model = model

    async def generate(
        self,
        prompt: Any,  # noqa: ANN401 - of vLLM, or a stand-in
        sampling_params: Any,  # noqa: ANN401
        request_id: str,
        *,
        lora_request: Any = None,  # noqa: ANN401
    ) -> AsyncIterator[Any]:
        assert request_id
        self.given.append((prompt, sampling_params, lora_request))
        role = None if lora_request is None else lora_request.lora_name
        ids: list[int] = []
        stop = False
        try:
            for _ in range(sampling_params.max_tokens):
                await asyncio.sleep(0)
                token = self._next(prompt["prompt_embeds"], ids, role)
                ids.append(token)
                stop = token in sampling_params.stop_token_ids
                reason = "stop" if stop else "length" if len(ids) == sampling_params.max_tokens else None
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[token], finish_reason=reason)])
                if stop:
                    return
        except (GeneratorExit, asyncio.CancelledError):
            self.aborted += 1
            raise

    def _next(self, embeds: torch.Tensor, ids: list[int], role: Role | None) -> int:
        with self._model._weights.acting_as(role) as model, torch.inference_mode():
            written = model.get_input_embeddings()(torch.tensor(ids, dtype=torch.int64))
            logits = model(inputs_embeds=torch.cat([embeds, written])[None]).logits
        return int(logits[0, -1].argmax())

    def shutdown(self) -> None:
        self.arguments = {}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Our engine's module over vLLM's own types, or stand-ins."""
    names = ("clara.model.vllm_model", "clara.model.vllm_model")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    if not INSTALLED:
        for name, module in _stand_ins().items():
            monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("clara.model.vllm_model")
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def served(
    vllm: ModuleType, tiny_checkpoint: Path, tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, Engine]]:
    """A model read from by the engine that stands in for vLLM."""
    made: list[Engine] = []

    async def make(arguments: dict[str, Any]) -> Engine:
        made.append(Engine(tiny_model, **arguments))
        return made[0]

    monkeypatch.setattr(vllm, "_made", make)
    model = importlib.import_module("clara.model.vllm_model").VLLMModel.load(tiny_checkpoint)
    yield model, made[0]
    model.close()
    assert made[0].arguments == {}


@pytest.fixture
def requests(tiny_model: ClaraModel) -> list[GenerationRequest]:
    memories = tuple(tiny_model.compress(["Coffee comes from Ethiopia.", "Chess was won by Steinitz."]))
    return [
        GenerationRequest(QUESTIONS[0], memories=memories),
        GenerationRequest(QUESTIONS[1], memories=memories[1:]),
        GenerationRequest(QUESTIONS[0], texts=("Coffee comes from Ethiopia.",), reader="base"),
    ]


def test_answers_are_those_of_our_own_loop(
    served: tuple[Any, Engine], tiny_model: ClaraModel, requests: list[GenerationRequest]
) -> None:
    model, engine = served
    wanted = tiny_model.generate_many(requests, max_new_tokens=8)
    made = model.generate_many(requests, max_new_tokens=8)
    assert [each.token_ids for each in made] == [each.token_ids for each in wanted]
    assert [(each.text, each.tokens, each.finish_reason) for each in made] == [
        (each.text, each.tokens, each.finish_reason) for each in wanted
    ]
    assert "".join(model.stream(requests[0], Sampling(max_new_tokens=8))).strip() == wanted[0].text
    assert engine.arguments["enable_prompt_embeds"] is True
    assert Path(engine.arguments["model"], "config.json").exists()
    adapters = sorted(str(adapter and adapter.lora_name) for *_, adapter in engine.given)
    assert adapters == ["None", "generator", "generator", "generator"]
    for prompt, sampling, adapter in engine.given:
        assert prompt["prompt_embeds"].shape[1] == engine._model.width
        assert (sampling.temperature, sampling.max_tokens, sampling.detokenize) == (0.0, 8, False)
        assert adapter is None or Path(adapter.lora_path, "adapter_config.json").exists()


def test_a_reader_that_leaves_ends_its_request(served: tuple[Any, Engine], requests: list[GenerationRequest]) -> None:
    model, engine = served
    pieces = model.stream(requests[0], Sampling(max_new_tokens=1900))
    next(pieces)
    pieces.close()
    for _ in range(200):
        if engine.aborted:
            break
        time.sleep(0.05)
    assert engine.aborted == 1


def test_what_vllm_cannot_do_is_refused(served: tuple[Any, Engine], requests: list[GenerationRequest]) -> None:
    model, _ = served
    assert model.wording == "free"
    quoted = GenerationRequest(QUESTIONS[0], texts=("Coffee.",), reader="base", quote_from=("Coffee.",))
    with pytest.raises(InputError, match="another engine"):
        model.generate_many([quoted])
    with pytest.raises(InputError, match="greedy"):
        model.generate(QUESTIONS[0], requests[0].memories, temperature=1.0)


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "clara.model.vllm_model", raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"clara-rag\[vllm\]"):
        importlib.import_module("clara.model.vllm_model")


@pytest.mark.skipif(not INSTALLED, reason="vLLM's package is not installed")
def test_requests_fit_vllms_own_types(vllm: ModuleType) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.sampling_params import SamplingParams  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    arguments = vllm._engine_arguments(Path("base"), rank=16, adapters=2, dtype="bfloat16")
    assert arguments.keys() <= set(inspect.signature(AsyncEngineArgs).parameters)
    generate: Callable[..., Any] = AsyncLLM.generate
    inspect.signature(generate).bind(None, {}, None, "id", lora_request=None)
    sampling = vllm._sampling_of(longest=8, stops=[2])
    assert isinstance(sampling, SamplingParams)
    assert (sampling.max_tokens, sampling.stop_token_ids) == (8, [2])
    assert vllm._prompt_of(torch.zeros(3, 4)).keys() <= set(vllm.EmbedsPrompt.__annotations__)
