"""``clara info``: what a store holds. Loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from clara.cli.session import open_store
from clara.cli.terminal import console, counted, megabytes, print_json, shown, write

if TYPE_CHECKING:
    from clara.index import LanceStore


def info(
    *,
    store: StoreOption = DEFAULT_STORE,
    documents: Annotated[bool, typer.Option("--documents", help="List the documents with their passages.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a store holds, and which model filled it.

    --json prints one object:

    \b
    {"store", "model", "fingerprint", "rate", "memory_tokens", "width",
     "codec", "documents", "unfinished", "passages", "memory_bytes", "bytes_on_disk"}

    and with --documents also "listing": [{"document", "passages"}]. unfinished counts documents that a killed run left
    half-way; the same clara index finishes them.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    with open_store(store) as opened:
        facts = _facts(opened, store)
        entries = sorted(opened.documents().values(), key=lambda entry: entry.uri)
    if as_json:
        listing = [{"document": entry.uri, "passages": entry.passages} for entry in entries]
        print_json({**facts, "listing": listing} if documents else facts)
        return
    _show(facts)
    if documents:
        write()
        for entry in entries:
            write(f"{shown(entry.uri)}  ({counted(entry.passages, 'passage')})")


def _facts(store: LanceStore, path: Path) -> dict[str, Any]:
    model, passages = store.model, store.count()
    return {
        "store": str(path),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "rate": model.rate,
        "memory_tokens": model.memory_tokens,
        "width": model.width,
        "codec": store.codec,
        "documents": len(store.documents()),
        "unfinished": len(store.unfinished()),
        "passages": passages,
        "memory_bytes": passages * store.memory_bytes,
        "bytes_on_disk": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
    }


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("store", facts["store"])
    table.add_row("model", f"{facts['model']} (fingerprint {facts['fingerprint']})")
    table.add_row(
        "rate", f"{facts['rate']}x: {facts['memory_tokens']} memory tokens of width {facts['width']} a passage"
    )
    table.add_row("documents", f"{facts['documents']:,}")
    if facts["unfinished"]:
        table.add_row("unfinished", f"{facts['unfinished']:,} (clara index with the same paths finishes them)")
    table.add_row("passages", f"{facts['passages']:,}")
    table.add_row("memories", f"{megabytes(facts['memory_bytes'])} as {facts['codec']}")
    table.add_row("on disk", megabytes(facts["bytes_on_disk"]))
    console().print(table)
