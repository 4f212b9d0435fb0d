"""Options that several commands share, and records of them, which a command takes whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer
from typer.models import OptionInfo

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_STORE = Path("store")

_Dtype = Literal["auto", "bf16", "fp16", "fp32", "int8", "int4"]
_Attention = Literal["auto", "eager", "sdpa", "flash"]
Engine = Literal["torch", "vllm"]
DEFAULT_K = 5
"""Passages for a question without a model."""

_MOST_THREADS = 4096  # of one process; what libraries make of more is their own affair


def given_path(text: str) -> Path:
    """A path as typed; an empty one, as from an unset variable, would be the working folder."""
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
    Path, typer.Option("--store", envvar="CLARA_STORE", callback=_at_home, help="Folder of the store.")
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
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", envvar="CLARA_CACHE", help="Folder for base weights; the user's cache folder by default."),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, max=_MOST_THREADS, help="CPU threads; torch's choice by default.")
]
KOption = Annotated[
    int | None,
    typer.Option(
        "--k",
        min=1,
        help=f"Passages to find; by default what measured best for the model and --context, else {DEFAULT_K}.",
    ),
]
ContextOption = Annotated[
    Literal["auto", "memory", "text", "none"],
    typer.Option(
        "--context",
        help="What is read of the passages: auto the best as text, memory all as memories, text all as text, or none.",
    ),
]
RateOption = Annotated[int | None, typer.Option("--rate", min=1, help="Compression rate; the model's by default.")]
NamedModelOption = Annotated[
    str, typer.Option("--model", envvar="CLARA_MODEL", help="Embedded model, checkpoint folder or hub id.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
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


def _memory_check_wanted() -> bool:
    """CLARA_MEMORY_CHECK, for commands without the option."""
    return os.environ.get("CLARA_MEMORY_CHECK", "1").lower() not in {"0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Options about the model."""

    model: Annotated[
        str | None,
        typer.Option(
            envvar="CLARA_MODEL",
            help=(
                "Embedded model, checkpoint folder (native or Apple's) or hub id; the one that filled the store by "
                f"default, else {DEFAULT_MODEL}."
            ),
        ),
    ] = None
    base: BaseOption = None
    device: DeviceOption = "cpu"
    dtype: Annotated[
        _Dtype,
        typer.Option(
            help="Of the base weights; auto is bf16 where the device multiplies it faster; int8, int4 by bitsandbytes."
        ),
    ] = "auto"
    cache: CacheOption = None
    threads: ThreadsOption = None
    attention: _Attention = "auto"
    memory_check: bool = field(default_factory=_memory_check_wanted)


@dataclass(frozen=True, slots=True)
class NamedModel(ModelChoice):
    """For commands without a store that names its model."""

    model: NamedModelOption = DEFAULT_MODEL


@dataclass(frozen=True, slots=True)
class FittingModel(ModelChoice):
    """For commands that may load a model without the memory check."""

    memory_check: Annotated[
        bool,
        typer.Option(
            "--memory-check/--no-memory-check",
            envvar="CLARA_MEMORY_CHECK",
            help="Refuse a model that does not fit into memory before it is loaded.",
        ),
    ] = True


@dataclass(frozen=True, slots=True)
class AnsweringModel(FittingModel):
    """For commands that generate answers."""

    attention: Annotated[
        _Attention, typer.Option(help="How prompts are read; auto is torch's own kernels, flash needs flash-attn.")
    ] = "auto"


_LAST = frozenset({"device", "dtype", "cache", "threads", "attention", "memory_check"})
"""Options listed behind a command's own."""


def takes_records(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer takes it: in place of each parameter that is a record, an option for each field that is one.

    Typer has no such thing itself; it reads a command's signature, so this one is written out for it. Options stand in
    the order of parameters and fields, unless a record's ``ORDER`` names another.
    """
    hints = get_type_hints(command, include_extras=True)
    records: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    offered = {name: _offered(kind) for name, kind in records.items()}
    order = " ".join(getattr(kind, "ORDER", "") for kind in records.values()).split()
    taken: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        taken += offered.get(name, [parameter.replace(annotation=hints[name])])

    def position(parameter: Parameter) -> tuple[bool, bool, int]:
        at = order.index(parameter.name) if parameter.name in order else len(order)
        return parameter.kind is Parameter.KEYWORD_ONLY, parameter.name in _LAST, at

    if records:
        taken.sort(key=position)

    @wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401 - of every command
        for name, kind in records.items():
            given[name] = kind(**{option.name: given.pop(option.name) for option in offered[name]})
        command(**given)

    run.__signature__ = Signature(taken)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in taken}
    return run


def _offered(record: type[Any]) -> list[Parameter]:
    hints = get_type_hints(record, include_extras=True)
    return [
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in fields(record)
        if any(isinstance(extra, OptionInfo) for extra in getattr(hints[each.name], "__metadata__", ()))
    ]


def given_options(ctx: typer.Context, *sources: str) -> dict[str, str]:
    """Options from these sources of click, as typed, by parameter."""
    return {
        option.name or "": option.opts[0]
        for option in ctx.command.params
        if str(ctx.get_parameter_source(option.name or "")).endswith(sources)
    }
