"""Who may do what: keys with their stores and rights, their rates, and which Host and Origin a request may name.

Keys are kept as digests, and compared in constant time. A key can name only stores that it may use: a store of another
key and a store that there is not are the same to it.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clara.errors import ConfigError
from clara.serve.faults import ApiError

Right = Literal["read", "write"]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that no other machine's page can have."""

_MINUTE = 60.0
_LEAST_KEY = 8  # characters; shorter ones are guessed
T = TypeVar("T")


@dataclass(slots=True)
class Caller:
    """Who makes a request.

    Attributes:
        name: for the log.
        stores: the names of those it may use; None for all.
        write: whether it may add and remove documents.
        requests_a_minute: 0 for any number.
    """

    name: str
    stores: frozenset[str] | None = None
    write: bool = True
    requests_a_minute: int = 0
    _left: float = field(default=0.0, repr=False)
    _counted: float = field(default=0.0, repr=False)

    def may_use(self, store: str) -> bool:
        """Whether it may know that there is a store of this name."""
        return self.stores is None or store in self.stores

    def count_request(self) -> None:
        """Take one request off its rate: a bucket that fills evenly.

        Raises:
            ApiError: it is empty.
        """
        if not self.requests_a_minute:
            return
        now, most = time.monotonic(), float(self.requests_a_minute)
        first = not self._counted
        self._left = most if first else min(most, self._left + (now - self._counted) * most / _MINUTE)
        self._counted = now
        if self._left < 1:
            wait = int((1 - self._left) * _MINUTE / most) + 1
            raise ApiError(
                429,
                "rate_limit_exceeded",
                f"this key may make {self.requests_a_minute} requests a minute; try again in {wait} s",
                retry_after=wait,
            )
        self._left -= 1


class KeyEntry(BaseModel):
    """A key of ``--api-key-file``.

    Attributes:
        key: the secret.
        name: for the log.
        stores: names of those it may use; ``["*"]`` for all.
        rights: ``read`` to ask and search, ``write`` to add and remove documents.
        requests_a_minute: None for the server's own limit.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    key: str = Field(min_length=_LEAST_KEY, pattern=r"^[\x21-\x7e]+$", repr=False)
    name: str = Field(min_length=1)
    stores: list[str] = Field(min_length=1)
    rights: list[Right] = Field(default=["read"], min_length=1)
    requests_a_minute: int | None = Field(default=None, ge=0)


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[KeyEntry] = Field(min_length=1)


class Keyring:
    """The keys of a server; without any, everybody who reaches it may do everything.

    Args:
        entries: the keys.
        requests_a_minute: of a key that says nothing else, and of everybody together where there is no key.
    """

    def __init__(self, entries: Sequence[KeyEntry] = (), *, requests_a_minute: int = 0) -> None:
        self._callers = [
            (
                _digest(entry.key),
                Caller(
                    entry.name,
                    None if "*" in entry.stores else frozenset(entry.stores),
                    "write" in entry.rights,
                    requests_a_minute if entry.requests_a_minute is None else entry.requests_a_minute,
                ),
            )
            for entry in entries
        ]
        self._anybody = Caller("anybody", requests_a_minute=requests_a_minute)

    def __bool__(self) -> bool:
        return bool(self._callers)

    def stores(self) -> set[str]:
        """Every store that a key names."""
        return {store for _, caller in self._callers for store in caller.stores or ()}

    def caller(self, authorization: str | None) -> Caller:
        """Whose key an ``Authorization`` header holds.

        Raises:
            ApiError: none, where one is needed, or one that is not known.
        """
        if not self._callers:
            return self._anybody
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(401, "missing_api_key", "no API key came; send the header: Authorization: Bearer KEY")
        digest = _digest(key.strip())
        # All are compared, whichever fits, so that the time says nothing.
        known = [caller for kept, caller in self._callers if hmac.compare_digest(kept, digest)]
        if not known:
            raise ApiError(401, "invalid_api_key", "the API key is not one of this server's")
        return known[0]


def read_keys(path: Path) -> list[KeyEntry]:
    """The keys of a file: ``{"keys": [{"key", "name", "stores", "rights", "requests_a_minute"}]}``.

    Raises:
        ConfigError: it cannot be read, or is not that; the message holds no key.
    """
    try:
        entries = _KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise ConfigError(f"--api-key-file {path} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"--api-key-file {path}: {faults}") from None
    if len({entry.key for entry in entries}) < len(entries):
        raise ConfigError(f"--api-key-file {path}: a key stands there twice; give each client a key of its own")
    return entries


def check_origin(host: str, origin: str | None, allowed: Collection[str], origins: Collection[str] = ()) -> None:
    """Refuse what a page of another site sends: a foreign Origin, or a name that was pointed at this server.

    Args:
        host: the ``Host`` header.
        origin: the ``Origin`` header.
        allowed: names that ``Host`` may hold; empty for any.
        origins: of pages that may use this server, beside its own.

    Raises:
        ApiError: it is refused.
    """
    if allowed and _name_of(f"//{host}") not in allowed:
        raise ApiError(403, "forbidden_host", "this server does not answer to that Host; name it with --allow-host")
    if origin is None or origin.lower() in origins:
        return
    if origin == "null" or urlsplit(origin).netloc.lower() != host.lower():
        raise ApiError(403, "forbidden_origin", "pages of other sites may not use this server")


def checked_origins(given: Sequence[str]) -> frozenset[str]:
    """Origins of ``--cors-origin``, as browsers send them.

    Raises:
        ConfigError: one is none.
    """
    origins = frozenset(each.lower().rstrip("/") for each in given)
    for origin in sorted(origins):
        try:
            parts = urlsplit(origin)
            wrong = parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None
        except ValueError:
            wrong = True
        if wrong or origin != f"{parts.scheme}://{parts.netloc}":
            raise ConfigError(f"--cors-origin takes an origin such as https://chat.example.org, got {origin!r}")
    return origins


def _name_of(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
