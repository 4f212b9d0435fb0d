"""``clara convert``, ``export``, ``push`` and ``pull``: checkpoints to and from Apple's format and the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from clara.cli.options import BaseOption, CacheOption, JsonOption, given_path
from clara.cli.session import cache_folder, prepare_torch
from clara.cli.terminal import download_progress, print_result
from clara.errors import InputError


def convert(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=given_path, help="Checkpoint in Apple's format: folder or hub id."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the native checkpoint.")],
    base: BaseOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint in Apple's format into a native one.

    Its config.json often names a path of the training machine: say with --base where the base model is.

    --json prints {"checkpoint", "base", "stage", "rate", "window_tokens", "roles"}.
    """
    from clara.model.apple.write import convert as convert_folder  # noqa: PLC0415 - imports torch

    prepare_torch("cpu", None)
    with download_progress() as progress:
        manifest = convert_folder(
            folder.expanduser(), out.expanduser(), cache_folder(cache), base_name=base, progress=progress
        )
    facts = {
        "checkpoint": str(out),
        "base": manifest.base_model,
        "stage": manifest.stage,
        "rate": manifest.compression.default_rate,
        "window_tokens": manifest.compression.window_tokens,
        "roles": list(manifest.roles),
    }
    words = f"wrote {out}: stage {manifest.stage}, {facts['rate']}x, {', '.join(manifest.roles)}"
    print_result(facts, words, as_json=as_json)


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", parser=given_path, help="Native checkpoint.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder to write; must be new or empty.")],
    to: Annotated[Literal["official"], typer.Option("--format", help="official: Apple's.")] = "official",
    base: BaseOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint that clara convert made back in Apple's format, for Apple's code.

    --json prints {"checkpoint", "format"}.
    """
    from clara.model.apple.write import export as export_folder  # noqa: PLC0415 - imports torch

    prepare_torch("cpu", None)
    with download_progress() as progress:
        export_folder(folder.expanduser(), out.expanduser(), cache_folder(cache), base_name=base, progress=progress)
    print_result({"checkpoint": str(out), "format": to}, f"wrote {out} in Apple's format", as_json=as_json)


def push(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", parser=given_path, help="Native checkpoint.")],
    repo: Annotated[str, typer.Argument(metavar="REPO_ID", help="Repository on the hub: owner/name.")],
    *,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; main by default, made if new.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Hub id of the base model, where the checkpoint names a folder.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a checkpoint with its model card to the hub, as one commit; base weights are never sent.

    The account is the one of hf auth login, or of HF_TOKEN. With HF_HUB_OFFLINE set nothing is sent.

    --json prints {"repo", "url", "commit", "files"}.
    """
    from clara.model.hub.checkpoint import push as send  # noqa: PLC0415 - imports torch

    with download_progress() as progress:
        done = send(
            checkpoint.expanduser(),
            repo,
            private=private,
            revision=revision,
            base=base,
            message=message,
            progress=progress,
        )
    sent = {"repo": done.repo, "url": done.url, "commit": done.commit, "files": list(done.files)}
    print_result(sent, f"pushed {len(done.files)} files to {done.repo}: {done.url}", as_json=as_json)


def pull(
    repo: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="owner/name, also owner/name/folder and owner/name@revision.")
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a copy; the hub's own cache keeps the files by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a checkpoint from the hub, so that it works without a network from then on; whole or not at all.

    Without --out, --model REPO_ID finds it afterwards. Of a repository with a checkpoint for each rate, as Apple's are,
    the lowest rate is fetched unless a folder is named.

    --json prints {"repo", "folder"}.
    """
    from clara.model.hub.checkpoint import parse  # noqa: PLC0415 - imports torch
    from clara.model.hub.checkpoint import pull as fetch  # noqa: PLC0415

    name = parse(repo)
    if name is None:
        raise InputError(f"{repo!r} is no repository's name; give owner/name, owner/name/folder or owner/name@revision")
    if revision is not None:
        name = replace(name, revision=revision)
    with download_progress() as progress:
        folder = fetch(name, None if out is None else out.expanduser(), progress=progress)
    fetched = {"repo": str(name), "folder": str(folder)}
    print_result(fetched, f"fetched {name} into {folder}", as_json=as_json)
