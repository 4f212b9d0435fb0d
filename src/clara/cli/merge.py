"""``clara merge``: several stores into one. The work is ``clara.index.rewrite``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara.cli.options import DEFAULT_STORE, JsonOption, StoreOption, given_path
from clara.cli.terminal import bar, counted, print_json, write


def merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE", parser=given_path, help="Stores of one model.")],
    *,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Bring the documents of several stores into the one that --store names, without compressing anything again.

    Loads no weights. Each machine indexes its part of the files into a store of its own (clara index --shard 1/4 …);
    merged they are the store that one machine would have made. Killed, the same command finishes. Of a document that
    several stores hold in different versions, the last store's stays.

    --json prints {"store", "documents", "passages", "unchanged"}: brought over by this run, and documents that were
    there already.
    """
    from clara.index.rewrite import merge as bring  # noqa: PLC0415

    with bar("merging") as show:
        done = bring(stores, store, progress=lambda passages, total: show(passages, total, "passages"))
    if as_json:
        counts = {"documents": done.documents, "passages": done.passages, "unchanged": done.unchanged}
        print_json({"store": str(store), **counts})
    else:
        write(
            f"{store}: {counted(done.documents, 'document')} with {counted(done.passages, 'passage')} brought over, "
            f"{done.unchanged:,} there already"
        )
