"""The folder of a training run: which run it holds, and that one command at a time trains in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clara.data import DataRecord
from clara.data.parsing import to_json
from clara.errors import TrainingError
from clara.train.config import Stage, TrainConfig

RUN_CONFIG = "config.json"
LOCK_FILE = ".lock"


@contextmanager
def claimed(out: Path, stage: Stage, config: TrainConfig, records: Sequence[DataRecord]) -> Iterator[None]:
    """Make ``out`` the folder of this run, or make sure that it already is, and keep others out of it.

    Raises:
        TrainingError: a run with other settings or other data is in it, or another process trains in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out / LOCK_FILE, timeout=0).acquire()
    except Timeout:
        raise TrainingError(f"another process trains in {out}; wait until it ends, or choose another --out") from None
    with lock:
        _claim(out / RUN_CONFIG, stage, config, data_hash(records))
        yield


def data_hash(records: Iterable[DataRecord]) -> str:
    """A hash of training records and their order: 16 hex digits."""
    found = hashlib.sha256()
    for record in records:
        found.update(json.dumps(to_json(record), sort_keys=True).encode() + b"\n")
    return found.hexdigest()[:16]


def _claim(path: Path, stage: Stage, config: TrainConfig, data: str) -> None:
    if path.is_file():
        differs = _difference(path, stage, config, data)
        if differs is not None:
            raise TrainingError(
                f"{path.parent} holds a run with other {differs}; choose another --out, or remove that folder"
            )
        return
    text = f'{{"stage": "{stage}", "data": "{data}", "config": {config.model_dump_json()}}}\n'
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def _difference(path: Path, stage: Stage, config: TrainConfig, data: str) -> str | None:
    """What a run differs in; a setting, and the data's hash, may be missing in one from before it existed."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        settings = TrainConfig.model_validate(held["config"])
        if held["stage"] != stage or settings.model_dump() != config.model_dump():
            return "settings"
        return "data" if held.get("data", data) != data else None
    except (ValueError, KeyError, TypeError):  # pydantic's errors are ValueErrors
        return "settings"
