"""Who may do what: keys and signed links with their stores and rights, limits, and which Host and Origin may be named.

Keys are kept as digests, and compared in constant time. A key can name only stores that it may use: a store of another
key and a store that there is not are the same to it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlencode, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clara.errors import ConfigError
from clara.serve.faults import ApiError

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that no other machine's page can have."""

_MINUTE = 60.0
_LEAST_KEY = 8  # characters; shorter ones are guessed
_DOCUMENT = re.compile(r"(?:/v1)?/documents/(doc-[0-9a-f]+)(?:/.*)?")
"""Addresses below a document's own belong to it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one client: sizes, counts, rates, seconds."""

    body_bytes: int = 1 << 20  # of a request that is no upload
    file_bytes: int = 64 << 20
    files: int = 100  # of one upload
    question_characters: int = 16_000  # and of a text to embed
    answer_tokens: int = 512  # a client that asks for more gets this
    requests_a_minute: int = 0  # of one key whose entry says nothing else; 0 for any number
    waiting: int = 16  # questions, those that are answered included
    together: int = 8  # questions that are answered side by side, sharing decode steps
    jobs: int = 32  # indexing, the running one included
    seconds: float = 300.0  # of a question, waiting included
    silence: float = 30.0  # seconds within which more of a body must come
    link_seconds: int = 3600  # that the address of a citation opens without a key
    k: int = 100  # passages of one search


@dataclass(slots=True)
class Caller:
    """Who makes a request: a name for the log, the stores it may use (None for all), whether it may change them."""

    name: str
    stores: frozenset[str] | None = None
    write: bool = True
    requests_a_minute: int = 0  # for any number
    _left: float = field(default=0.0, repr=False)
    _counted: float = field(default=0.0, repr=False)

    def may_use(self, store: str) -> bool:
        """True if it may know that there is a store of this name."""
        return self.stores is None or store in self.stores

    def count_request(self) -> None:
        """Take one request off its rate: a bucket that fills evenly (ApiError: it is empty)."""
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
    """A key of ``--api-key-file``: ``stores`` may be ``["*"]`` for all; no rate is the server's own."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    key: str = Field(min_length=_LEAST_KEY, pattern=r"^[\x21-\x7e]+$", repr=False)
    name: str = Field(min_length=1)
    stores: list[str] = Field(min_length=1)
    rights: list[Literal["read", "write"]] = Field(default=["read"], min_length=1)
    requests_a_minute: int | None = Field(default=None, ge=0)


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[KeyEntry] = Field(min_length=1)


class Keyring:
    """The keys of a server; without any, everybody who reaches it may do everything.

    ``requests_a_minute`` is of a key that says nothing else, and of everybody together where there is no key.
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


class Links:
    """Addresses of citations that open without a key: signed, for one stretch of one document, for a while.

    A browser that follows a link sends no ``Authorization`` header. Who made the link could read the document, so the
    link says that its bearer may too, until it expires. The key of the signatures is drawn at each start of the server.
    ``requests_a_minute`` is of all links to a store together, 0 for any number.
    """

    def __init__(self, stores: Iterable[str], *, seconds: int, requests_a_minute: int = 0) -> None:
        self._key = secrets.token_bytes(32)
        self._seconds = seconds
        self._callers = {
            name: Caller("link", frozenset({name}), write=False, requests_a_minute=requests_a_minute) for name in stores
        }

    def query(self, store: str, document: str, start: int, end: int) -> str:
        """The query of an address that opens characters ``start`` to ``end`` of a document of a store."""
        char, expires = f"{start},{end}", str(int(time.time()) + self._seconds)
        signature = self._signature(store, document, char, expires)
        return urlencode({"char": char, "expires": expires, "signature": signature}, safe=",")

    def caller(self, path: str, query: bytes) -> Caller | None:
        """Who follows a link: somebody who may read the store it was made for. None for what is no link.

        Raises:
            ApiError: it has expired, or is not one of this server's.
        """
        fields = {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}
        place = _DOCUMENT.fullmatch(path)
        if "signature" not in fields or place is None:
            return None
        char, expires = fields.get("char", ""), fields.get("expires", "")
        given = fields["signature"].encode("utf-8", "replace")
        # All are compared, whichever fits, so that the time says nothing.
        made_for = [
            caller
            for store, caller in self._callers.items()
            if hmac.compare_digest(self._signature(store, place[1], char, expires).encode(), given)
        ]
        if not made_for or not expires.isdigit() or int(expires) < time.time():
            raise ApiError(401, "link_expired", "this link has expired or is not this server's; ask again")
        return made_for[0]

    def _signature(self, store: str, document: str, char: str, expires: str) -> str:
        signed = "\0".join((store, document, char, expires)).encode("utf-8", "surrogatepass")
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest()


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


def check_address(host: str, keys: Sequence[KeyEntry]) -> None:
    """Refuse with a ConfigError to listen beyond this machine without keys."""
    if host.lower() not in _LOOPBACK and not keys:
        raise ConfigError(
            f"--host {host} is reached from other machines; give --api-key or --api-key-file, or listen on 127.0.0.1"
        )


def named_hosts(host: str, allowed: Sequence[str]) -> frozenset[str]:
    """Names that ``Host`` may hold: on loopback only its own, so that no foreign name can be pointed at it."""
    if host.lower() in _LOOPBACK:
        return _LOOPBACK | {name.lower() for name in allowed}
    return frozenset(name.lower() for name in (*allowed, host)) if allowed else frozenset()


def check_origin(host: str, origin: str | None, allowed: Collection[str], origins: Collection[str] = ()) -> None:
    """Refuse with an ApiError what a page of another site sends: a foreign Origin, or a name pointed at this server.

    ``allowed`` are names that the header ``Host`` may hold, empty for any; ``origins`` are of pages that may use this
    server beside its own.
    """
    if allowed and _name_of(f"//{host}") not in allowed:
        raise ApiError(
            403, "forbidden_host", "this server does not answer to that Host; who runs it may allow it (--allow-host)"
        )
    if origin is None or origin.lower() in origins:
        return
    if origin == "null" or urlsplit(origin).netloc.lower() != host.lower():
        raise ApiError(
            403,
            "forbidden_origin",
            "pages of other sites may not use this server; who runs it may allow one (--cors-origin)",
        )


def checked_origins(given: Sequence[str]) -> frozenset[str]:
    """Origins of ``--cors-origin``, as browsers send them (ConfigError: one is none)."""
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
