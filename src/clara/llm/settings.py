"""Where a language model is and how patiently it is asked. Holds no secret: the server's key is passed apart."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, field_validator

from clara.config import Settings


class LLMSettings(Settings):
    """A model on an OpenAI-compatible server.

    Attributes:
        url: base address of the server; ``/v1`` is added when the address has no path.
        model: model name as the server knows it.
        timeout_seconds: longest wait for one reply; for the next piece of one that is streamed.
        retries: further attempts after a 408, 409, 425, 429, 5xx, a time-out, a broken connection or a reply that is
            not a chat completion.
        first_wait_seconds: wait before the first retry; it doubles each time, with jitter.
        max_wait_seconds: longest wait between attempts; also the most that a ``Retry-After`` is obeyed.
        length_parameter: name under which the server takes the limit of a reply's tokens.
    """

    url: str
    model: str = Field(min_length=1)
    timeout_seconds: float = Field(default=120.0, gt=0)
    retries: int = Field(default=3, ge=0)
    first_wait_seconds: float = Field(default=0.5, ge=0)
    max_wait_seconds: float = Field(default=15.0, ge=0)
    length_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    @field_validator("url")
    @classmethod
    def _complete_url(cls, url: str) -> str:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"expected an address such as http://127.0.0.1:8000/v1, got {url!r}")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        return urlunsplit((parts.scheme, parts.netloc, path or "/v1", parts.query, ""))
