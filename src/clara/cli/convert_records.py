"""``clara convert-records``: training records into the official rows, or back; ``clara.data`` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clara.cli.terminal import counted, note, write


def convert_records(
    source: Annotated[Path, typer.Argument(help="File to read (.jsonl; records may be .jsonl.gz).")],
    target: Annotated[Path, typer.Argument(help="File to write (.jsonl, .jsonl.gz).")],
    *,
    to: Annotated[
        Literal["official", "records"],
        typer.Option(help="official: rows of Apple's published code; records: what clara train scp reads."),
    ],
) -> None:
    """Turn training records into the rows of Apple's published code, or back."""
    from clara.data.official_rows import export_official, import_official  # noqa: PLC0415

    if to == "official":
        count, reading = export_official(source, target)
        note(reading.summary())
        if reading.multi_hop:
            note(f"left out: {counted(len(reading.multi_hop), 'question')} over several documents, which have no rows")
    else:
        count = import_official(source, target)
    write(f"{counted(count, 'row' if to == 'official' else 'record')} written to {target}")
