"""``clara index``, ``remove``, ``info``, ``merge`` and ``upgrade``; only ``index`` loads a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clara.cli.options import DEFAULT_STORE, FittingModel, JsonOption, ModelChoice, StoreOption, given_path
from clara.cli.session import load_model, open_store, stored_model, without_model
from clara.cli.terminal import (
    INTERRUPTED,
    ShowProgress,
    bar,
    bar_or_lines,
    clock,
    console,
    counted,
    interrupted,
    megabytes,
    note,
    print_json,
    print_result,
    shown,
    write,
)
from clara.errors import ClaraError, InputError

if TYPE_CHECKING:
    from clara.index import LanceStore
    from clara.indexing import AddProgress, AddReport, Shard
    from clara.ingest import IngestReport
    from clara.pipeline import Clara
    from clara.ray_engine import RayEngine
    from clara.records import QuerySpace

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
        int | None, typer.Option(min=1, help="Compression rate of a new store; the model's by default.")
    ] = None,
    codec: Annotated[
        Literal["fp16", "int8", "int4", "residual"] | None,
        typer.Option(help="How a new store keeps memories; fp16 by default (docs/scale.md)."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what came from these paths and is there no more, or empty.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Take the I-th of N parts of the files (clara merge joins them).")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="What reads and compresses: this process, or the workers of a Ray cluster."),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: models that compress; one a core or GPU by default.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="With --engine ray: the cluster; RAY_ADDRESS by default, or else this machine.",
        ),
    ] = None,
    max_file_mb: Annotated[float, typer.Option(min=0, help="Larger files (MiB) are skipped and reported.")] = 64,
    max_memory_mb: Annotated[
        int, typer.Option(min=256, max=2**30, help="Files whose parser needs more (MiB) are skipped.")
    ] = 2048,
    max_seconds: Annotated[int, typer.Option(min=1, help="Files that take longer to read are skipped.")] = 120,
    max_characters: Annotated[int, typer.Option(min=1, help="Documents with a longer text are skipped.")] = 2**26,
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
    with _open(store, choice, rate, codec) as rag:
        spread = _cluster(rag, choice, workers, ray_address) if engine == "ray" else None
        try:
            with bar_or_lines("passages", at_once=False) as show:
                report = rag.add(
                    paths,
                    prune=prune,
                    max_bytes=size,
                    limits=limits,
                    shard=part,
                    engine=spread,
                    progress=partial(_say_progress, show),
                )
        except (Exception, KeyboardInterrupt) as error:
            if not interrupted(error):
                raise
            documents, passages = len(rag.store.documents()), rag.store.count()
            kept = f"{counted(documents, 'whole document')} and {counted(passages, 'passage')} are kept in {store}"
            note(f"clara: interrupted; {kept}; the same command goes on from there")
            raise typer.Exit(INTERRUPTED) from None
        result = _report_object(report, rag, store)
    if as_json:
        print_json(result)
    else:
        _show_report(report, result["store"])
    if not report.ingest.documents and not report.pruned and part is None:
        raise InputError(_nothing_found(paths, report.ingest))


def _open(path: Path, choice: ModelChoice, rate: int | None, codec: str | None) -> Clara:
    """Open a store with its model, or make one; its errors come before the model is loaded."""
    stored = stored_model(path)
    model = load_model(choice, choice.model or (stored.name if stored is not None else None))
    from clara.pipeline import Clara  # noqa: PLC0415

    return Clara.open(path, model=model, rate=rate, codec=codec)


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


def _say_progress(show: ShowProgress, progress: AddProgress) -> None:
    expected = max(progress.passages, progress.passages_expected or 0)
    parts = [f"file {min(progress.files + 1, progress.files_total):,} of {progress.files_total:,}"]
    if progress.passages:
        parts.append(f"{progress.passages_per_second:,.1f} a second")
    if progress.seconds_left is not None:
        parts.append(f"about {clock(progress.seconds_left)} left")
    words = ", ".join(parts)
    show(progress.passages, expected, words, f"{progress.passages:,} of about {counted(expected, 'passage')}: {words}")


def _report_object(report: AddReport, rag: Clara, path: Path) -> dict[str, Any]:
    counts = ("added", "updated", "unchanged", "pruned", "passages", "tokens", "seconds", "reused")
    read = ("files", "documents", "characters", "hidden")
    passages, filled_by = rag.store.count(), rag.store.model
    return {
        **{name: getattr(report, name) for name in counts},
        **{name: getattr(report.ingest, name) for name in read},
        "skipped": {
            reason: [{"uri": skipped.uri, "message": skipped.message} for skipped in group]
            for reason, group in report.ingest.by_reason().items()
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


def _nothing_found(paths: list[Path], ingest: IngestReport) -> str:
    reasons = [f"{len(group):,} {reason}" for reason, group in ingest.by_reason().items()]
    reasons += [f"{ingest.hidden:,} hidden"] if ingest.hidden else []
    return (
        f"no document was found in {', '.join(map(str, paths))} ({', '.join(reasons) or 'no files there'}); "
        "give files that are read: clara index --help"
    )


def _show_report(report: AddReport, store: dict[str, Any]) -> None:
    parts = [f"{getattr(report, name):,} {name}" for name in ("added", "updated", "unchanged", "pruned")]
    write(f"documents: {', '.join(parts)}")
    speed = f" ({report.tokens / report.seconds:,.0f} tokens/s)" if report.passages else ""
    write(f"passages:  {report.passages:,} compressed, {report.tokens:,} tokens in {report.seconds:.1f} s{speed}")
    if report.reused:
        write(f"reused:    {counted(report.reused, 'passage')} whose text was in the store already")
    groups = report.ingest.by_reason()
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


def remove(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Paths, folders, or names as info --documents lists them.")
    ],
    *,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Remove documents from the store; the files themselves are not touched.

    A source that names nothing in the store is an error, and nothing is removed then.

    --json prints {"removed", "documents", "passages"}: documents removed, and what is left.
    """
    with without_model(store) as rag:
        removed = rag.remove(sources)
        left = {"removed": removed, "documents": len(rag.store.documents()), "passages": rag.store.count()}
    words = f"removed {counted(removed, 'document')}; {counted(left['documents'], 'document')} left"
    print_result(left, words, as_json=as_json)


