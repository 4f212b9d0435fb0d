"""``clara index``: files and folders into the store. Options and report only; the work is ``Clara.add``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clara.cli.options import DEFAULT_STORE, FittingModel, JsonOption, ModelChoice, StoreOption, given_path
from clara.cli.session import open_rag
from clara.cli.terminal import (
    INTERRUPTED,
    Tell,
    bar_or_lines,
    clock,
    counted,
    interrupted,
    megabytes,
    note,
    print_json,
    shown,
    write,
)
from clara.errors import InputError

if TYPE_CHECKING:
    from clara.indexing import AddProgress, AddReport, Shard
    from clara.ingest import IngestReport, Skipped
    from clara.pipeline import Clara
    from clara.ray_engine import RayEngine

_SHOWN_A_REASON = 10
_MOST_MB = 2.0**40  # more than any disk holds, infinity included


def index(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", parser=given_path, help="Files and folders, read recursively.")
    ],
    *,
    store: StoreOption = DEFAULT_STORE,
    choice: FittingModel,
    rate: Annotated[
        int | None, typer.Option("--rate", min=1, help="Compression rate of a new store; the model's by default.")
    ] = None,
    codec: Annotated[
        Literal["fp16", "int8", "int4", "residual"] | None,
        typer.Option("--codec", help="How a new store keeps memories; fp16 by default (docs/scale.md)."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what came from these paths and is there no more, or empty.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Take the I-th of N parts of the files (clara merge joins them)."),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option("--engine", help="What reads and compresses: this process, or the workers of a Ray cluster."),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="With --engine ray: models that compress; one a core (or GPU) by default."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="With --engine ray: the cluster; RAY_ADDRESS by default, or else this machine.",
        ),
    ] = None,
    max_file_mb: Annotated[
        float, typer.Option("--max-file-mb", min=0, help="Larger files (MiB) are skipped and reported.")
    ] = 64,
    max_memory_mb: Annotated[
        int,
        typer.Option("--max-memory-mb", min=256, max=2**30, help="Files whose parser needs more (MiB) are skipped."),
    ] = 2048,
    max_seconds: Annotated[
        int, typer.Option("--max-seconds", min=1, help="Files that take longer to read are skipped.")
    ] = 120,
    max_characters: Annotated[
        int, typer.Option("--max-characters", min=1, help="Documents with a longer text are skipped.")
    ] = 2**26,
    ocr: Annotated[
        bool,
        typer.Option("--ocr", help="Read pages of PDFs that hold no text by OCR (clara-rag[ocr]); seconds a page."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compress documents into the store.

    Reads .txt .md .rst .html .xhtml .pdf .docx .odt .epub .pptx .xlsx .csv .tsv .eml, source code, .jsonl
    ({"title", "text"} a line), and files without a suffix by their content. Unchanged documents are not touched; a run
    that was killed or interrupted is finished by the same command. Whatever cannot be read is skipped, named and
    counted; a run that finds no document at all is an error.

    --json prints one object:

    \b
    {"added", "updated", "unchanged", "pruned",        documents
     "passages", "tokens", "seconds",                  compressed by this run
     "reused",                                         passages whose memories were in the store already
     "files", "documents", "characters", "hidden",     read by this run
     "skipped": {reason: [{"uri", "message"}]},
     "left_out": {kind: count},                        of the documents read, such as menus of web pages
     "store": {"path", "model", "rate", "codec", "documents", "passages", "memory_bytes"}}
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    from clara.ingest import ReadLimits, check_paths  # noqa: PLC0415
    from clara.ingest.ocr import check_ocr  # noqa: PLC0415

    check_paths(paths)  # before the model is loaded
    part = _shard(shard)
    if engine == "local" and (workers is not None or ray_address is not None):
        raise InputError("--workers and --ray-address say how a cluster compresses; give --engine ray with them")
    if ocr:
        check_ocr()
    limits = ReadLimits(max_memory_mb, max_seconds, max_characters, ocr=ocr)
    size = int(min(max_file_mb, _MOST_MB) * 2**20)
    with open_rag(store, choice, rate=rate, codec=codec) as rag:
        spread = _cluster(rag, choice, workers, ray_address) if engine == "ray" else None
        try:
            with bar_or_lines("passages", at_once=False) as tell:
                report = rag.add(
                    paths,
                    prune=prune,
                    max_bytes=size,
                    limits=limits,
                    shard=part,
                    engine=spread,
                    progress=_telling(tell),
                )
        except (Exception, KeyboardInterrupt) as error:
            if not interrupted(error):
                raise
            note(f"clara: interrupted; {_kept(rag)} in {store}; the same command goes on from there")
            raise typer.Exit(INTERRUPTED) from None
        result = _as_json(report, rag, store)
    if as_json:
        print_json(result)
    else:
        _show(report, result["store"])
    if not report.ingest.documents and not report.pruned and part is None:
        raise InputError(_nothing_found(paths, report.ingest))


def _shard(given: str | None) -> Shard | None:
    from clara.indexing import Shard  # noqa: PLC0415

    if given is None:
        return None
    number, _, count = given.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise InputError(f"a shard is I/N with I from 1 to N, as 1/4, got {given!r}")
    return Shard(int(number), int(count))


def _cluster(rag: Clara, choice: ModelChoice, workers: int | None, address: str | None) -> RayEngine:
    from clara.ray_engine import RayEngine  # noqa: PLC0415

    load = {"base": choice.base, "device": choice.device, "dtype": choice.dtype, "cache": choice.cache}
    return RayEngine(rag.model.name, load, workers=workers, threads=choice.threads or 1, address=address)


def _telling(tell: Tell) -> Callable[[AddProgress], None]:
    def on_progress(progress: AddProgress) -> None:
        expected = max(progress.passages, progress.passages_expected or 0)
        parts = [f"file {min(progress.files + 1, progress.files_total):,} of {progress.files_total:,}"]
        if progress.passages:
            parts.append(f"{progress.passages_per_second:,.1f} a second")
        if progress.seconds_left is not None:
            parts.append(f"about {clock(progress.seconds_left)} left")
        words = ", ".join(parts)
        line = f"{progress.passages:,} of about {counted(expected, 'passage')}: {words}"
        tell(progress.passages, expected, words, line)

    return on_progress


def _kept(rag: Clara) -> str:
    documents, passages = len(rag.store.documents()), rag.store.count()
    return f"{counted(documents, 'whole document')} and {counted(passages, 'passage')} are kept"


def _as_json(report: AddReport, rag: Clara, path: Path) -> dict[str, Any]:
    counts = ("added", "updated", "unchanged", "pruned", "passages", "tokens", "seconds", "reused")
    read = ("files", "documents", "characters", "hidden")
    passages, filled_by = rag.store.count(), rag.store.model
    return {
        **{name: getattr(report, name) for name in counts},
        **{name: getattr(report.ingest, name) for name in read},
        "skipped": {
            reason: [{"uri": skipped.uri, "message": skipped.message} for skipped in group]
            for reason, group in _by_reason(report.ingest).items()
        },
        "left_out": dict(report.ingest.left_out),
        "store": {
            "path": str(path),
            "model": filled_by.name,
            "rate": filled_by.rate,
            "codec": rag.store.codec,
            "documents": len(rag.store.documents()),
            "passages": passages,
            "memory_bytes": passages * rag.store.memory_bytes,
        },
    }


def _by_reason(ingest: IngestReport) -> dict[str, list[Skipped]]:
    groups: dict[str, list[Skipped]] = {}
    for skipped in ingest.skipped:
        groups.setdefault(skipped.reason, []).append(skipped)
    return groups


def _nothing_found(paths: list[Path], ingest: IngestReport) -> str:
    reasons = [f"{len(group):,} {reason}" for reason, group in _by_reason(ingest).items()]
    reasons += [f"{ingest.hidden:,} hidden"] if ingest.hidden else []
    return (
        f"no document was found in {', '.join(map(str, paths))} ({', '.join(reasons) or 'no files there'}); "
        "give files that are read: clara index --help"
    )


def _show(report: AddReport, store: dict[str, Any]) -> None:
    parts = [f"{getattr(report, name):,} {name}" for name in ("added", "updated", "unchanged", "pruned")]
    write(f"documents: {', '.join(parts)}")
    speed = f" ({report.tokens / report.seconds:,.0f} tokens/s)" if report.passages else ""
    write(f"passages:  {report.passages:,} compressed, {report.tokens:,} tokens in {report.seconds:.1f} s{speed}")
    if report.reused:
        write(f"reused:    {counted(report.reused, 'passage')} whose text was in the store already")
    groups = _by_reason(report.ingest)
    if groups:
        write(f"skipped:   {counted(len(report.ingest.skipped), 'source')}")
    for reason, group in groups.items():
        write(f"  {reason}:")
        for skipped in group[:_SHOWN_A_REASON]:
            write(f"    {shown(skipped.message)}")
        if len(group) > _SHOWN_A_REASON:
            write(f"    … and {len(group) - _SHOWN_A_REASON:,} more (--json names all)")
    if report.ingest.left_out:
        write(f"left out:  {', '.join(f'{kind} ({number:,})' for kind, number in report.ingest.left_out.items())}")
    if report.ingest.hidden:
        write(f"passed over: {report.ingest.hidden:,} hidden (names that begin with a dot)")
    write(
        f"store:     {store['path']}: {counted(store['documents'], 'document')}, "
        f"{counted(store['passages'], 'passage')}, {megabytes(store['memory_bytes'])} of memories "
        f"({store['model']} at {store['rate']}x)"
    )
