"""Asks the language model within the budget, and never twice for what is in the cache.

Knows requests and replies; what the words in them mean is for ``contract``, how patiently a server is asked for
``clara.llm``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clara.errors import LLMRefusedError
from clara.llm.client import AsyncLLM, Reply, Usage
from clara.synth.budget import Budget
from clara.synth.cache import ReplyCache, request_key
from clara.synth.settings import SamplingSettings, ServerSettings

_MODES = ("json_schema", "json_object", "none")


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the language model.

    Attributes:
        messages: chat messages.
        schema_name: name of the reply's shape.
        schema: JSON schema of the reply.
        temperature: sampling temperature.
        attempt: the round, from 1; another round is another request even with the same words.
    """

    messages: Sequence[Mapping[str, str]]
    schema_name: str
    schema: Mapping[str, Any]
    temperature: float
    attempt: int


class ChatClient:
    """A language model behind an OpenAI-compatible server.

    Args:
        server: where it is and how patiently to ask.
        sampling: how it samples.
        cache: where replies are kept.
        budget: what may be spent.
        api_key: the server's key; servers of one's own usually take any.
        on_reply: called after each reply that the server gave.

    Attributes:
        answered: usable replies of the server.
    """

    def __init__(
        self,
        server: ServerSettings,
        sampling: SamplingSettings,
        cache: ReplyCache,
        budget: Budget,
        *,
        api_key: str = "",
        on_reply: Callable[[], None] | None = None,
    ) -> None:
        self._server = server
        self._sampling = sampling
        self._cache = cache
        self._budget = budget
        self._llm = AsyncLLM(server, api_key=api_key)
        self._slots = asyncio.Semaphore(server.concurrency)
        self._asking: dict[str, asyncio.Lock] = {}  # by key, the requests under way
        self._mode_fact = f"structured_output:{server.model}"
        self._on_reply = on_reply
        self.answered = 0

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._llm.close()

    @property
    def requests(self) -> int:
        """Requests sent, further attempts included."""
        return self._llm.requests

    @property
    def retried(self) -> Counter[str]:
        """Attempts that failed and were repeated, by fault."""
        return self._llm.retried

    async def ask(self, request: Request) -> Reply:
        """The reply to a request: from the cache, or from the server and then kept.

        Raises:
            LLMRefusedError: the server refuses this request.
            LLMUnavailableError: no usable reply in all attempts.
            BudgetSpentError: nothing more may be spent.
            LLMError: the server refuses every request (key, address, model).
        """
        modes = self._modes()
        bodies = {mode: self._body(request, mode) for mode in modes}
        keys = {mode: request_key(body, request.attempt) for mode, body in bodies.items()}
        for key in keys.values():
            if cached := self._cache.get(key):
                return cached
        known = self._cache.fact(self._mode_fact)
        # The way known to work first, then what asks for less: another server may stand behind the address now.
        modes = modes[modes.index(known) :] if known in modes else modes
        for place, mode in enumerate(modes):
            try:
                reply = await self._ask_once(bodies[mode], keys[mode])
            except LLMRefusedError:
                if place == len(modes) - 1:
                    raise
                continue  # the refusal may be of the response format
            if mode != known and self._server.structured_output == "auto":
                self._cache.learn(self._mode_fact, mode)
            return reply
        raise AssertionError("there is always a mode")  # pragma: no cover

    async def _ask_once(self, body: dict[str, Any], key: str) -> Reply:
        """The stored reply, or one from the server; equal requests at one time are sent once."""
        lock = self._asking.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                if cached := self._cache.get(key):
                    return cached
                reply = await self._send(body)
                self._cache.put(key, reply)
        finally:
            if not lock.locked():
                self._asking.pop(key, None)
        self.answered += 1
        if self._on_reply:
            self._on_reply()
        return reply

    def _modes(self) -> tuple[str, ...]:
        """How structure may be asked for, the strictest way first."""
        wanted = self._server.structured_output
        return _MODES if wanted == "auto" else (wanted,)

    def _body(self, request: Request, mode: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._server.model,
            "messages": [dict(message) for message in request.messages],
            "temperature": request.temperature,
            "top_p": self._sampling.top_p,
            self._server.length_parameter: self._sampling.max_output_tokens,
        }
        if self._sampling.seed is not None:
            body["seed"] = self._sampling.seed + request.attempt - 1
        if mode == "json_schema":
            schema = {"name": request.schema_name, "strict": True, "schema": dict(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif mode == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body | self._sampling.extra_body

    async def _send(self, body: dict[str, Any]) -> Reply:
        async with self._slots:
            prompt_bytes = sum(len(message["content"].encode()) for message in body["messages"])
            estimate = await self._budget.admit(prompt_bytes, self._sampling.max_output_tokens)
            usage = Usage()
            # Only the named fields are parameters of the library; whatever else the user adds goes through as it is.
            extra = self._sampling.extra_body
            try:
                reply = await self._llm.send({key: body[key] for key in body.keys() - extra.keys()}, extra)
                usage = reply.usage
            finally:
                await self._budget.settle(estimate, usage, prompt_bytes)
            return reply
