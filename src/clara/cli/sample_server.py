"""A server over the sample documents, as a process of its own: what measurements of ``clara serve`` ask."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from clara.cli.options import ModelChoice
from clara.errors import InputError

_ADDRESS = re.compile(r"http://[^/\s]+")


@contextmanager
def sample_server(choice: ModelChoice, *, waiting: int) -> Iterator[str]:
    """Index the sample documents into a store that is deleted at the end, and serve it on a free port.

    Args:
        choice: of the model.
        waiting: questions that may wait at once.

    Yields:
        The server's address.

    Raises:
        InputError: it did not start.
    """
    from clara.samples import sample_folder  # noqa: PLC0415

    with TemporaryDirectory(prefix="clara-bench-") as folder:
        store = str(Path(folder) / "store")
        _run("index", str(sample_folder()), "--store", store, *_options(choice))
        arguments = ["serve", "--store", store, "--port", "0", "--max-waiting", str(waiting), *_options(choice)]
        with subprocess.Popen(  # noqa: S603 - ourselves
            _command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as served:
            try:
                yield _address(served)
            finally:
                served.terminate()


def _address(served: subprocess.Popen[str]) -> str:
    assert served.stderr is not None  # noqa: S101 - a pipe
    said = []
    for line in served.stderr:
        said.append(line)
        found = _ADDRESS.search(line)
        if found is not None:
            Thread(target=served.stderr.read, daemon=True).start()  # a full pipe would stop it
            return found[0]
    raise InputError(f"clara serve did not start: {' '.join(said)[-500:].strip()}")


def _run(*arguments: str) -> None:
    done = subprocess.run(_command(*arguments), capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
    if done.returncode:
        raise InputError(done.stderr[-500:].strip().removeprefix("clara: "))


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "clara.cli", *arguments]


def _options(choice: ModelChoice) -> list[str]:
    """The choice as options of a command."""
    given = {
        "--model": choice.model,
        "--base": choice.base,
        "--device": choice.device,
        "--dtype": choice.dtype,
        "--cache": choice.cache,
        "--threads": choice.threads,
    }
    return [text for name, value in given.items() if value is not None for text in (name, str(value))]
