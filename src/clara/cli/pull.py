"""``clara pull``: a checkpoint from the hub. The work is ``clara.model.hub.publish``'s."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara.cli.options import JsonOption
from clara.cli.terminal import download_progress, print_json, write
from clara.errors import InputError


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
    from dataclasses import replace  # noqa: PLC0415

    from clara.model.hub.checkpoint import parse  # noqa: PLC0415 - imports torch
    from clara.model.hub.publish import pull as fetch  # noqa: PLC0415

    name = parse(repo)
    if name is None:
        raise InputError(f"{repo!r} is no repository's name; give owner/name, owner/name/folder or owner/name@revision")
    if revision is not None:
        name = replace(name, revision=revision)
    with download_progress() as progress:
        folder = fetch(name, None if out is None else out.expanduser(), progress=progress)
    if as_json:
        print_json({"repo": str(name), "folder": str(folder)})
    else:
        write(f"fetched {name} into {folder}")
