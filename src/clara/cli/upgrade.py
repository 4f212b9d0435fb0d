"""``clara upgrade``: a store into today's format, or another codec. The work is ``clara.index.upgrade``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara.cli.options import JsonOption, given_path
from clara.cli.terminal import bar, counted, print_json, write
from clara.errors import ClaraError

if TYPE_CHECKING:
    from clara.records import QuerySpace


def upgrade(
    store: Annotated[Path, typer.Argument(metavar="STORE", parser=given_path, help="The store's folder.")],
    *,
    codec: Annotated[
        Literal["fp16", "int8", "int4", "residual"] | None,
        typer.Option(help="Keep memories in another way (docs/scale.md); as they are by default."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a store to today's format, or to another codec, without compressing anything again.

    Loads no weights. Needs room for the store once more until it is done; killed, the store is as it was or as it
    should be. A codec that keeps less cannot be taken back: indexing again can.

    --json prints {"store", "passages", "format", "codec"}: passages rewritten, 0 if there was nothing to do.
    """
    from clara.index.description import read_description  # noqa: PLC0415
    from clara.index.upgrade import upgrade as bring  # noqa: PLC0415

    described = read_description(store.absolute(), older=True)
    space = _query_space(described.model.name) if described is not None and described.version == 1 else None
    with bar("upgrading") as show:
        done = bring(
            store, codec=codec, query_space=space, progress=lambda passages, total: show(passages, total, "passages")
        )
    if as_json:
        facts = {"store": str(store), "passages": done.passages}
        print_json({**facts, "format": done.after.version, "codec": done.after.codec})
    elif done.passages or done.before != done.after:
        write(
            f"{store}: {counted(done.passages, 'passage')}, format {done.before.version} {done.before.codec} to "
            f"format {done.after.version} {done.after.codec}"
        )
    else:
        write(f"{store}: format {done.after.version}, {done.after.codec}; nothing to do")


def _query_space(model: str) -> QuerySpace | None:
    """What the questions of a model are, by its checkpoint; None if that is not at hand."""
    from clara.model.checkpoint import is_checkpoint, read_manifest  # noqa: PLC0415
    from clara.model.clara_model import find_checkpoint  # noqa: PLC0415

    try:
        folder = find_checkpoint(model, download=False)
        if not is_checkpoint(folder):
            return None
        return "mean" if read_manifest(folder).query_projection else "flat"
    except ClaraError:
        return None