def info(
    *,
    store: StoreOption = DEFAULT_STORE,
    documents: Annotated[bool, typer.Option("--documents", help="List the documents with their passages.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a store holds, and which model filled it.

    --json prints one object:

    \b
    {"store", "model", "fingerprint", "rate", "memory_tokens", "width",
     "codec", "documents", "unfinished", "passages", "memory_bytes", "bytes_on_disk"}

    and with --documents also "listing": [{"document", "passages"}]. unfinished counts documents that a killed run left
    half-way; the same clara index finishes them.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    with open_store(store) as opened:
        facts = _store_facts(opened, store)
        entries = sorted(opened.documents().values(), key=lambda entry: entry.uri)
    if as_json:
        listing = [{"document": entry.uri, "passages": entry.passages} for entry in entries]
        print_json({**facts, "listing": listing} if documents else facts)
        return
    _show_facts(facts)
    if documents:
        write()
        for entry in entries:
            write(f"{shown(entry.uri)}  ({counted(entry.passages, 'passage')})")


def _store_facts(store: LanceStore, path: Path) -> dict[str, Any]:
    model, passages = store.model, store.count()
    return {
        "store": str(path),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "rate": model.rate,
        "memory_tokens": model.memory_tokens,
        "width": model.width,
        "codec": store.codec,
        "documents": len(store.documents()),
        "unfinished": len(store.unfinished()),
        "passages": passages,
        "memory_bytes": passages * store.memory_bytes,
        "bytes_on_disk": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
    }


def _show_facts(facts: dict[str, Any]) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("store", facts["store"])
    table.add_row("model", f"{facts['model']} (fingerprint {facts['fingerprint']})")
    table.add_row(
        "rate", f"{facts['rate']}x: {facts['memory_tokens']} memory tokens of width {facts['width']} a passage"
    )
    table.add_row("documents", f"{facts['documents']:,}")
    if facts["unfinished"]:
        table.add_row("unfinished", f"{facts['unfinished']:,} (clara index with the same paths finishes them)")
    table.add_row("passages", f"{facts['passages']:,}")
    table.add_row("memories", f"{megabytes(facts['memory_bytes'])} as {facts['codec']}")
    table.add_row("on disk", megabytes(facts["bytes_on_disk"]))
    console().print(table)


def merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE", parser=given_path, help="Stores of one model.")],
    *,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Bring the documents of several stores into the one that --store names, without compressing anything again.

    Loads no weights. Each machine indexes its part of the files into a store of its own (clara index --shard 1/4 …);
    merged they are the store that one machine would have made. Killed, the same command finishes. Of a document that
    several stores hold in different versions, the last store's stays.

    --json prints {"store", "documents", "passages", "unchanged"}: brought over by this run, and documents that were
    there already.
    """
    from clara.index.rewrite import merge as bring  # noqa: PLC0415

    with bar("merging") as show:
        done = bring(stores, store, progress=lambda passages, total: show(passages, total, "passages"))
    counts = {"documents": done.documents, "passages": done.passages, "unchanged": done.unchanged}
    words = (
        f"{store}: {counted(done.documents, 'document')} with {counted(done.passages, 'passage')} brought over, "
        f"{done.unchanged:,} there already"
    )
    print_result({"store": str(store), **counts}, words, as_json=as_json)


def upgrade(
    store: Annotated[Path, typer.Argument(metavar="STORE", parser=given_path, help="The store's folder.")],
    *,
    codec: Annotated[
        Literal["fp16", "int8", "int4", "residual"] | None,
        typer.Option(help="Keep memories in another way (docs/scale.md); as they are by default."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a store to today's format, or to another codec, without compressing anything again.

    Loads no weights. Needs room for the store once more until it is done; killed, the store is as it was or as it
    should be. A codec that keeps less cannot be taken back: indexing again can.

    --json prints {"store", "passages", "format", "codec"}: passages rewritten, 0 if there was nothing to do.
    """
    from clara.index.folder import read_description  # noqa: PLC0415
    from clara.index.rewrite import upgrade as bring  # noqa: PLC0415

    described = read_description(store.absolute(), older=True)
    space = _query_space(described.model.name) if described is not None and described.version == 1 else None
    with bar("upgrading") as show:
        done = bring(
            store, codec=codec, query_space=space, progress=lambda passages, total: show(passages, total, "passages")
        )
    before, after = done.before, done.after
    words = f"{store}: format {after.version}, {after.codec}; nothing to do"
    if done.passages or before != after:
        words = (
            f"{store}: {counted(done.passages, 'passage')}, format {before.version} {before.codec} to "
            f"format {after.version} {after.codec}"
        )
    facts = {"store": str(store), "passages": done.passages, "format": after.version, "codec": after.codec}
    print_result(facts, words, as_json=as_json)


def _query_space(model: str) -> QuerySpace | None:
    """Query space by the model's checkpoint; None if that is not at hand."""
    from clara.model.checkpoint import is_checkpoint, read_manifest  # noqa: PLC0415
    from clara.model.clara_model import find_checkpoint  # noqa: PLC0415

    try:
        folder = find_checkpoint(model, download=False)
        if not is_checkpoint(folder):
            return None
        return "mean" if read_manifest(folder).query_projection else "flat"
    except ClaraError:
        return None
