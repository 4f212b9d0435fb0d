"""Write docs/cli.md from the command line itself, so that it cannot drift; a test compares the two.

Usage: python scripts/cli_reference.py
"""

# ruff: noqa: ANN401 - the classes of typer's commands and contexts have no public names
from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import typer

from clara.cli import application

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"

_HEAD = """# Command line

Written by `python scripts/cli_reference.py`; change the commands, not this file.

Answers go to stdout, everything else to stderr. `--json` prints JSON on stdout and nothing else there. Progress bars
show on a terminal only; `NO_COLOR` is honoured. Exit codes: 0 done, 1 a bug or a failed check, 2 a mistake in what was
given (one line says what to do), 130 interrupted.
"""


def render() -> str:
    """The text of docs/cli.md."""
    root: Any = typer.main.get_command(application())
    context = root.make_context("clara", [], resilient_parsing=True)
    parts = [_HEAD, _section(root, context, "## clara")]
    for name, command in root.commands.items():
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        parts.extend(_sections(command, inner, f"clara {name}"))
    return "\n".join(parts)


def _sections(command: Any, context: Any, title: str) -> list[str]:
    found = [_section(command, context, f"## {title}")]
    for name, below in getattr(command, "commands", {}).items():
        inner = below.make_context(name, [], parent=context, resilient_parsing=True)
        found.extend(_sections(below, inner, f"{title} {name}"))
    return found


def _section(command: Any, context: Any, heading: str) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [heading, "", f"    {context.command_path} {usage}", "", _prose(command.help or ""), ""]
    records = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    lines += ["| | |", "|---|---|"]
    lines += [f"| `{_cell(names)}` | {_cell(text)} |" for names, text in records]
    return "\n".join(lines) + "\n"


def _prose(text: str) -> str:
    """A command's help: paragraphs as they are, those that keep their lines as code."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            parts.append(f"```\n{paragraph[2:]}\n```")
        else:
            parts.append(" ".join(paragraph.split("\n")))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
