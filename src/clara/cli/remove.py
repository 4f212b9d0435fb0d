"""``clara remove``: documents out of the store. Loads no model."""

from __future__ import annotations

from typing import Annotated

import typer

from clara.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from clara.cli.session import without_model
from clara.cli.terminal import counted, print_json, write


def remove(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Paths, folders, or names as info --documents lists them.")
    ],
    *,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Remove documents from the store; the files themselves are not touched.

    A source that names nothing in the store is an error, and nothing is removed then.

    --json prints {"removed", "documents", "passages"}: documents removed, and what is left.
    """
    with without_model(store) as rag:
        removed = rag.remove(sources)
        left = {"removed": removed, "documents": len(rag.store.documents()), "passages": rag.store.count()}
    if as_json:
        print_json(left)
    else:
        write(f"removed {counted(removed, 'document')}; {counted(left['documents'], 'document')} left")
