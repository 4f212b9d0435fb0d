"""Asks a language model over HTTP: retries with growing waits, one pause for all after a 429, a limit to each wait.

Knows chat messages and replies; what the words in them mean is for the rooms above. Importing it needs the extra
``llm``. ``LLM`` blocks and suits one question at a time (``clara ask --llm``); ``AsyncLLM`` has many requests under way
(``clara synth``). Both keep the same rules, which are in ``_Patience``.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar

from clara.config import LLMSettings
from clara.errors import LLMError, LLMRefusedError, LLMUnavailableError, MissingExtraError

try:
    import httpx2  # comes with openai, whose streams raise its errors as they are
    import openai
    import tenacity
except ImportError as error:
    raise MissingExtraError(error.name or "openai", "llm") from None

_UNREACHED_ATTEMPTS = 4
_TRANSIENT = frozenset({408, 409, 425, 429})
_OVERLOADED = frozenset({429, 503})
_NOT_IMPLEMENTED = 501  # a refusal: of the response format, most likely
_FATAL = {
    401: "set the key that the server expects (environment variable CLARA_LLM_API_KEY)",
    403: "the key may not use this model",
    404: "check the address and the model's name",
}
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written by the server."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.prompt - other.prompt, self.completion - other.completion)

    @property
    def total(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of the language model; ``finish_reason`` is ``stop``, ``length``, … as the server says."""

    text: str
    finish_reason: str
    usage: Usage


class _SlowReplyError(Exception):
    """No whole reply within the time-out."""


class _BrokenReplyError(Exception):
    """A reply with status 200 that is no chat completion; asking again may help."""


