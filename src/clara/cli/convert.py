"""``clara convert``: a checkpoint in Apple's format into a native one. What is done is in ``clara.model``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara.cli.options import BaseOption, CacheOption, JsonOption, given_path
from clara.cli.session import cache_folder, prepare_torch
from clara.cli.terminal import download_progress, print_json, write


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
    if as_json:
        print_json(facts)
    else:
        write(f"wrote {out}: stage {manifest.stage}, {facts['rate']}x, {', '.join(manifest.roles)}")
