"""Checkpoints on the hub: fetched by name, only the files that are needed; pushed as one commit, pulled whole.

A name is ``owner/repo``, with ``/folder`` where a repository holds several checkpoints (Apple's have one for each rate)
and ``@revision`` for another than the main branch. Address and token of the hub are huggingface-hub's settings. Apple's
format is never written to the hub from here; export it and upload that folder with the hub's own tools.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_cached_repo_tree,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from clara.errors import CheckpointError, HubError
from clara.model import checkpoint
from clara.model.apple import format as apple_format
from clara.model.apple.vocabulary import VOCABULARY
from clara.model.backbone import ADAPTER
from clara.model.checkpoint import Manifest
from clara.model.hub.base import EMBEDDED, KNOWN_BASES, TRANSFER_ERRORS, Progress, reason_of

_NAME = re.compile(
    r"^(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?P<inside>(/[\w][\w.-]*)*)(@(?P<revision>[\w][\w./-]*))?$", re.ASCII
)
_NATIVE_FILES = (checkpoint.MANIFEST, checkpoint.MEMORY, VOCABULARY, "README.md", "adapters/*")
_OFFICIAL_FILES = (apple_format.CONFIG, apple_format.ADAPTERS, apple_format.LAYERS)


@dataclass(frozen=True, slots=True)
class _HubName:
    """A checkpoint on the hub: ``owner/repo``, a folder in it (empty for its root), and a branch, tag or commit."""

    repo: str
    inside: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        inside = f"/{self.inside}" if self.inside else ""
        return self.repo + inside + (f"@{self.revision}" if self.revision else "")


def parse(name: str) -> _HubName | None:
    """A text as a hub name; None if it is none."""
    match = _NAME.match(name)
    return _HubName(match["repo"], match["inside"].strip("/"), match["revision"]) if match else None


def _offline() -> bool:
    return bool(constants.HF_HUB_OFFLINE)


def fetch(name: _HubName, *, local_only: bool = False, progress: Progress | None = None) -> Path:
    """Folder of a checkpoint in the hub's own cache: only its own files are fetched, and only once.

    A folder with a checkpoint for each rate stands for the one with the lowest rate; ``local_only`` asks no network.

    Raises:
        HubError: it is not in the cache and the hub cannot be asked or does not give it; or it is no checkpoint.
    """
    files = _listing(name, local_only=local_only)
    place = _place(name, files, local_only=local_only)
    start = f"{place}/" if place else ""
    patterns = _NATIVE_FILES if start + checkpoint.MANIFEST in files else _OFFICIAL_FILES
    if progress is not None:
        progress(f"fetching {name}", 0, 1)
    root = _snapshot(name, [start + pattern for pattern in patterns], local_only=local_only)
    if progress is not None:
        progress(f"fetching {name}", 1, 1)
    return root / place if place else root


def _place(name: _HubName, files: frozenset[str], *, local_only: bool) -> str:
    """The folder of the checkpoint within the repository."""
    start = f"{name.inside}/" if name.inside else ""
    if start + checkpoint.MANIFEST in files or start + apple_format.ADAPTERS in files:
        return name.inside
    parts = [file.removeprefix(start).split("/") for file in files if file.startswith(start)]
    rates = sorted({path[0] for path in parts if path[1:] == [apple_format.ADAPTERS]})
    if rates:
        root = _snapshot(name, [f"{start}*/{apple_format.CONFIG}"], local_only=local_only)
        return start + apple_format.lowest_rate(root / name.inside if name.inside else root, rates)
    inside = sorted(f"{name.repo}/{start}{path[0]}" for path in parts if path[1:] == [checkpoint.MANIFEST])
    if inside:
        raise HubError(f"{name} holds several checkpoints; give one of {', '.join(inside)}")
    raise HubError(
        f"{name} on the hub holds no checkpoint: neither {checkpoint.MANIFEST} nor {apple_format.ADAPTERS} is in it; "
        "a base model needs one trained on it first (clara train)"
    )


def _listing(name: _HubName, *, local_only: bool) -> frozenset[str]:
    """Paths of all files of the repository: asked of the hub, else from its cache."""
    failure: Exception | None = None
    if not (local_only or _offline()):
        try:
            return frozenset(HfApi().list_repo_files(name.repo, revision=name.revision))
        except TRANSFER_ERRORS as error:
            failure = error
    try:
        return frozenset(file.path for file in get_cached_repo_tree(name.repo, revision=name.revision))
    except CachedRepoTreeNotFoundError:
        raise HubError(_missing(name, failure)) from failure


def _snapshot(name: _HubName, patterns: list[str], *, local_only: bool) -> Path:
    try:
        return Path(
            snapshot_download(name.repo, revision=name.revision, allow_patterns=patterns, local_files_only=local_only)
        )
    except TRANSFER_ERRORS as error:
        raise HubError(_missing(name, error)) from error


def _missing(name: _HubName, failure: Exception | None) -> str:
    """The message for a checkpoint that cannot be had."""
    if failure is None or _offline():
        why = "HF_HUB_OFFLINE is set" if _offline() else "nothing is downloaded here"
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


_CARD = "README.md"
_ADAPTER_FILES = (ADAPTER, "adapter_config.json")
_EMBEDDED_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Hub ids of the embedded base models, for the model card; ``clara.json`` keeps the short name, which needs no hub."""


