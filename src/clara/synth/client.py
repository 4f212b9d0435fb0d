"""Asks the language model over HTTP: patiently, within the budget, and never twice for what is in the cache.

Any OpenAI-compatible server will do. Knows requests and replies; what the words in them mean is for ``contract``.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from clara.errors import MissingExtraError, SynthesisError
from clara.synth.budget import Budget, Usage
from clara.synth.cache import Reply, ReplyCache, request_key
from clara.synth.faults import RequestRefusedError, ServerUnavailableError
from clara.synth.settings import SamplingSettings, ServerSettings

try:
    import openai
    import tenacity
except ImportError as error:
    raise MissingExtraError(error.name or "openai", "synth") from None

_MODES = ("json_schema", "json_object", "none")
_UNREACHED_ATTEMPTS = 4
_TRANSIENT = frozenset({408, 409, 425, 429})
_OVERLOADED = frozenset({429, 503})
_NOT_IMPLEMENTED = 501  # a refusal: of the response format, most likely
_FATAL = {
    401: "set the key that the server expects (environment variable CLARA_LLM_API_KEY)",
    403: "the key may not use this model",
    404: "check the address and the model's name",
}


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


class SlowReplyError(Exception):
    """No whole reply within the time-out."""


class BrokenReplyError(Exception):
    """A reply with status 200 that is no chat completion; asking again may help."""


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
        requests: requests sent, further attempts included.
        answered: usable replies of the server.
        retried: attempts that failed and were repeated, by fault.
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
        # The library's own retries are off: it would retry unseen, and without a common pause after a 429.
        self._client = openai.AsyncOpenAI(
            base_url=server.url, api_key=api_key or "none", max_retries=0, timeout=server.timeout_seconds
        )
        self._slots = asyncio.Semaphore(server.concurrency)
        self._asking: dict[str, asyncio.Lock] = {}  # by key, the requests under way
        self._quiet_until = 0.0
        self._mode_fact = f"structured_output:{server.model}"
        self._reached = False  # the server has said anything at all
        self._on_reply = on_reply
        self.requests = self.answered = 0
        self.retried: Counter[str] = Counter()

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, request: Request) -> Reply:
        """The reply to a request: from the cache, or from the server and then kept.

        Raises:
            RequestRefusedError: the server refuses this request.
            ServerUnavailableError: no usable reply in all attempts.
            BudgetSpentError: nothing more may be spent.
            SynthesisError: the server refuses every request (key, address, model).
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
            except RequestRefusedError:
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
            try:
                reply = await self._retrying(body)
                usage = reply.usage
            finally:
                await self._budget.settle(estimate, usage, prompt_bytes)
            return reply

    async def _retrying(self, body: dict[str, Any]) -> Reply:
        attempts = tenacity.AsyncRetrying(
            stop=self._enough,
            wait=self._wait,
            retry=tenacity.retry_if_exception(_is_transient),
            reraise=True,
        )
        try:
            return await attempts(self._once, body)
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except (openai.OpenAIError, SlowReplyError, BrokenReplyError) as error:
            raise ServerUnavailableError(self._gave_up(_words_of(error))) from None

    async def _once(self, body: dict[str, Any]) -> Reply:
        while (pause := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        self.requests += 1
        completions = self._client.chat.completions.with_raw_response
        # Only the named fields are parameters of the library; whatever else the user adds goes through as it is.
        known = {key: value for key, value in body.items() if key not in self._sampling.extra_body}
        try:
            # The library's time-out is for each piece of a reply: one that trickles in would never end.
            async with asyncio.timeout(self._server.timeout_seconds):
                response = await completions.create(**known, extra_body=self._sampling.extra_body or None)
        except TimeoutError:
            raise SlowReplyError(f"no whole reply within {self._server.timeout_seconds:g} seconds") from None
        except openai.APIStatusError:
            self._reached = True
            raise
        self._reached = True
        return _read_completion(response.text)

    def _enough(self, state: tenacity.RetryCallState) -> bool:
        """Whether to give up; sooner when nobody has ever answered: the address is wrong, or no server is running."""
        attempts = self._server.retries + 1
        return state.attempt_number >= (attempts if self._reached else min(attempts, _UNREACHED_ATTEMPTS))

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next attempt: doubling with jitter, or what the server asks for if that is more."""
        error = state.outcome.exception() if state.outcome else None
        self.retried[_label(error)] += 1
        doubled = self._server.first_wait_seconds * 2.0 ** (state.attempt_number - 1)
        wait = min(doubled, self._server.max_wait_seconds) * random.uniform(0.5, 1.0)
        if isinstance(error, openai.APIStatusError) and error.status_code in _OVERLOADED:
            asked = _retry_after(error.response.headers)
            if asked is not None:
                wait = max(wait, min(asked, self._server.max_wait_seconds))
                # Every request waits, or the others would be refused one by one and use up their attempts.
                self._quiet_until = max(self._quiet_until, time.monotonic() + wait)
        return wait

    def _status_error(self, error: openai.APIStatusError) -> SynthesisError:
        status, said = error.status_code, _words_of(error)
        if error.code == "insufficient_quota":
            return SynthesisError(f"{self._server.url}: the account has no quota left ({said}); go on with --resume")
        if _is_transient(error):
            return ServerUnavailableError(self._gave_up(f"status {status}: {said}"))
        if status in _FATAL:
            return SynthesisError(f"{self._server.url} answers {status} ({said}): {_FATAL[status]}")
        return RequestRefusedError(f"{self._server.url} refuses a request with {status}: {said}")

    def _gave_up(self, said: str) -> str:
        if not self._reached:
            return f"nothing answers at {self._server.url} ({said}); start the server or correct the address"
        return f"{self._server.url} gave no usable reply in {self._server.retries + 1} attempts; the last: {said}"


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        spent = error.code == "insufficient_quota"
        failed = error.status_code >= 500 and error.status_code != _NOT_IMPLEMENTED
        return (error.status_code in _TRANSIENT or failed) and not spent
    return isinstance(error, openai.APIConnectionError | SlowReplyError | BrokenReplyError)


def _label(error: BaseException | None) -> str:
    """The name under which a retried fault is counted."""
    if isinstance(error, openai.APIStatusError):
        return f"status_{error.status_code}"
    if isinstance(error, openai.APITimeoutError | SlowReplyError):
        return "timeout"
    return "broken_reply" if isinstance(error, BrokenReplyError) else "connection"


def _words_of(error: BaseException) -> str:
    cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) else ""
    return (str(error) + cause)[:300]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a ``Retry-After`` header, given in seconds or as a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _read_completion(text: str) -> Reply:
    """The reply in a chat completion; strict about what is needed, blind to the rest."""
    try:
        envelope = json.loads(text)
        choice = envelope["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        raise BrokenReplyError(f"expected a chat completion, got {text[:200]!r}") from None
    if isinstance(content, list):  # content in parts, as some servers send it
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise BrokenReplyError(f"expected a message of text, got {content!r:.200}")
    clean = content.encode("utf-8", "replace").decode("utf-8")  # JSON can spell half a character
    return Reply(clean, str(choice.get("finish_reason") or ""), _usage(envelope.get("usage"), clean))


def _usage(counted: object, text: str) -> Usage:
    """Tokens as the server counts them; a server that does not count gives an estimate for the reply."""
    counts = counted if isinstance(counted, dict) else {}
    prompt, completion = (counts.get(key) for key in ("prompt_tokens", "completion_tokens"))
    return Usage(
        prompt if isinstance(prompt, int) and prompt >= 0 else 0,
        completion if isinstance(completion, int) and completion >= 0 else len(text.encode()) // 4,
    )
