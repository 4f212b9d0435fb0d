"""Checkpoints on the hub: from a name to a folder with the files that are needed, fetched once.

A name is ``owner/repo``, with ``/folder`` where a repository holds several checkpoints (Apple's have one for each
rate) and ``@revision`` where another than the main branch is meant. What is in the files is ``checkpoint``'s and
``apple.format``'s matter; sending is ``publish``'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from clara.errors import HubError
from clara.model import checkpoint
from clara.model.apple import format as apple_format
from clara.model.apple.vocabulary import VOCABULARY
from clara.model.hub.base import TRANSFER_ERRORS, Progress, reason_of

_NAME = re.compile(
    r"^(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?P<inside>(/[\w][\w.-]*)*)(@(?P<revision>[\w][\w./-]*))?$", re.ASCII
)
NATIVE_FILES = (checkpoint.MANIFEST, checkpoint.MEMORY, VOCABULARY, "README.md", "adapters/*")
OFFICIAL_FILES = (apple_format.CONFIG, apple_format.ADAPTERS, apple_format.LAYERS)


@dataclass(frozen=True, slots=True)
class HubName:
    """A checkpoint on the hub.

    Attributes:
        repo: ``owner/repo``.
        inside: folder in it, without slashes at its ends; empty for its root.
        revision: branch, tag or commit; None is the main branch.
    """

    repo: str
    inside: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        inside = f"/{self.inside}" if self.inside else ""
        return self.repo + inside + (f"@{self.revision}" if self.revision else "")


def parse(name: str) -> HubName | None:
    """The hub name that a text is, or None."""
    found = _NAME.match(name)
    if found is None:
        return None
    return HubName(found["repo"], found["inside"].strip("/"), found["revision"])


def offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids asking the hub."""
    return bool(constants.HF_HUB_OFFLINE)


def fetch(
    name: HubName, *, endpoint: str | None = None, local_only: bool = False, progress: Progress | None = None
) -> Path:
    """Folder of a checkpoint in the hub's own cache, whole: only what it consists of is fetched, and only once.

    A folder with a checkpoint for each rate stands for the one with the lowest rate.

    Args:
        name: of the checkpoint.
        endpoint: the hub's address; huggingface-hub's setting when None.
        local_only: take it from the cache or not at all.
        progress: told when a transfer starts and ends.

    Raises:
        HubError: it is not in the cache and the hub cannot be asked or does not give it; or it is no checkpoint.
    """
    files = _listing(name, endpoint, local_only=local_only)
    place = _place(name, files, endpoint, local_only=local_only)
    start = f"{place}/" if place else ""
    wanted = NATIVE_FILES if start + checkpoint.MANIFEST in files else OFFICIAL_FILES
    if progress is not None:
        progress(f"fetching {name}", 0, 1)
    root = _snapshot(name, [start + pattern for pattern in wanted], endpoint, local_only=local_only)
    if progress is not None:
        progress(f"fetching {name}", 1, 1)
    return root / place if place else root


def _place(name: HubName, files: frozenset[str], endpoint: str | None, *, local_only: bool) -> str:
    """The folder of the checkpoint meant, within the repository."""
    start = f"{name.inside}/" if name.inside else ""
    if start + checkpoint.MANIFEST in files or start + apple_format.ADAPTERS in files:
        return name.inside
    parts = [file.removeprefix(start).split("/") for file in files if file.startswith(start)]
    rates = sorted({found[0] for found in parts if len(found) == 2 and found[1] == apple_format.ADAPTERS})
    if rates:
        root = _snapshot(name, [f"{start}*/{apple_format.CONFIG}"], endpoint, local_only=local_only)
        return start + apple_format.lowest_rate(root / name.inside if name.inside else root, rates)
    inside = sorted({found[0] for found in parts if len(found) == 2 and found[1] == checkpoint.MANIFEST})
    if inside:
        raise HubError(
            f"{name} holds several checkpoints; give one of " + ", ".join(f"{name.repo}/{start}{i}" for i in inside)
        )
    raise HubError(
        f"{name} on the hub holds no checkpoint: neither {checkpoint.MANIFEST} nor {apple_format.ADAPTERS} is in it; "
        "a base model needs one trained on it first (clara train)"
    )


def _listing(name: HubName, endpoint: str | None, *, local_only: bool) -> frozenset[str]:
    """Paths of all files of the repository: asked of the hub, else what the cache knows of it."""
    failure: Exception | None = None
    if not (local_only or offline()):
        try:
            return frozenset(HfApi(endpoint=endpoint).list_repo_files(name.repo, revision=name.revision))
        except TRANSFER_ERRORS as error:
            failure = error
    try:
        return frozenset(file.path for file in get_cached_repo_tree(name.repo, revision=name.revision))
    except CachedRepoTreeNotFoundError:
        raise HubError(_missing(name, failure)) from failure


def _snapshot(name: HubName, patterns: list[str], endpoint: str | None, *, local_only: bool) -> Path:
    try:
        return Path(
            snapshot_download(
                name.repo,
                revision=name.revision,
                allow_patterns=patterns,
                endpoint=endpoint,
                local_files_only=local_only,
            )
        )
    except TRANSFER_ERRORS as error:
        raise HubError(_missing(name, error)) from error


def _missing(name: HubName, failure: Exception | None) -> str:
    """What to say when a checkpoint cannot be had."""
    if failure is None or offline():
        why = "HF_HUB_OFFLINE is set" if offline() else "nothing is downloaded here"
        return (
            f"{name} is not wholly on this machine and the hub is not asked ({why}); fetch it once with a network: "
            f"clara pull {name}, or copy the checkpoint's folder here and give its path"
        )
    if isinstance(failure, GatedRepoError):
        return (
            f"{name}: the hub gives it only to accounts that accepted its terms; accept them there, then: hf auth login"
        )
    if isinstance(failure, RevisionNotFoundError):
        return f"{name}: the hub has no revision {name.revision!r} of it"
    if isinstance(failure, RepositoryNotFoundError):
        return (
            f"{name} is neither a local folder nor does the hub show it ({reason_of(failure)}); check the name, and if "
            "it is private: hf auth login"
        )
    return f"{name} could not be had from the hub ({reason_of(failure)}); try again, what arrived is kept"
