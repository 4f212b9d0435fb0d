"""``clara calibrate``: a checkpoint and records into a checkpoint with what was measured (``clara.calibrate``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from clara.cli.options import BaseOption, CacheOption, DeviceOption, JsonOption, ThreadsOption, given_path
from clara.cli.session import cache_folder, prepare_torch
from clara.cli.terminal import bar_or_lines, download_lines, note, plain, print_json, write
from clara.cli.train import read_all, refuse_eval
from clara.errors import InputError


def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint: folder, hub id or embedded model. It stays as it is.")],
    *,
    data: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Records (.jsonl, .jsonl.gz); may be given again.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=given_path, help="Folder of the result; without it nothing is written.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PART,…",
            help="Of queries, spans, latent-weight, rerank, contrast, wording, reading, evidence; by default all but "
            "spans that the checkpoint supports, and queries only where it has no query side.",
        ),
    ] = None,
    other: Annotated[
        str | None, typer.Option("--from", metavar="OTHER", help="Average the adapters with this checkpoint's.")
    ] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of OTHER in the mean.")] = 0.5,
    reader: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=given_path, help="Attach this reader (clara train reader).")
    ] = None,
    late: Annotated[
        bool | None,
        typer.Option(
            "--late-interaction/--mean",
            help="How questions are compared by queries: memory token by memory token, or by their mean.",
        ),
    ] = None,
    keep: Annotated[float, typer.Option(min=0, max=1, help="Share of the right answers that evidence keeps.")] = 0.95,
    limit: Annotated[int, typer.Option(min=2, help="Most questions that are asked.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the sample of questions.")] = 0,
    as_json: JsonOption = False,
    base: BaseOption = None,
    device: DeviceOption = "cpu",
    cache: CacheOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Set by measurement what a checkpoint does not learn: how it searches, how it reads, when it withholds an answer.

    Passages of the records are searched and answered from as clara ask would. A value changes where another one is
    better by more than the standard error. Queries, spans, --from and --reader make weights without a training step.
    Files under a folder named eval are refused.

    The result has the record in its clara.json (trained.calibrated) and in its card.

    --json prints {"checkpoint", "calibrated": {part: {"value", "was", "metric", "candidates", "questions", "passages",
    "date", "data", "records", "seed"}}}; contrast, reading and evidence hold one such object for each value they set.
    """
    from clara.calibrate.run import Part, Wanted  # noqa: PLC0415 - imports torch
    from clara.calibrate.run import calibrate as run  # noqa: PLC0415
    from clara.calibrate.weights import CheckpointLoader  # noqa: PLC0415

    paths = data or []
    refuse_eval(paths)
    parts = None if only is None else frozenset(name.strip() for name in only.split(",") if name.strip())
    if parts is not None and (unknown := parts - set(get_args(Part))):
        raise InputError(f"--only: there is no {', '.join(sorted(unknown))}; give some of {', '.join(get_args(Part))}")
    wanted = Wanted(
        None if parts is None else cast("frozenset[Part]", parts), other, share, reader, late, keep, limit, seed
    )
    records, _ = read_all(paths, plain=True, say=note)
    chosen = prepare_torch(device, threads)
    with bar_or_lines("calibrating", at_once=False) as tell:
        made = run(
            checkpoint,
            records,
            wanted,
            CheckpointLoader(cache_folder(cache), base, chosen, download_lines()),
            out=out,
            data=[path.name for path in paths],
            tell=lambda what, done, total: tell(done, total, what, f"{what}: {done}/{total}"),
            notice=note,
        )
    if as_json:
        print_json({"checkpoint": None if out is None else str(out), "calibrated": dict(made.measured)})
        return
    for part, entry in made.measured.items():
        _show(part, entry)
    write(f"checkpoint: {plain(str(out))}" if out is not None else "nothing was written; give --out DIR")


def _show(name: str, entry: Mapping[str, Any]) -> None:
    """One line for each value."""
    if "value" in entry:
        was = f" (before: {entry['was']})" if "was" in entry else ""
        figures = ", ".join(f"{one}: {figure:.3f}" for one, figure in entry.get("candidates", {}).items())
        write(f"{name}: {entry['value']}{was}{'; ' + entry['metric'] + ' ' + figures if figures else ''}")
    elif "from" in entry:
        write(f"{name}: {plain(str(entry['from']))}")
    for key, one in entry.items():
        if isinstance(one, dict) and "value" in one:
            _show(f"{name}, {key}", one)
