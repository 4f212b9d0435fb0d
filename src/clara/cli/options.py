"""The options that several commands share, each defined once; and the record of those that choose a model.

What the choices lead to is in ``session``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_STORE = Path("store")

Dtype = Literal["auto", "bf16", "fp16", "fp32", "int8", "int4"]
Attention = Literal["auto", "eager", "sdpa", "flash"]
Engine = Literal["torch", "vllm"]
DEFAULT_K = 5
"""Passages for a question where the model has no say."""


MOST_THREADS = 4096
"""Of one process; what libraries make of more is their own affair."""


def given_path(text: str) -> Path:
    """A path as typed. Empty, as from a variable that is not set, it would become the working folder."""
    if not text:
        raise typer.BadParameter("a path is empty; write . for the working folder")
    return Path(text)


def _at_home(path: Path) -> Path:
    # A shell does not expand ~ after --store=, nor in a variable.
    try:
        return path.expanduser()
    except RuntimeError:
        raise typer.BadParameter(f"there is no home folder for {path}") from None


StoreOption = Annotated[
    Path,
    typer.Option("--store", envvar="CLARA_STORE", callback=_at_home, help="Folder of the store."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="CLARA_MODEL",
        help=(
            "Embedded model, checkpoint folder (native or Apple's) or hub id; the one that filled the store by "
            f"default, else {DEFAULT_MODEL}."
        ),
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", help="Base weights (name, folder or hub id), where the checkpoint's own entry is wrong."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help=(
            "Torch device: cpu, cuda, cuda:1, mps; auto is a GPU where there is one; balanced and sequential spread "
            "the weights over all GPUs, then the CPU."
        ),
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="Of the base weights; auto is bf16 where the device multiplies it faster; int8, int4 by bitsandbytes.",
    ),
]
AttentionOption = Annotated[
    Attention,
    typer.Option("--attention", help="How prompts are read; auto is torch's own kernels, flash needs flash-attn."),
]
MemoryCheckOption = Annotated[
    bool,
    typer.Option(
        "--memory-check/--no-memory-check",
        envvar="CLARA_MEMORY_CHECK",
        help="Refuse a model that does not fit into memory before it is loaded.",
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", envvar="CLARA_CACHE", help="Folder for base weights; the user's cache folder by default."),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, max=MOST_THREADS, help="CPU threads; torch's choice by default.")
]
KOption = Annotated[
    int | None,
    typer.Option(
        "--k",
        min=1,
        help=f"Passages to find; by default what measured best for the model and --context, else {DEFAULT_K}.",
    ),
]
ModeOption = Annotated[
    Literal["latent", "text", "hybrid"],
    typer.Option("--mode", help="Search: latent by memories, text by words (BM25), hybrid by both."),
]
ContextOption = Annotated[
    Literal["auto", "memory", "text", "none"],
    typer.Option(
        "--context",
        help="What is read of the passages: auto the best as text, memory all as memories, text all as text, or none.",
    ),
]
AlwaysAnswerOption = Annotated[
    bool,
    typer.Option("--always-answer", help="Answer even where the evidence says that the documents hold no answer."),
]
LatentWeightOption = Annotated[
    float | None,
    typer.Option(
        "--latent-weight",
        min=0,
        help="What a rank by memory counts in hybrid search, beside 1 for a rank by words; as the checkpoint says.",
    ),
]
WordingOption = Annotated[
    Literal["auto", "free", "quoted"],
    typer.Option(
        "--wording",
        help="Answers in any words, or quoted: a stretch of a passage, or yes or no. auto: as the checkpoint says "
        "where it reads with trained weights, else free.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
AnswerTokensOption = Annotated[
    int | None,
    typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens; 64, with --llm 512.", show_default=False),
]
LLMOption = Annotated[
    str | None,
    typer.Option(
        "--llm",
        help=(
            "OpenAI-compatible server, such as http://host:8000/v1, whose model answers from the passages' text. The "
            "store's own model only searches then; with --mode text it is not loaded."
        ),
    ),
]
LLMModelOption = Annotated[str | None, typer.Option("--llm-model", help="Model name, as the server knows it.")]


def memory_check_wanted() -> bool:
    """What CLARA_MEMORY_CHECK says, for commands without the option."""
    return os.environ.get("CLARA_MEMORY_CHECK", "1").lower() not in {"0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What the user said about the model; the fields are the options of the same names."""

    model: str | None = None
    base: str | None = None
    device: str = "cpu"
    dtype: Dtype = "auto"
    cache: Path | None = None
    threads: int | None = None
    attention: Attention = "auto"
    memory_check: bool = field(default_factory=memory_check_wanted)