_UPLOAD_ERRORS: tuple[type[Exception], ...] = (*TRANSFER_ERRORS, ValueError, RuntimeError)
"""The last two come from the hub's upload clients and its check of a card's head."""


@dataclass(frozen=True, slots=True)
class _Pushed:
    """A push: ``url`` and id of the commit, and the paths sent, sorted."""

    repo: str
    url: str
    commit: str
    files: tuple[str, ...]


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    base: str | None = None,
    message: str | None = None,
    progress: Progress | None = None,
) -> _Pushed:
    """Send a native checkpoint with its model card to the hub, as one commit; base weights are never sent.

    ``repo`` is ``owner/repo``; it and the branch ``revision`` are made if they are not there. ``base`` is the hub id of
    the base model, written in place of a folder's name.

    Raises:
        CheckpointError: the folder is no whole native checkpoint, or its base model is named by a folder.
        HubError: the hub is offline, refuses, or breaks off.
    """
    if (name := parse(repo)) is None or name.inside or name.revision:
        raise HubError(f"{repo!r} is no repository's name; give owner/name (and the branch with --revision)")
    manifest = _verify(folder)
    named = _base_of(manifest, base)
    if _offline():
        raise HubError(f"nothing was sent to {repo}: HF_HUB_OFFLINE is set; unset it and push again")
    api = HfApi()
    operations = _operations(folder, manifest, named)
    files = tuple(sorted(operation.path_in_repo for operation in operations))
    if progress is not None:
        progress(f"sending {repo}", 0, 1)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        present = set(api.list_repo_files(repo, revision=revision))
        stale = [path for path in present - set(files) if path.startswith("adapters/") or path == VOCABULARY]
        commit = api.create_commit(
            repo,
            [*operations, *(CommitOperationDelete(path_in_repo=path) for path in sorted(stale))],
            commit_message=message or f"CLaRa checkpoint, stage {manifest.stage}",
            revision=revision,
        )
    except _UPLOAD_ERRORS as error:
        raise HubError(_refused(repo, error)) from error
    if progress is not None:
        progress(f"sending {repo}", 1, 1)
    return _Pushed(repo=repo, url=str(commit.commit_url), commit=commit.oid, files=files)


def pull(name: _HubName, out: Path | None = None, *, progress: Progress | None = None) -> Path:
    """Fetch a checkpoint, native or in Apple's format, from the hub; returns the folder to load it from.

    A copy goes to ``out``, which must not exist or be a checkpoint, which is then replaced, whole or not at all; None
    leaves the files in the hub's own cache.

    Raises:
        HubError: it cannot be had.
        CheckpointError: it is damaged, or ``out`` is taken.
    """
    if out is not None:
        apple = out.is_dir() and apple_format.is_official(out)
        checkpoint.check_replaceable(out, manifest=apple_format.CONFIG if apple else checkpoint.MANIFEST)
    folder = fetch(name, progress=progress)
    native = (folder / checkpoint.MANIFEST).is_file()
    if native:
        _verify(folder)
    if out is None:
        return folder
    patterns = _NATIVE_FILES if native else _OFFICIAL_FILES
    with checkpoint.replacing(out) as scratch:
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            target = scratch / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target)  # follows the cache's links
            else:
                shutil.copyfile(path, target)
    return out


