"""``clara bench``: options and output of ``clara.bench``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara.cli.options import (
    DEFAULT_MODEL,
    CacheOption,
    ContextOption,
    DeviceOption,
    JsonOption,
    KOption,
    ModelChoice,
    NamedModel,
    NamedModelOption,
    RateOption,
    ThreadsOption,
    takes_records,
)
from clara.cli.session import cache_folder, load_model, prepare_torch
from clara.cli.terminal import bar, megabytes, note, print_json, print_result, write
from clara.errors import InputError

if TYPE_CHECKING:
    from clara.data import DataRecord
    from clara.model import ClaraModel
    from clara.records import Document
    from clara.serve.load import LoadResult

_DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Records whose texts are used (.jsonl, .jsonl.gz); the sample documents by default."),
]
_QUESTION = "What is this about?"
# Questions of a store's measurement: the first words of real passages.
_QUESTIONS = 40
_QUESTION_WORDS = 12
_SERVED_QUESTIONS = (
    "Who discovered penicillin?",
    "Who was the commander of Apollo 11?",
    "How high is the Eiffel Tower?",
    "Who was the first official world chess champion?",
    "Where does coffee come from?",
    "How long is the Amazon river?",
)
_WARM_SECONDS = 3.0
_ADDRESS = re.compile(r"http://[^/\s]+")


def _compress(
    *,
    data: _DataOption = None,
    passages: Annotated[int, typer.Option(min=1, help="Passages to compress.")] = 2000,
    rate: RateOption = None,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
    """Tokens a second of bulk compression, and its share of the machine's own matrix-product peak.

    --json prints one object: {"passages", "tokens", "rate", "seconds", "tokens_per_second", "gflops", "peak_gflops",
    "share_of_peak", "threads"}.
    """
    from clara.bench import bench_compress  # noqa: PLC0415

    loaded = load_model(choice)
    texts = list(islice(cycle(_texts(data, loaded)), passages))
    done: list[int] = []
    with bar("compressing") as show:

        def progress(count: int) -> None:
            done.append(count)
            show(sum(done), len(texts), "passages")

        speed = bench_compress(loaded, texts, rate=rate, progress=progress)
    print_result(
        asdict(speed),
        f"{speed.passages} passages, {speed.tokens} tokens at {speed.rate}x on {speed.threads} threads: "
        f"{speed.tokens_per_second:,.0f} tokens/s in {speed.seconds:.1f} s",
        f"{speed.gflops:.0f} of {speed.peak_gflops:.0f} GFLOP/s, the bf16 matrix-product peak measured in this run: "
        f"{speed.share_of_peak:.0%}",
        as_json=as_json,
    )


def _ask(
    *,
    data: _DataOption = None,
    questions: Annotated[int, typer.Option(min=1, help="Questions to ask.")] = 10,
    k: Annotated[int, typer.Option(min=1, help="Passages a question.")] = 5,
    rate: Annotated[int, typer.Option(min=1, help="Compression rate of the memories.")] = 16,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
    """Time to the first token from memories against the full text of the same passages; then a token's time.

    The passages are whole windows, as an index of longer documents holds them. A token's time is that of our decode
    loop against transformers.generate. --json prints one object: {"questions", "passages", "rate", "memory_seconds",
    "text_seconds", "memory_prompt", "text_prompt", "ratio", "decoding": [{"rows", "prompt", "token_ms",
    "transformers_ms", "ratio"}]}; the last ratio is transformers_ms / token_ms.
    """
    from clara.bench import bench_ask  # noqa: PLC0415

    loaded = load_model(choice)
    texts = cycle(_windows(_texts(data, loaded), loaded))
    speed = bench_ask(loaded, [_QUESTION] * questions, [list(islice(texts, k)) for _ in range(questions)], rate=rate)
    print_result(
        asdict(speed),
        f"first token, median of {speed.questions} questions: {speed.memory_seconds:.2f} s from {speed.rate}x memories "
        f"of {speed.passages} passages ({speed.memory_prompt:.0f} positions), {speed.text_seconds:.2f} s from their "
        f"text ({speed.text_prompt:.0f} positions): {speed.ratio:.1f} times faster",
        *(
            f"a token of {one.rows} {'answer' if one.rows == 1 else 'answers'} at once: {one.token_ms:.0f} ms, "
            f"{one.transformers_ms:.0f} ms by transformers.generate: {one.ratio:.2f} times as fast"
            for one in speed.decoding
        ),
        as_json=as_json,
    )


def _candidates(
    *,
    data: _DataOption = None,
    questions: Annotated[int, typer.Option(min=1, help="Questions to ask.")] = 5,
    count: Annotated[int, typer.Option("--candidates", min=1, help="Passages a question chooses from.")] = 20,
    k: KOption = None,
    rate: RateOption = None,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
    """Time to the first token with indexed candidates against candidates compressed at question time.

    Both sides encode the question, rank the candidates by cosine and answer from the best k. The passages are whole
    windows, as an index of longer documents holds them.

    --json prints one object: {"questions", "candidates", "k", "rate", "docs_per_second", "indexed_seconds",
    "compressed_seconds", "ratio"}.
    """
    from clara.bench import bench_candidates  # noqa: PLC0415

    loaded = load_model(choice)
    texts = cycle(_windows(_texts(data, loaded), loaded))
    passages = [list(islice(texts, count)) for _ in range(questions)]
    speed = bench_candidates(loaded, [_QUESTION] * questions, passages, k=k or loaded.default_k, rate=rate)
    print_result(
        asdict(speed),
        f"compression: {speed.docs_per_second:.2f} passages/s; first token, median of {speed.questions} questions with "
        f"{speed.candidates} candidates, {speed.k} of them read at {speed.rate}x: {speed.indexed_seconds:.2f} s "
        f"indexed, {speed.compressed_seconds:.2f} s compressed when asked: {speed.ratio:.1f} times faster",
        as_json=as_json,
    )


def _train(
    *,
    data: _DataOption = None,
    stage: Annotated[list[str] | None, typer.Option(help="Stage to measure, again for each; all by default.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps a stage, after one to warm up.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 4,
    candidates: Annotated[int, typer.Option(min=2, help="Passages a question chooses among.")] = 20,
    train_compressor: Annotated[
        bool, typer.Option("--train-compressor", help="Measure end-to-end with gradients to the compressor too.")
    ] = False,
    rate: RateOption = None,
    as_json: JsonOption = False,
    model: NamedModelOption = DEFAULT_MODEL,
    device: DeviceOption = "cpu",
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Of the base and of matrix products.")] = ("bf16"),
    cache: CacheOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Training speed of each stage, its shares of time, and what cached memories gain in stage end-to-end.

    --json prints one object: {"stages": [{"stage", "seconds", "tokens_per_second", "samples_per_second", "data",
    "forward", "backward", "optimiser"}], "cache": {"candidates", "cached_seconds", "encoded_seconds",
    "ratio", "trained_seconds", "trained_ratio"}, "batch_size", "steps", "rate", "dtype", "threads"}; seconds are of a
    step, the phases are shares of the time, cache is null unless end-to-end was measured, and trained_seconds and
    trained_ratio are null without --train-compressor, which takes several GB.
    """
    from clara.bench import TrainBench, bench_train  # noqa: PLC0415
    from clara.model.checkpoint import read_manifest  # noqa: PLC0415
    from clara.model.clara_model import find_checkpoint  # noqa: PLC0415
    from clara.train.stages import STAGES  # noqa: PLC0415

    stages = stage or list(STAGES)
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise InputError(f"no training stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    placed = prepare_torch(device, threads)
    served = read_manifest(find_checkpoint(model)).compression
    plan = TrainBench(
        stages=stages,
        start=model,
        rate=rate or served.default_rate,
        steps=steps,
        batch_size=batch_size,
        candidates=candidates,
        train_compressor=train_compressor,
        dtype=dtype,
        device=placed,
    )
    speed = bench_train(_records(data), plan, cache=cache_folder(cache), progress=lambda name: note(f"{name} …"))
    if as_json:
        print_json(asdict(speed))
        return
    for one in speed.stages:
        write(
            f"{one.stage}: {one.tokens_per_second:,.0f} tokens/s, {one.samples_per_second:.2f} samples/s; data "
            f"{one.data:.0%}, forward {one.forward:.0%}, backward {one.backward:.0%}, optimiser {one.optimiser:.0%}"
        )
    gain = speed.cache
    if gain is not None:
        write(
            f"end-to-end with {gain.candidates} candidates a question: {gain.cached_seconds:.2f} s a step with cached "
            f"memories, {gain.encoded_seconds:.2f} s encoding the candidates: {gain.ratio:.1f} times faster"
        )
    if gain is not None and gain.trained_seconds is not None:
        write(f"with gradients to the compressor: {gain.trained_seconds:.2f} s, {gain.trained_ratio:.1f} times")


def _store(
    *,
    data: _DataOption = None,
    passages: Annotated[int, typer.Option(min=10, help="Passages of the store.")] = 10_000,
    rate: Annotated[int, typer.Option(min=1, help="Compression rate of the memories.")] = 16,
    codec: Annotated[
        Literal["fp16", "int8", "int4", "residual"], typer.Option(help="How the store keeps memories.")
    ] = "fp16",
    real: Annotated[
        int, typer.Option(min=16, help="Real passages that are compressed, and that the others are like.")
    ] = 256,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
    """What a store of many passages costs: filling, bytes, memory, searches, and recall against an exact search.

    Memories are drawn from a Gaussian fitted to real ones, with those among them. The store is made in the system's
    folder for temporary files and deleted. Times of searches are CPU time of all threads, of the process that holds the
    store and no model; rss_bytes is that process's peak.

    --json prints one object: {"passages", "bytes_per_passage", "add_seconds", "index_seconds", "rss_bytes",
    "latent_ms": {"p50", "p95"}, "text_ms", "hybrid_ms", "recall_at_10"}; text_ms and hybrid_ms are as latent_ms.
    """
    from clara.evaluate.bench_store import StoreBench, bench_store  # noqa: PLC0415

    loaded = load_model(choice)
    found = list(dict.fromkeys(_texts(data, loaded)))
    count = min(real, len(found))
    texts = [found[i * len(found) // count] for i in range(count)]  # neighbours share the words of their document
    questions = [" ".join(text.split()[:_QUESTION_WORDS]) for text in texts[:_QUESTIONS]]
    plan = StoreBench.of(loaded, texts, questions, passages=passages, rate=rate, codec=codec)
    with TemporaryDirectory(prefix="clara-bench-") as folder:
        speed = bench_store(plan, Path(folder) / "store")
    searches = (("latent", speed.latent_ms), ("text", speed.text_ms), ("hybrid", speed.hybrid_ms))
    print_result(
        asdict(speed),
        f"{speed.passages:,} passages at {rate}x as {codec}: {speed.bytes_per_passage:,.0f} bytes each; added in "
        f"{speed.add_seconds:.1f} s, indexed in {speed.index_seconds:.1f} s, peak memory {megabytes(speed.rss_bytes)}",
        *(
            f"{name}: {one.p50:.1f} ms of CPU a question, one in twenty {one.p95:.1f} ms or more"
            for name, one in searches
        ),
        f"recall at 10 against an exact search: {speed.recall_at_10:.3f}",
        as_json=as_json,
    )


def _serve(
    *,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, help="Clients at once; again for each; 1, 4, 16 by default.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="For each number of clients.")] = 60.0,
    url: Annotated[
        str | None,
        typer.Option(
            help="A server that runs, with --store of its stores and the key CLARA_API_KEY; by default one is started "
            "over the sample documents."
        ),
    ] = None,
    store: Annotated[str | None, typer.Option(help="A store of --url; its only one by default.")] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="May be given again; about the sample documents by default.")
    ] = None,
    context: ContextOption = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
    """Seconds of answers of `clara serve` with several clients at once, over HTTP, streamed.

    Exits with 1 where a question was not answered.

    --json prints one object: {"max_new_tokens", "context", "runs": [{"clients", "seconds", "answers",
    "answers_per_minute", "total": {"p50", "p95", "p99"}, "first_token", "errors", "faults": {"code": number}}]};
    total and first_token (as total) are seconds, or null without an answer.
    """
    from clara.serve.load import LoadQuestions, measure_load  # noqa: PLC0415

    numbers = clients or [1, 4, 16]
    questions = LoadQuestions(store, question or _SERVED_QUESTIONS, max_new_tokens, {"context": context})
    key = os.environ.get("CLARA_API_KEY")
    runs = []
    with nullcontext(url) if url is not None else _sample_server(choice, waiting=max(numbers)) as address:
        measure_load(address, questions, clients=1, seconds=_WARM_SECONDS, key=key)
        for number in numbers:
            note(f"{number} clients …")
            runs.append(measure_load(address, questions, clients=number, seconds=seconds, key=key))
    value = {"max_new_tokens": max_new_tokens, "context": context, "runs": [asdict(run) for run in runs]}
    print_result(value, *map(_load_line, runs), as_json=as_json)
    if any(run.errors for run in runs):
        raise typer.Exit(1)


def _load_line(run: LoadResult) -> str:
    faults = ", ".join(f"{number} {code}" for code, number in run.faults.items())
    line = f"{run.clients} clients: {run.answers_per_minute:.1f} answers a minute, {run.errors} errors"
    for name, took in (("first token", run.first_token), ("whole answer", run.total)):
        if took is not None:
            line += f"; {name} p50 {took.p50:.2f} s, p95 {took.p95:.2f} s, p99 {took.p99:.2f} s"
    return line + (f" ({faults})" if faults else "")


@contextmanager
def _sample_server(choice: ModelChoice, *, waiting: int) -> Iterator[str]:
    """Serve the sample documents from a temporary store by a process of its own on a free port; gives its address.

    Raises:
        InputError: it did not start.
    """
    from clara.samples import sample_folder  # noqa: PLC0415

    given = {
        "--model": choice.model,
        "--base": choice.base,
        "--device": choice.device,
        "--dtype": choice.dtype,
        "--cache": choice.cache,
        "--threads": choice.threads,
    }
    options = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    clara = [sys.executable, "-m", "clara.cli"]
    with TemporaryDirectory(prefix="clara-bench-") as folder:
        options += ["--store", str(Path(folder) / "store")]
        done = subprocess.run(  # noqa: S603 - ourselves
            [*clara, "index", str(sample_folder()), *options], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise InputError(done.stderr[-500:].strip().removeprefix("clara: "))
        serving = [*clara, "serve", "--port", "0", "--max-waiting", str(waiting), *options]
        with subprocess.Popen(  # noqa: S603 - ourselves
            serving, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as served:
            try:
                yield _address(served)
            finally:
                served.terminate()


def _address(served: subprocess.Popen[str]) -> str:
    assert served.stderr is not None  # noqa: S101 - a pipe
    said = []
    for line in served.stderr:
        said.append(line)
        if address := _ADDRESS.search(line):
            Thread(target=served.stderr.read, daemon=True).start()  # a full pipe would stop it
            return address[0]
    raise InputError(f"clara serve did not start: {' '.join(said)[-500:].strip()}")


def _codecs(
    *,
    data: Annotated[
        list[Path], typer.Option(help="Questions with docs, gold and answers (.jsonl, .jsonl.gz); repeat it.")
    ],
    limit: Annotated[int, typer.Option(min=1, help="Questions of each file.")] = 32,
    rate: RateOption = None,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
    """What each codec of a store costs in bytes, recall, answers and time.

    Answers are extractive, from the memories of the gold documents; their F1 is compared question by question with
    fp16's.

    --json prints one object: {"questions", "rate", "codecs": [{"codec", "bytes_per_passage", "recall_at_5", "f1",
    "f1_difference", "f1_low", "f1_high", "encode_per_second", "decode_per_second"}]}; f1_low and f1_high are the 95 %
    bootstrap interval of f1_difference.
    """
    from clara.data import MultiHop, read_records  # noqa: PLC0415
    from clara.evaluate.bench_store import bench_codecs  # noqa: PLC0415

    records: list[MultiHop] = []
    for path in data:
        questions = (record for record in read_records(path).records if isinstance(record, MultiHop) and record.gold)
        records += islice(questions, limit)
    loaded = load_model(choice)
    at = rate or loaded.default_rate
    costs = bench_codecs(loaded, records, rate=at, progress=lambda step: note(f"{step} …"))
    lines = [
        f"{cost.codec}: {cost.bytes_per_passage:,} bytes a passage at {at}x; Recall@5 {cost.recall_at_5:.3f}; "
        f"F1 {cost.f1:.3f}, {cost.f1_difference:+.3f} ({cost.f1_low:+.3f} to {cost.f1_high:+.3f}) from fp16; "
        f"{cost.encode_per_second:,.0f} encoded and {cost.decode_per_second:,.0f} decoded a second"
        for cost in costs
    ]
    value = {"questions": len(records), "rate": at, "codecs": [asdict(cost) for cost in costs]}
    print_result(value, *lines, as_json=as_json)


def _records(data: Path | None) -> list[DataRecord]:
    """Records of a file, or made from the sample documents."""
    from clara.bench import made_records  # noqa: PLC0415
    from clara.data import read_records  # noqa: PLC0415

    return (
        made_records([document.text for document in _samples()]) if data is None else list(read_records(data).records)
    )


def _samples() -> Iterable[Document]:
    from clara.ingest import Reader, find_files  # noqa: PLC0415
    from clara.samples import sample_folder  # noqa: PLC0415

    return Reader(find_files([sample_folder()])).documents()


def _texts(data: Path | None, model: ClaraModel) -> Iterator[str]:
    """Passages that fit the model's window, in the order of the file."""
    from clara import prompts  # noqa: PLC0415
    from clara.data import PassageQA, read_records  # noqa: PLC0415
    from clara.pipeline import split_text  # noqa: PLC0415

    if data is None:
        sources = [(doc.title, doc.text) for doc in _samples()]
    else:
        sources = []
        for record in read_records(data, plain_passages=True).records:
            docs = [record] if isinstance(record, PassageQA) else record.docs
            sources.extend((doc.title, doc.text) for doc in docs)
    passages = (passage for title, text in sources for passage in split_text(text, model, title=title))
    return (prompts.passage_text(passage.title, passage.text) for passage in passages)


def _windows(texts: Iterable[str], model: ClaraModel) -> list[str]:
    """The texts run together and cut into whole windows; the rest is left out."""
    joined = "\n".join(texts)
    spans = model.token_spans(joined)
    size = model.window_tokens - 1  # a cut can add a token at the seam
    ends = range(size, len(spans), size)
    cut = [joined[spans[end - size][0] : spans[end - 1][1]] for end in ends]
    return [text for text in cut if model.token_count(text) <= model.window_tokens]


bench = typer.Typer(help="Measure speed, as ratios with both sides in one run.", no_args_is_help=True)
for _command in (_compress, _ask, _candidates, _train, _store, _serve, _codecs):
    bench.command(_command.__name__.removeprefix("_"))(takes_records(_command))
