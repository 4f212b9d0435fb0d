"""Where numbers come from: command, commit, checkpoint, seed and machine, to stand beside each of them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_SECONDS_FOR_GIT = 10


@dataclass(frozen=True, slots=True)
class Provenance:
    """One run of the command.

    Attributes:
        command: as it was typed.
        commit: of the working copy the package lies in, ``+changes`` if files differ from it; ``version X`` of an
            installed package.
        model: name of the checkpoint under test.
        checkpoint: what tells it from others: its fingerprint, and where it is a folder a hash of all its weights (the
            generator is not in the fingerprint).
        seed: of bootstrap and permutation tests; answers are greedy and need none.
        cpu: the processor's name.
        cores: processors this process may use.
        device: where the model ran.
        torch: version.
        python: version.
        started: UTC, ISO 8601.
    """

    command: str
    commit: str
    model: str
    checkpoint: str
    seed: int
    cpu: str
    cores: int
    device: str
    torch: str
    python: str
    started: str

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def provenance(command: Sequence[str], *, model: str, checkpoint: str, seed: int, device: str) -> Provenance:
    """The provenance of a run that starts now, here."""
    return Provenance(
        command=" ".join(command),
        commit=_commit(),
        model=model,
        checkpoint=checkpoint,
        seed=seed,
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        device=device,
        torch=_version("torch"),
        python=platform.python_version(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _commit() -> str:
    """The commit that this package's files are of, or the version of the installed package."""
    folder = Path(__file__).parent
    found = _git(folder, "rev-parse", "HEAD")
    # A package installed below some other repository is not of that repository's commit.
    if found is None or _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return f"version {_version('clara-rag')}"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder.parent))
    return found + ("+changes" if changed else "")


def _cpu_name() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [program, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS_FOR_GIT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
