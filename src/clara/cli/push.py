"""``clara push``: a native checkpoint with its model card to the hub. The work is ``clara.model.hub.publish``'s."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara.cli.options import JsonOption, given_path
from clara.cli.terminal import download_progress, print_json, write


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
    from clara.model.hub.publish import push as send  # noqa: PLC0415 - imports torch

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
    if as_json:
        print_json({"repo": done.repo, "url": done.url, "commit": done.commit, "files": list(done.files)})
    else:
        write(f"pushed {len(done.files)} files to {done.repo}: {done.url}")