def _verify(folder: Path) -> Manifest:
    """Check that a native checkpoint is whole (``CheckpointError``), by its files' headers; loads no tensor."""
    manifest = checkpoint.read_manifest(folder)
    tensors = [checkpoint.MEMORY, *(f"adapters/{role}/{_ADAPTER_FILES[0]}" for role in manifest.roles)]
    if manifest.official is not None:
        tensors.append(VOCABULARY)
    for name in (*tensors, *(f"adapters/{role}/{_ADAPTER_FILES[1]}" for role in manifest.roles)):
        if not (folder / name).is_file():
            raise CheckpointError(f"the checkpoint has no {folder / name}")
    for name in tensors:
        try:
            with safe_open(folder / name, "pt"):  # checks the file's length against its header
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error}") from None
    return manifest


def _base_of(manifest: Manifest, base: str | None) -> str:
    """The base model's name for another machine."""
    named = base or manifest.base_model
    if named in EMBEDDED:
        return named
    if parse(named) is None or Path(named).expanduser().exists():
        known = KNOWN_BASES.get(Path(named).name)
        if base is None and known is not None:
            return known
        raise CheckpointError(
            f"the base model is named {named!r}, which nobody else has; say its hub id with --base owner/model"
        )
    return named


def _operations(folder: Path, manifest: Manifest, base: str) -> list[CommitOperationAdd]:
    values = {**manifest.model_dump(mode="json"), "base_model": base}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    made = [
        CommitOperationAdd(path_in_repo=checkpoint.MANIFEST, path_or_fileobj=text.encode()),
        CommitOperationAdd(path_in_repo=_CARD, path_or_fileobj=_card(folder, manifest, base).encode()),
    ]
    names = [checkpoint.MEMORY, *([VOCABULARY] if manifest.official is not None else [])]
    for role in manifest.roles:
        weights, config = (f"adapters/{role}/{file}" for file in _ADAPTER_FILES)
        names.append(weights)
        # PEFT notes where the base weights lay on this machine; for others that is the hub id.
        values = json.loads((folder / config).read_text(encoding="utf-8"))
        values["base_model_name_or_path"] = _EMBEDDED_IDS.get(base, base)
        content = (json.dumps(values, indent=2) + "\n").encode()
        made.append(CommitOperationAdd(path_in_repo=config, path_or_fileobj=content))
    return made + [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names]


def _card(folder: Path, manifest: Manifest, base: str) -> str:
    """The checkpoint's card with a head for the hub, where ``base_model`` must be a hub id."""
    path = folder / _CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# CLaRa checkpoint, stage {manifest.stage}\n"
    try:
        card = ModelCard(text if text.startswith("---") else f"---\nlibrary_name: clara-rag\n---\n{text}")
    except ValueError as error:
        raise CheckpointError(f"{path} has a head that is not YAML: {error}") from None
    data: Any = card.data  # its fields are those of the file's head, known at run time only
    head: dict[str, Any] = data.to_dict()
    data.tags = list(dict.fromkeys([*head.get("tags", []), "clara", "rag", "context-compression"]))
    data.base_model = _EMBEDDED_IDS.get(base, base)
    data.base_model_relation = "adapter"
    data.library_name = "clara-rag"
    return str(card)


def _refused(repo: str, error: BaseException) -> str:
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # its upload threads wrap what went wrong
        return _refused(repo, error.__cause__)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, LocalTokenNotFoundError) or status in {401, 403}:
        return f"the hub did not accept {repo} from this account ({reason_of(error)}); log in: hf auth login"
    return f"{repo} could not be pushed ({reason_of(error)}); nothing of it is visible on the hub, try again"
