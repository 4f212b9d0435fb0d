"""The options that several commands share, each defined once; and the record of those that choose a model.

What the choices lead to is in ``session``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_STORE = Path("store")

Dtype = Literal["auto", "bf16", "fp32"]

StoreOption = Annotated[Path, typer.Option("--store", envvar="CLARA_STORE", help="Folder of the store.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="CLARA_MODEL",
        help=f"Embedded model or checkpoint folder; the one that filled the store by default, else {DEFAULT_MODEL}.",
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", help="Base weights (name, folder or hub id), where the checkpoint's own entry is wrong."),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="Torch device: cpu, cuda, …; auto is cuda where there is one.")
]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="Of the base weights; auto is bf16 where the device multiplies it natively.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", envvar="CLARA_CACHE", help="Folder for base weights; the user's cache folder by default."),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; torch's choice by default.")]
KOption = Annotated[int, typer.Option("--k", min=1, help="Passages to find.")]
ModeOption = Annotated[
    Literal["latent", "text", "hybrid"],
    typer.Option("--mode", help="Search: latent by memories, text by words (BM25), hybrid by both."),
]
ContextOption = Annotated[
    Literal["memory", "text", "none"],
    typer.Option("--context", help="What is read of the passages: their memories, their text, or nothing."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
AnswerTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What the user said about the model; the fields are the options of the same names."""

    model: str | None = None
    base: str | None = None
    device: str = "cpu"
    dtype: Dtype = "auto"
    cache: Path | None = None
    threads: int | None = None
