"""``clara export``: a native checkpoint into another format. What is done is in ``clara.model``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clara.cli.options import BaseOption, CacheOption, JsonOption, given_path
from clara.cli.session import cache_folder, prepare_torch
from clara.cli.terminal import download_progress, print_json, write


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
    if as_json:
        print_json({"checkpoint": str(out), "format": to})
    else:
        write(f"wrote {out} in Apple's format")
