"""Every reply that was paid for, on disk, under the hash of the whole request that brought it.

A reply is stored before it is used, so a run that was killed asks nothing again that was answered and stored.
One SQLite file: a write is there whole or not at all, whenever the process dies.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara.errors import SynthesisError
from clara.llm.client import Reply, Usage

_FORMAT = 1
_TABLES = """
    CREATE TABLE IF NOT EXISTS replies (
        key TEXT PRIMARY KEY, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


def request_key(body: Mapping[str, Any], attempt: int) -> str:
    """The hash of a whole request: its body (model, messages, sampling, schema) and the round it is made in.

    The server's address is no part of it: a model that moves to another machine keeps its replies.
    """
    canonical = json.dumps({"attempt": attempt, "body": body}, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


class ReplyCache:
    """The replies of one or several runs.

    Args:
        path: the file; made if it is not there.

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
            found = self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise SynthesisError(f"{path} is no reply cache ({error}); name another file with --cache") from None
        if found != _FORMAT:
            self._connection.close()
            raise SynthesisError(f"the reply cache {path} has format {found}, expected {_FORMAT}; name another file")

    def _prepare(self) -> int:
        """Set up a new file, and give the format of this one."""
        found = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if found not in (0, _FORMAT):
            return found
        self._connection.execute("PRAGMA journal_mode=WAL")
        # WAL with NORMAL survives a killed process whole; a power cut may lose the last replies, never break it.
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(_TABLES)
        self._connection.execute(f"PRAGMA user_version={_FORMAT}")
        return _FORMAT

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def get(self, key: str) -> Reply | None:
        """The stored reply to a request, or None."""
        row = self._run(
            "SELECT text, finish_reason, prompt_tokens, completion_tokens FROM replies WHERE key = ?", key
        ).fetchone()
        return Reply(row[0], row[1], Usage(row[2], row[3])) if row else None

    def put(self, key: str, reply: Reply) -> None:
        """Store a reply for good; the first one stored under a key stays."""
        self._run(
            "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)",
            key,
            reply.text,
            reply.finish_reason,
            reply.usage.prompt,
            reply.usage.completion,
        )

    def keys(self) -> set[str]:
        """The hashes of all stored requests."""
        return {row[0] for row in self._run("SELECT key FROM replies")}

    def spent(self) -> Usage:
        """Tokens of all stored replies."""
        row = self._run("SELECT TOTAL(prompt_tokens), TOTAL(completion_tokens) FROM replies").fetchone()
        return Usage(int(row[0]), int(row[1]))

    def fact(self, name: str) -> str | None:
        """Something learned about the server, such as which structured output it takes."""
        row = self._run("SELECT value FROM facts WHERE name = ?", name).fetchone()
        return str(row[0]) if row else None

    def learn(self, name: str, value: str) -> None:
        """Remember something about the server."""
        self._run("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise SynthesisError(
                f"the reply cache {self._path} failed: {error}; free some space or name another with --cache, "
                "then go on with --resume"
            ) from None
