"""``clara``: joins the commands, and turns every exception into one line on stderr and an exit code.

Exit codes: 0 done, 1 a bug or a failed check, 2 a user's mistake, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from importlib.metadata import version as distribution_version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from clara.cli.options import takes_records
from clara.cli.terminal import INTERRUPTED, Screen, interrupted, message_of, note
from clara.errors import ClaraError, ConfigError, OutputError

_USER_ERROR = 2
_BUG = 1
_UNREAD = 1
# Of a command that takes a question: without quotes, or about an option of the program that is documented.
_REMEDIES = {
    "Got unexpected extra argument": "; put the question in quotes",
    "No such option": "; a question that begins with - stands last, behind --",
}


class _Group(TyperGroup):
    """The commands; an interrupted one ends with one line."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own context type has no public name
        try:
            return super().invoke(ctx)
        except typer.Exit:  # a command that has said it itself
            raise
        except (Exception, KeyboardInterrupt) as error:
            if not interrupted(error):
                raise
            _say("interrupted")
            raise typer.Exit(INTERRUPTED) from None


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"clara {distribution_version('clara-rag')}\n")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="CLARA_DEBUG", help="Show tracebacks and warnings; may stand anywhere.")
    ] = False,
) -> None:
    """Compress documents once into memory tokens; search them and answer from them, offline."""
    del version, debug  # the first is done by its callback, the second by main
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")


_COMMANDS = {
    "index": "store",
    "ask": "ask",
    "search": "ask",
    "chat": "ask",
    "serve": "serve",
    "mcp": "serve",
    "remove": "store",
    "merge": "store",
    "upgrade": "store",
    "info": "store",
    "doctor": "doctor",
    "train": "train",
    "calibrate": "train",
    "eval": "eval",
    "compare": "compare",
    "inspect": "analyse",
    "analyse": "analyse",
    "bench": "bench",
    "synth": "records",
    "convert-records": "records",
    "convert": "checkpoints",
    "export": "checkpoints",
    "push": "checkpoints",
    "pull": "checkpoints",
}
"""File of each command, which is a function of its name there (``eval``: ``evaluate``)."""


_READ_AHEAD_BYTES = 64 << 20


def application(command: str | None = None) -> typer.Typer:
    """The command line with one command, others not imported; with all where there is none of that name."""
    app = typer.Typer(name="clara", cls=_Group, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(_root)
    for name in (command,) if command in _COMMANDS else _COMMANDS:
        function = "evaluate" if name == "eval" else name.replace("-", "_")
        made = getattr(import_module(f"clara.cli.{_COMMANDS[name]}"), function)
        if isinstance(made, typer.Typer):
            app.add_typer(made, name=name)
        else:
            app.command(name)(takes_records(made))
    return app


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line on ``args``, by default the process's; returns the exit code."""
    arguments = list(sys.argv[1:] if args is None else args)
    debug = _take_debug(arguments)
    if args is None and not debug:
        # Libraries' advice to developers; a user cannot act on it, and stderr is for what he can.
        warnings.simplefilter("ignore")
    if not debug:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says at import what it would rather have
        os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings name files inside the store
    # OpenMP's threads would spin while they wait for each other; beside other work that makes two threads 20 times
    # slower than one (LOG.md, 2026-11-29). Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # LanceDB reads ahead by up to 2 GiB, and a compaction fills that. Read when the first store is opened.
    os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(_READ_AHEAD_BYTES))
    closed = sys.stdout is None
    with _screens():
        if closed:  # said before anything is done whose result nobody would see
            return _report(OutputError("the output cannot be written: stdout is closed; give it a file, or /dev/null"))
        try:
            _refuse_empty(arguments)
            called = next((argument for argument in arguments if not argument.startswith("-")), None)
            code = typer.main.get_command(application(called)).main(arguments, prog_name="clara", standalone_mode=False)
            sys.stdout.flush()
        except Exception as error:  # noqa: BLE001 - the one place where every exception becomes a line
            if debug:
                traceback.print_exception(error)
            with suppress(OutputError):
                sys.stdout.flush()
            return _report(error)
        return code if isinstance(code, int) else 0


@contextmanager
def _screens() -> Iterator[None]:
    """Stdout and stderr as ``Screen``; a stream that the caller closed leads nowhere.

    Otherwise a file that is opened later would get its number, and output would be written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open to the end, as streams are
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character shall not end the command
            stream.reconfigure(errors="backslashreplace")
    out, err = Screen(sys.stdout, bars=False, needed=True), Screen(sys.stderr, bars=True, needed=False)
    with redirect_stdout(cast("TextIO", out)), redirect_stderr(cast("TextIO", err)):
        yield


def _report(error: Exception) -> int:
    """Write an error in one line; returns the exit code."""
    if isinstance(error, OutputError) and not str(error):
        return _UNREAD
    if isinstance(error, ClaraError):
        _say(message_of(error))
        return _USER_ERROR
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "clara"
        said = error.format_message().rstrip(".")
        asks = context is not None and any(each.name == "question" for each in context.command.params)
        remedy = next((remedy for start, remedy in _REMEDIES.items() if asks and said.startswith(start)), "")
        _say(f"{said}{remedy}; see {path} --help")
        return error.exit_code
    if isinstance(error, typer.Abort):
        _say("the input ended")
        return _BUG
    text = str(error)
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    _say(f"this is a bug, please report it: {what} (--debug shows where)")
    return _BUG


def _say(message: str) -> None:
    note("clara: " + re.sub(r"\s*[\r\n]+\s*", " ", message).strip())


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an empty option (ConfigError), as from an unset variable: as a path it would be the working folder."""
    for option, value in pairwise([*arguments, "more"]):
        if option.startswith("-") and (not value or (option.startswith("--") and option.endswith("="))):
            raise ConfigError(f"{option.removesuffix('=')} is empty; give a value (the working folder is .)")


def _take_debug(arguments: list[str]) -> bool:
    """Take ``--debug`` out of the arguments, wherever it stands before ``--``; true if it is set."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    asked = len(kept) < end
    arguments[:end] = kept
    return asked or os.environ.get("CLARA_DEBUG", "") not in {"", "0"}
