"""Asks the language model within the budget, and never twice for a cached reply.

Knows requests and replies; ``drafts`` reads their words, ``clara.llm`` retries.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.errors import LLMRefusedError, SynthesisError
from clara.llm import AsyncLLM, Reply, Usage
from clara.synth.drafts import SCHEMAS
from clara.synth.settings import BudgetSettings, SamplingSettings, ServerSettings

_MODES = ("json_schema", "json_object", "none")  # how structure may be asked for, the strictest way first
_BYTES_A_TOKEN = 3  # over-estimates the tokens of most text: English has 4 to 5 bytes a token
_FIRST_GUESS = 4  # before any reply, one is expected to fill a quarter of its limit
_FORMAT = 1
_TABLES = """
    CREATE TABLE IF NOT EXISTS replies (
        key TEXT PRIMARY KEY, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class BudgetSpentError(SynthesisError):
    """The budget does not allow another request."""


class Budget:
    """The tokens and money spent, earlier runs included, and admission of further requests.

    Requests are admitted on an estimate and settled with the server's count. A request that does not fit waits while
    others are under way, which may cost less than estimated; when none is, the budget is spent. Under a limit the first
    request goes alone: before it nobody knows how this server counts.
    """

    def __init__(self, settings: BudgetSettings, spent: Usage) -> None:
        self.spent = spent
        self._settings = settings
        self._reserved = Usage()
        self._longest_reply = 0
        self._tokens_a_byte = 1 / _BYTES_A_TOKEN  # of prompts
        self._limited = settings.max_tokens is not None or settings.max_cost is not None
        self._settled = False  # a reply has been counted
        self._changed = asyncio.Condition()

    @property
    def cost(self) -> float:
        """The price of ``spent``, in the unit of the prices."""
        return self._price(self.spent)

    async def admit(self, prompt_bytes: int, max_output_tokens: int) -> Usage:
        """Wait until a request fits; returns its reserved estimate, for ``settle``.

        Raises:
            BudgetSpentError: it does not fit, and nothing is under way that could make room.
        """
        async with self._changed:
            while True:
                reply = self._longest_reply or max_output_tokens // _FIRST_GUESS
                estimate = Usage(int(prompt_bytes * self._tokens_a_byte) + 1, reply)
                alone = self._limited and not self._settled and self._reserved.total > 0
                if not alone and self._fits(self.spent + self._reserved + estimate):
                    self._reserved += estimate
                    return estimate
                if not self._reserved.total:
                    raise BudgetSpentError(self._exhausted(estimate))
                await self._changed.wait()

    async def settle(self, estimate: Usage, usage: Usage, prompt_bytes: int) -> None:
        """Replace a request's estimate by its usage; ``Usage()`` if it gave no reply."""
        async with self._changed:
            self._reserved -= estimate
            self.spent += usage
            self._longest_reply = max(self._longest_reply, usage.completion)
            if usage.total:
                self._settled = True
                self._tokens_a_byte = max(self._tokens_a_byte, usage.prompt / prompt_bytes)
            self._changed.notify_all()

    def _price(self, usage: Usage) -> float:
        return (usage.prompt * self._settings.price_in + usage.completion * self._settings.price_out) / 1e6

    def _fits(self, usage: Usage) -> bool:
        tokens, cost = self._settings.max_tokens, self._settings.max_cost
        return (tokens is None or usage.total <= tokens) and (cost is None or self._price(usage) <= cost)

    def _exhausted(self, estimate: Usage) -> str:
        limits = []
        if self._settings.max_tokens is not None:
            limits.append(f"{self.spent.total:,} of {self._settings.max_tokens:,} tokens")
        if self._settings.max_cost is not None:
            limits.append(f"{self.cost:.4g} of {self._settings.max_cost:.4g} in money")
        return f"the budget is spent: {' and '.join(limits)}; one more request takes about {estimate.total:,} tokens"


def _request_key(body: Mapping[str, Any], attempt: int) -> str:
    """The hash of a request: its body (model, messages, sampling, schema) and its round.

    Not the server's address: a model that moves to another machine keeps its replies.
    """
    canonical = json.dumps({"attempt": attempt, "body": body}, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


class ReplyCache:
    """Paid replies on disk, under the hash of the whole request.

    A reply is stored before it is used, so a killed run asks nothing again that was stored. One SQLite file: a write is
    whole or not there, whenever the process dies.

    Raises:
        SynthesisError: the file cannot be opened, or is none of ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise SynthesisError(f"the reply cache {path} cannot be opened: {error}") from None
        try:
            version = self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise SynthesisError(f"{path} is no reply cache ({error}); name another file with --cache") from None
        if version != _FORMAT:
            self._connection.close()
            raise SynthesisError(f"the reply cache {path} has format {version}, expected {_FORMAT}; name another file")

    def _prepare(self) -> int:
        """Set up a new file; returns the format."""
        version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if version not in (0, _FORMAT):
            return version
        self._connection.execute("PRAGMA journal_mode=WAL")
        # WAL with NORMAL survives a killed process whole; a power cut may lose the last replies, never break it.
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(_TABLES)
        self._connection.execute(f"PRAGMA user_version={_FORMAT}")
        return _FORMAT

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, key: str) -> Reply | None:
        """The stored reply to a request, or None."""
        row = self._run(
            "SELECT text, finish_reason, prompt_tokens, completion_tokens FROM replies WHERE key = ?", key
        ).fetchone()
        return Reply(row[0], row[1], Usage(row[2], row[3])) if row else None

    def put(self, key: str, reply: Reply) -> None:
        """Store a reply; the first one stored under a key stays."""
        usage = reply.usage
        values = (key, reply.text, reply.finish_reason, usage.prompt, usage.completion)
        self._run("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", *values)

    def spent(self) -> Usage:
        """Tokens of all stored replies."""
        row = self._run("SELECT TOTAL(prompt_tokens), TOTAL(completion_tokens) FROM replies").fetchone()
        return Usage(int(row[0]), int(row[1]))

    def fact(self, name: str) -> str | None:
        """A fact about the server, such as its kind of structured output."""
        row = self._run("SELECT value FROM facts WHERE name = ?", name).fetchone()
        return str(row[0]) if row else None

    def learn(self, name: str, value: str) -> None:
        """Store a fact about the server."""
        self._run("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise SynthesisError(
                f"the reply cache {self._path} failed: {error}; free some space or name another with --cache, "
                "then go on with --resume"
            ) from None


class ChatClient:
    """A language model behind an OpenAI-compatible server, with a cache and a budget.

    ``on_reply`` is called after each usable reply of the server, which ``answered`` counts.
    """

    def __init__(
        self,
        server: ServerSettings,
        sampling: SamplingSettings,
        cache: ReplyCache,
        budget: Budget,
        *,
        api_key: str,
        on_reply: Callable[[], None],
    ) -> None:
        self._server, self._sampling, self._cache, self._budget = server, sampling, cache, budget
        self.llm = AsyncLLM(server, api_key=api_key)
        self._slots = asyncio.Semaphore(server.concurrency)
        self._asking: dict[str, asyncio.Lock] = {}  # by key, the requests under way
        self._mode_fact = f"structured_output:{server.model}"
        self._on_reply = on_reply
        self.answered = 0

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.llm.close()

    async def ask(
        self, shape: str, messages: Sequence[Mapping[str, str]], *, temperature: float, attempt: int
    ) -> Reply:
        """The reply to a request, of a shape in ``SCHEMAS``: from the cache, or from the server and then cached.

        Another round (``attempt``, from 1) is another request even with the same words.

        Raises:
            LLMRefusedError: the server refuses this request.
            LLMUnavailableError: no usable reply in all attempts.
            BudgetSpentError: nothing more may be spent.
            LLMError: the server refuses every request (key, address, model).
        """
        mode_setting = self._server.structured_output
        modes: tuple[str, ...] = _MODES if mode_setting == "auto" else (mode_setting,)
        plain = self._body(messages, temperature, attempt)
        bodies = {mode: {**plain, **_format(mode, shape), **self._sampling.extra_body} for mode in modes}
        keys = {mode: _request_key(body, attempt) for mode, body in bodies.items()}
        for key in keys.values():
            if cached := self._cache.get(key):
                return cached
        known = self._cache.fact(self._mode_fact)
        # The mode known to work, then laxer ones: another server may stand behind the address now.
        modes = modes[modes.index(known) :] if known in modes else modes
        for mode in modes:
            try:
                reply = await self._ask_once(bodies[mode], keys[mode])
            except LLMRefusedError:
                if mode == modes[-1]:
                    raise
                continue  # the refusal may be of the response format
            if mode != known and mode_setting == "auto":
                self._cache.learn(self._mode_fact, mode)
            return reply
        raise AssertionError("there is always a mode")  # pragma: no cover

    async def _ask_once(self, body: dict[str, Any], key: str) -> Reply:
        """The cached reply, or one from the server; concurrent equal requests are sent once."""
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
        self._on_reply()
        return reply

    def _body(self, messages: Sequence[Mapping[str, str]], temperature: float, attempt: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._server.model,
            "messages": [dict(message) for message in messages],
            "temperature": temperature,
            "top_p": self._sampling.top_p,
            self._server.length_parameter: self._sampling.max_output_tokens,
        }
        if self._sampling.seed is not None:
            body["seed"] = self._sampling.seed + attempt - 1
        return body

    async def _send(self, body: dict[str, Any]) -> Reply:
        async with self._slots:
            prompt_bytes = sum(len(message["content"].encode()) for message in body["messages"])
            estimate = await self._budget.admit(prompt_bytes, self._sampling.max_output_tokens)
            usage = Usage()
            # Only the named fields are parameters of the library; whatever else the user adds goes through as it is.
            extra = self._sampling.extra_body
            try:
                reply = await self.llm.send({key: body[key] for key in body.keys() - extra.keys()}, extra)
                usage = reply.usage
            finally:
                await self._budget.settle(estimate, usage, prompt_bytes)
            return reply


def _format(mode: str, shape: str) -> dict[str, Any]:
    """The field that asks a server to keep to a schema."""
    if mode == "json_schema":
        schema = {"name": shape, "strict": True, "schema": SCHEMAS[shape]}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": "json_object"}} if mode == "json_object" else {}
