"""What a frozen network is asked once: values by a digest of the question, in a file that is only appended to.

Knows JSON, not models. Several processes and several runs may share a file: a line counts once it is whole, a torn last
line is cut off before the next append, and what another one kept meanwhile is read before something is added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from clara.errors import TrainingError


def digest(*facts: object) -> str:
    """The key of what is asked: 32 hex digits of its facts, which are of JSON's types."""
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


class KeptValues:
    """JSON values by key, on disk."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Args:
            path: JSON Lines, ``{"key", "value"}`` a line; made with the first value.
        """
        self._path = path
        self._values: dict[str, Any] = {}
        self._end = 0
        self._refresh()

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - any JSON value
        return self._values[key]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of ``keys`` that have no value here, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._values]

    def add(self, values: Mapping[str, object]) -> None:
        """Keep values; those that another process kept meanwhile stay as they are.

        Raises:
            TrainingError: they cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_name(f"{self._path.name}.lock")):
                self._refresh()
                lines = [json.dumps({"key": key, "value": values[key]}) + "\n" for key in self.missing(values)]
                self._path.touch()
                with self._path.open("r+b") as file:
                    file.truncate(self._end)  # what a kill left torn
                    file.seek(self._end)
                    file.write("".join(lines).encode())
                self._refresh()
        except OSError as error:
            raise TrainingError(
                f"what was computed for this run cannot be kept in {self._path}: {error.strerror or error}; free some "
                "space there, or choose another folder"
            ) from error

    def _refresh(self) -> None:
        """Take in the lines that are whole."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                one = json.loads(line)
                self._values[one["key"]] = one["value"]
                self._end += len(line)
