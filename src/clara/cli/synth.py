"""``clara synth``: documents in, verified training records out, through a language model over HTTP.

Only the command line: options to settings, progress and tables to the terminal. What is done is in ``clara.synth``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from clara.config import check, read_toml
from clara.errors import ConfigError

if TYPE_CHECKING:
    from clara.synth.report import SynthReport
    from clara.synth.run import OnProgress, Progress

_KEY_VARIABLES = ("CLARA_LLM_API_KEY", "OPENAI_API_KEY")
_UNFINISHED_EXIT = 1
_INTERRUPTED_EXIT = 130  # as shells report a process ended by Ctrl-C
_SHOWN_MESSAGES = 5


def synth(
    docs: Annotated[list[Path], typer.Argument(help="Documents, folders, or passage files (.jsonl, .jsonl.gz).")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Records to write (.jsonl).")],
    llm: Annotated[
        str | None, typer.Option("--llm", help="OpenAI-compatible server, such as http://host:8000/v1.")
    ] = None,
    llm_model: Annotated[str | None, typer.Option("--llm-model", help="Model name, as the server knows it.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Settings (TOML); options win over them.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output that is there.")] = False,
    judge: Annotated[str | None, typer.Option("--judge", help="both, llm or lexical.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Rounds before a passage is dropped.")] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", help="Requests under way at once.")] = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds to wait for one reply.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Of the drafts.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Budget: prompt and reply tokens.")] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", help="Budget: money; needs the prices.")] = None,
    price_in: Annotated[float | None, typer.Option("--price-in", help="Price of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option("--price-out", help="Price of a million reply tokens.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first passages.")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Reply cache [OUT.cache.sqlite3].")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Folder of prompt templates of your own.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the table (.md) and a plot beside it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Write verified question-answer pairs and paraphrases about documents, for `clara train scp`."""
    # Imported here: the room needs the extra "synth", and other commands shall not wait for it.
    from clara.synth.report import write_report  # noqa: PLC0415
    from clara.synth.run import Job, synthesize  # noqa: PLC0415
    from clara.synth.settings import SynthSettings  # noqa: PLC0415
    from clara.synth.sources import Sources, read_sources  # noqa: PLC0415
    from clara.synth.templates import read_templates  # noqa: PLC0415

    given: dict[str, Any] = {
        "server": {"url": llm, "model": llm_model, "concurrency": concurrency, "timeout_seconds": timeout},
        "sampling": {"temperature": temperature},
        "budget": {"max_tokens": max_tokens, "max_cost": max_cost, "price_in": price_in, "price_out": price_out},
        "judge": judge,
        "max_rounds": rounds,
    }
    values = _merged(read_toml(config) if config else {}, given)
    _require_server(values)
    settings = check(SynthSettings, values, source=str(config) if config else "command line")
    templates = read_templates(prompts) if prompts else None
    console = Console(stderr=True)
    with console.status("reading documents"):
        sources = read_sources(docs, passage_words=settings.passage_words, min_passage_words=settings.min_passage_words)
    if limit is not None:
        sources = Sources(sources.passages[:limit], sources.skipped, sources.messages)
    for message in sources.messages[:_SHOWN_MESSAGES]:
        console.print(message, style="yellow", highlight=False, markup=False)
    if len(sources.messages) > _SHOWN_MESSAGES:
        console.print(f"… and {len(sources.messages) - _SHOWN_MESSAGES} more (all with --json)", style="yellow")
    key = next((os.environ[name] for name in _KEY_VARIABLES if os.environ.get(name)), "")
    try:
        with _progress(console) as on_progress:
            result = synthesize(sources, settings, Job(out, resume, cache, key, templates, on_progress))
    except KeyboardInterrupt:
        console.print("interrupted; go on with --resume", style="yellow")
        raise typer.Exit(_INTERRUPTED_EXIT) from None
    if report is not None:
        table, plot = write_report(result, report)
        console.print(f"report: {table}, {plot}", highlight=False, markup=False, soft_wrap=True)
    _show(result, as_json=as_json)
    if result.run.stopped:
        console.print(f"{result.run.message}\ngo on with --resume", style="yellow", highlight=False, markup=False)
    # A spent budget is an end that was asked for; passages left open by a failing server are not.
    if result.unfinished and result.run.stopped != "budget":
        raise typer.Exit(_UNFINISHED_EXIT)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(synth)


def _merged(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings of the file with the options that were given on top."""
    merged = dict(base)
    for key, value in given.items():
        if isinstance(value, dict):
            below = merged.get(key, {})
            inner = _merged(below, value) if isinstance(below, dict) else below
            if inner:
                merged[key] = inner
        elif value is not None:
            merged[key] = value
    return merged


def _require_server(values: dict[str, Any]) -> None:
    server = values.get("server", {})
    missing = [option for key, option in (("url", "--llm URL"), ("model", "--llm-model NAME")) if key not in server]
    if missing:
        raise ConfigError(f"no language model: give {' and '.join(missing)}, or set them under [server] in --config")


@contextmanager
def _progress(console: Console) -> Iterator[OnProgress | None]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    columns = (TextColumn("passages"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, total=progress.total, completed=progress.finished, description=_described(progress))

        yield show


def _described(progress: Progress) -> str:
    parts = [f"{progress.accepted:,} accepted", f"{progress.tokens_per_second:,.0f} tokens/s"]
    if progress.cost:
        parts.append(f"cost {progress.cost:.4g}")
    if progress.seconds_left is not None:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"{hours}:{minutes:02}:{seconds:02} left")
    return ", ".join(parts)


def _show(result: SynthReport, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result.to_json(), ensure_ascii=False) + "\n")
        return
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right")
    for name, value in result.rows():
        table.add_row(name, value)
    Console().print(table)
