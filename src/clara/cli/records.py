"""``clara synth`` and ``convert-records``: documents to training records, and records to other rows and back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clara.cli.options import JsonOption, given_options, given_path
from clara.cli.session import api_key
from clara.cli.terminal import INTERRUPTED, bar, clock, console, counted, note, print_json, write
from clara.config import check, read_toml
from clara.errors import ConfigError

if TYPE_CHECKING:
    from clara.synth.output import SynthReport
    from clara.synth.run import SynthProgress
    from clara.synth.sources import Sources

_UNFINISHED_EXIT = 1
_AUTOMATIC = frozenset({"docs", "out", "automatic", "config", "limit", "as_json"})
"""Parameters that --automatic allows."""

_SHOWN_MESSAGES = 5


def synth(
    ctx: typer.Context,
    docs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DOCS", parser=given_path, help="Documents, folders, or passage files (.jsonl, .jsonl.gz)."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Records to write (.jsonl).")],
    llm: Annotated[str | None, typer.Option(help="OpenAI-compatible server, such as http://host:8000/v1.")] = None,
    llm_model: Annotated[str | None, typer.Option(help="Model name, as the server knows it.")] = None,
    automatic: Annotated[
        bool, typer.Option("--automatic", help="Tasks made of the text itself, without a language model.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Settings (TOML); options win over them.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output that is there.")] = False,
    judge: Annotated[
        Literal["both", "llm", "lexical"] | None, typer.Option(help="Who judges; both by default.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds before a passage is dropped.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests under way at once.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait for one reply.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the drafts.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Budget: prompt and reply tokens.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Budget: money; needs the prices.")] = None,
    price_in: Annotated[float | None, typer.Option(help="Price of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Price of a million reply tokens.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first passages.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Reply cache [OUT.cache.sqlite3].")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Folder of prompt templates of your own.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the table (.md) and a plot beside it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write verified question-answer pairs and paraphrases about documents, for `clara train scp`.

    With --automatic no language model is asked: numbers, options, identifiers and names to put into gaps, and what
    follows some words, of one passage or of several near ones, some of which hold no answer. Only DOCS, --out,
    --config, --limit and --json are read then; --json prints {"records", "tasks": {kind: count}, "without"}.
    """
    if automatic:
        useless = [option for name, option in given_options(ctx, "COMMANDLINE").items() if name not in _AUTOMATIC]
        if useless:
            raise ConfigError(
                f"--automatic asks no language model and has no use for {', '.join(useless)}; leave them out"
            )
        _write_automatic(docs, out, config, limit, as_json=as_json)
        return
    # Imported here: the room needs the extra "synth", and other commands shall not wait for it.
    from clara.synth.drafts import Templates  # noqa: PLC0415
    from clara.synth.run import SynthJob, synthesize  # noqa: PLC0415
    from clara.synth.settings import SynthSettings  # noqa: PLC0415
    from clara.synth.sources import Sources, read_sources  # noqa: PLC0415

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
    templates = Templates.read(prompts) if prompts else None
    sources = read_sources(docs, passage_words=settings.passage_words, min_passage_words=settings.min_passage_words)
    if limit is not None:
        sources = Sources(sources.passages[:limit], sources.skipped, sources.messages)
    _note_messages(sources)
    with bar("passages") as show:

        def on_progress(progress: SynthProgress) -> None:
            show(progress.finished, progress.total, _described(progress))

        try:
            job = SynthJob(out, resume, cache, api_key(), templates, on_progress)
            result = synthesize(sources, settings, job)
        except KeyboardInterrupt:
            note("interrupted; go on with --resume")
            raise typer.Exit(INTERRUPTED) from None
    if report is not None:
        table, plot = result.write(report)
        note(f"report: {table}, {plot}")
    _show(result, as_json=as_json)
    if result.run.stopped:
        note(f"{result.run.message}; go on with --resume")
    # A spent budget is an end that was asked for; passages left open by a failing server are not.
    if result.unfinished and result.run.stopped != "budget":
        raise typer.Exit(_UNFINISHED_EXIT)


def _merged(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings of the file, overridden by options."""
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


def _note_messages(sources: Sources) -> None:
    for message in sources.messages[:_SHOWN_MESSAGES]:
        note(message)
    if len(sources.messages) > _SHOWN_MESSAGES:
        note(f"… and {len(sources.messages) - _SHOWN_MESSAGES} more (all with --json)")


def _write_automatic(docs: list[Path], out: Path, config: Path | None, limit: int | None, *, as_json: bool) -> None:
    """Write records made without a language model."""
    from clara.data import write_records  # noqa: PLC0415 - as above
    from clara.synth.automatic import AutomaticSettings, automatic_records  # noqa: PLC0415
    from clara.synth.sources import read_sources  # noqa: PLC0415

    settings = check(AutomaticSettings, read_toml(config) if config else {}, source=str(config))
    sources = read_sources(docs, passage_words=settings.passage_words, min_passage_words=settings.min_passage_words)
    _note_messages(sources)
    made = automatic_records(sources.passages[:limit], settings)
    write_records(out, made.records)
    if as_json:
        print_json({"records": len(made.records), "tasks": dict(made.tasks), "without": made.without})
        return
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(made.tasks.items()))
    write(f"{counted(len(made.records), 'record')} written to {out}: {kinds or 'no task'}")
    if made.without:
        note(f"{counted(made.without, 'passage')} without a number, option, identifier or name to ask for")


def _require_server(values: dict[str, Any]) -> None:
    server = values.get("server", {})
    if not isinstance(server, dict):
        return  # the check of all settings says what is wrong with it
    missing = [option for key, option in (("url", "--llm URL"), ("model", "--llm-model NAME")) if key not in server]
    if missing:
        raise ConfigError(f"no language model: give {' and '.join(missing)}, or set them under [server] in --config")


def _described(progress: SynthProgress) -> str:
    parts = [f"{progress.accepted:,} accepted", f"{progress.tokens_per_second:,.0f} tokens/s"]
    if progress.cost:
        parts.append(f"cost {progress.cost:.4g}")
    if progress.seconds_left is not None:
        parts.append(f"{clock(progress.seconds_left)} left")
    return ", ".join(parts)


def _show(result: SynthReport, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(result))
        return
    from rich.table import Table  # noqa: PLC0415

    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right")
    for name, value in result.rows():
        table.add_row(name, value)
    console().print(table)


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