class LLM:
    """A language model that is asked one question at a time; threads may share it.

    Servers of one's own usually take any key.
    """

    def __init__(self, settings: LLMSettings, *, api_key: str = "") -> None:
        self._settings = settings
        self._patience = _Patience(settings)
        # The library's own retries are off: it would retry unseen, and without a common pause after a 429.
        self._client = openai.OpenAI(
            base_url=settings.url, api_key=api_key or "none", max_retries=0, timeout=settings.timeout_seconds
        )

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def reply(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int) -> Reply:
        """The model's reply to ``{"role", "content"}`` messages, stripped and never empty, cut after ``max_tokens``.

        Raises:
            LLMUnavailableError: no usable reply in all attempts.
            LLMRefusedError: the server refuses this request (too long, say).
            LLMError: it refuses every request (key, address, model, quota), or wrote no text.
        """
        reply = self._retrying(self._once, self._body(messages, max_tokens))
        if not reply.text.strip():
            self._wrote_nothing(max_tokens)
        return replace(reply, text=reply.text.strip())

    def stream(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        at_end: Callable[[Reply], None] | None = None,
    ) -> Iterator[str]:
        """The reply piece by piece, as the server sends it; closing the iterator ends the request.

        Arguments and errors are those of ``reply``. Attempts are repeated until the reply begins; one that breaks
        off later is an ``LLMUnavailableError``. ``at_end`` is told the whole reply.
        """
        body = self._body(messages, max_tokens)
        said, finish_reason, usage = "", "", None
        with self._retrying(self._open, body) as stream:
            try:
                for chunk in stream:
                    usage = chunk.usage or usage
                    if not chunk.choices:
                        continue
                    finish_reason = chunk.choices[0].finish_reason or finish_reason
                    piece = _whole_characters(chunk.choices[0].delta.content or "")
                    if piece:
                        said += piece
                        yield piece
            except (openai.OpenAIError, httpx2.HTTPError, ValueError, AttributeError, TypeError) as error:
                raise LLMUnavailableError(
                    f"{self._settings.url} broke off in the middle of its reply ({_words_of(error)}); ask again"
                ) from None
        if not said.strip():
            self._wrote_nothing(max_tokens)
        if at_end is not None:
            counted = None if usage is None else usage.model_dump()
            at_end(Reply(said, finish_reason, _usage(counted, said)))

    def _body(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> dict[str, Any]:
        return {
            "model": self._settings.model,
            "messages": [dict(message) for message in messages],
            "temperature": 0.0,
            self._settings.length_parameter: max_tokens,
        }

    def _retrying(self, once: Callable[[dict[str, Any]], _Result], body: dict[str, Any]) -> _Result:
        try:
            return tenacity.Retrying(**self._patience.rules)(once, body)
        except (openai.OpenAIError, _SlowReplyError, _BrokenReplyError) as error:
            raise self._patience.explained(error) from None

    def _once(self, body: dict[str, Any]) -> Reply:
        self._begin()
        deadline = time.monotonic() + self._settings.timeout_seconds
        pieces: list[bytes] = []
        try:
            with self._client.chat.completions.with_streaming_response.create(**body) as response:
                self._patience.reached = True
                # The library's time-out is for each piece of a reply: one that trickles in would never end.
                for piece in response.iter_bytes():
                    pieces.append(piece)
                    if time.monotonic() > deadline:
                        raise _SlowReplyError(self._patience.too_slow)
        except httpx2.TimeoutException:
            raise _SlowReplyError(self._patience.too_slow) from None
        except httpx2.HTTPError as error:
            raise _BrokenReplyError(f"the reply broke off: {error}") from None
        return _read_completion(b"".join(pieces).decode("utf-8", "replace"))

    def _open(self, body: dict[str, Any]) -> openai.Stream[Any]:
        self._begin()
        stream: openai.Stream[Any] = self._client.chat.completions.create(**body, stream=True)
        self._patience.reached = True
        return stream

    def _begin(self) -> None:
        time.sleep(self._patience.pause())
        self._patience.requests += 1

    def _wrote_nothing(self, max_tokens: int) -> NoReturn:
        raise LLMError(
            f"{self._settings.model} at {self._settings.url} wrote no text; a model that reasons first needs more than "
            f"{max_tokens} tokens, or its reasoning turned off at the server"
        )


class AsyncLLM:
    """A language model with many requests under way; arguments as those of ``LLM``.

    ``patience`` counts the ``requests`` sent, further attempts included, and by fault those ``retried``.
    """

    def __init__(self, settings: LLMSettings, *, api_key: str = "") -> None:
        self._settings = settings
        self.patience = _Patience(settings)
        self._client = openai.AsyncOpenAI(
            base_url=settings.url, api_key=api_key or "none", max_retries=0, timeout=settings.timeout_seconds
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def send(self, body: Mapping[str, Any], extra_body: Mapping[str, Any] | None = None) -> Reply:
        """The reply to a chat completion request; errors as ``LLM.reply``, but a reply without text is one here.

        Fields that the library does not know go into ``extra_body``, and are sent as they are.
        """
        try:
            return await tenacity.AsyncRetrying(**self.patience.rules)(self._once, body, extra_body)
        except (openai.OpenAIError, _SlowReplyError, _BrokenReplyError) as error:
            raise self.patience.explained(error) from None

    async def _once(self, body: Mapping[str, Any], extra_body: Mapping[str, Any] | None) -> Reply:
        while (pause := self.patience.pause()) > 0:
            await asyncio.sleep(pause)
        self.patience.requests += 1
        completions = self._client.chat.completions.with_raw_response
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                response = await completions.create(**body, extra_body=extra_body or None)
        except TimeoutError:
            raise _SlowReplyError(self.patience.too_slow) from None
        self.patience.reached = True
        return _read_completion(response.text)


class _Patience:
    """When a request is sent again, after how long, and what is said when it is not: the same for both clients."""

    def __init__(self, settings: LLMSettings) -> None:
        self.requests = 0
        self.retried: Counter[str] = Counter()
        self.reached = False  # the server has said anything at all
        self.too_slow = f"no whole reply within {settings.timeout_seconds:g} seconds"
        self.rules: dict[str, Any] = {
            "stop": self._enough,
            "wait": self._wait,
            "retry": tenacity.retry_if_exception(_is_transient),
            "reraise": True,
        }
        self._settings = settings
        self._quiet_until = 0.0

    def pause(self) -> float:
        """Seconds for which no request may be sent."""
        return max(0.0, self._quiet_until - time.monotonic())

    def _enough(self, state: tenacity.RetryCallState) -> bool:
        """True if it is time to give up; sooner if no request was ever answered: a wrong address, or no server."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, openai.APIStatusError) or isinstance(
            getattr(error, "__cause__", None), httpx2.ReadTimeout
        ):
            self.reached = True
        attempts = self._settings.retries + 1
        return state.attempt_number >= (attempts if self.reached else min(attempts, _UNREACHED_ATTEMPTS))

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next attempt: doubling with jitter, or what the server asks for if that is more."""
        error = state.outcome.exception() if state.outcome else None
        self.retried[_label(error)] += 1
        longest = self._settings.max_wait_seconds
        doubled = self._settings.first_wait_seconds * 2.0 ** (state.attempt_number - 1)
        wait = min(doubled, longest) * random.uniform(0.5, 1.0)
        if isinstance(error, openai.APIStatusError) and error.status_code in _OVERLOADED:
            asked = _retry_after(error.response.headers)
            if asked is not None:
                wait = max(wait, min(asked, longest))
                # Every request waits, or the others would be refused one by one and use up their attempts.
                self._quiet_until = max(self._quiet_until, time.monotonic() + wait)
        return wait

    def explained(self, error: Exception) -> LLMError:
        """The error of a request that is not sent again."""
        url, said = self._settings.url, _words_of(error)
        if not isinstance(error, openai.APIStatusError):
            return LLMUnavailableError(self._gave_up(said))
        status = error.status_code
        if error.code == "insufficient_quota":
            return LLMError(f"{url}: the account has no quota left ({said})")
        if _is_transient(error):
            return LLMUnavailableError(self._gave_up(f"status {status}: {said}"))
        if status in _FATAL:
            return LLMError(f"{url} answers {status} ({said}): {_FATAL[status]}")
        return LLMRefusedError(f"{url} refuses a request with {status}: {said}")

    def _gave_up(self, said: str) -> str:
        if not self.reached:
            return f"nothing answers at {self._settings.url} ({said}); start the server or correct the address"
        return f"{self._settings.url} gave no usable reply in {self._settings.retries + 1} attempts; the last: {said}"


def _read_completion(text: str) -> Reply:
    """The reply in a chat completion; strict about what is needed, blind to the rest.

    Raises:
        _BrokenReplyError: there is none.
    """
    try:
        envelope = json.loads(text)
        choice = envelope["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        raise _BrokenReplyError(f"expected a chat completion, got {text[:200]!r}") from None
    if isinstance(content, list):  # content in parts, as some servers send it
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise _BrokenReplyError(f"expected a message of text, got {content!r:.200}")
    clean = _whole_characters(content)
    return Reply(clean, str(choice.get("finish_reason") or ""), _usage(envelope.get("usage"), clean))


def _usage(counted: object, text: str) -> Usage:
    """Tokens as the server counts them; a server that does not count gives an estimate for the reply."""
    counts = counted if isinstance(counted, dict) else {}
    prompt, completion = (counts.get(key) for key in ("prompt_tokens", "completion_tokens"))
    return Usage(
        prompt if isinstance(prompt, int) and prompt >= 0 else 0,
        completion if isinstance(completion, int) and completion >= 0 else len(text.encode()) // 4,
    )


def _whole_characters(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON can spell half a character


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        spent = error.code == "insufficient_quota"
        failed = error.status_code >= 500 and error.status_code != _NOT_IMPLEMENTED
        return (error.status_code in _TRANSIENT or failed) and not spent
    return isinstance(error, openai.APIConnectionError | _SlowReplyError | _BrokenReplyError)


def _label(error: BaseException | None) -> str:
    """The name under which a retried fault is counted."""
    if isinstance(error, openai.APIStatusError):
        return f"status_{error.status_code}"
    if isinstance(error, openai.APITimeoutError | _SlowReplyError):
        return "timeout"
    return "broken_reply" if isinstance(error, _BrokenReplyError) else "connection"


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
