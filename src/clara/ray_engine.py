"""Indexing on a Ray cluster: its workers read, split and compress; the calling process alone writes the store.

``indexing.Indexer`` stays what it is, with its ledger and its commits: a run that was killed is finished by the same
call. Only where documents and memories come from changes. Files go through Ray Data in two steps, reading and
compressing (two pools of actors), and come back in the order of the listing.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara import prompts
from clara.errors import ConfigError, optional
from clara.indexing import Source
from clara.ingest import FileListing, IngestReport, Reader, ReadLimits, iter_passages
from clara.records import Document, Memory

if TYPE_CHECKING:
    import pyarrow as pa

    from clara.model import ClaraModel

_FILES_A_TASK = 16
_TEXTS_A_PART = 64
_BLOCK_BYTES = 256 << 10  # of texts: about 300 passages, so that a few files are work for several actors
_WORKERS_A_READER = 8  # compressing a passage takes some thirty times as long as reading and splitting it
_KEPT_MEMORIES = 1024  # that came and were not asked for yet; one that went is made again by the calling process


@dataclass(frozen=True, slots=True)
class _Part:
    """A worker's report of a file, in order: its documents, each with up to so many texts to compress at once.

    Attributes:
        file: its place in the listing.
        document: on its first part; None on the others.
        texts: what is compressed of it, as the model reads it.
        memories: of the texts, once they have been compressed.
        report: on the last part of the files that one call reads, what their reading came to.
    """

    file: int
    document: Document | None = None
    texts: tuple[str, ...] = ()
    memories: tuple[Memory, ...] = ()
    report: IngestReport | None = None


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Distribution of a run.

    Attributes:
        model: what workers load: name, folder or hub id, which every node must be able to read.
        load: keywords of ``ClaraModel.load`` beside it.
        workers: actors that compress; None for one a GPU where ``load`` says so, else one a core and ``threads``.
        threads: of each.
        address: of the cluster, as ``ray.init`` takes it; None for ``RAY_ADDRESS``, or else this machine.
    """

    model: str
    load: Mapping[str, Any]
    workers: int | None = None
    threads: int = 1
    address: str | None = None

    def open(
        self,
        listing: FileListing,
        model: ClaraModel,
        *,
        rate: int,
        known: Collection[str],
        max_bytes: int,
        limits: ReadLimits,
    ) -> Source:
        """Start the workers on the files of a listing, by paths that every node can read.

        The model is the calling process's, of the same weights; documents of a content hash in ``known`` are not
        compressed. ``max_bytes`` and ``limits`` as in ``Clara.add``.

        Raises:
            ConfigError: the cluster cannot be reached.
            MissingExtraError: Ray is not installed.
        """
        ray = _ray(self.address)
        gpus = 1 if str(self.load.get("device", "cpu")).startswith("cuda") else 0
        room = ray.cluster_resources().get("GPU" if gpus else "CPU", 1)
        workers = self.workers or max(1, int(room if gpus else room // self.threads))
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.target_max_block_size = _BLOCK_BYTES
        files = [{"file": number, "path": str(path)} for number, path in enumerate(listing.files)]
        how = {"known": frozenset(known), "max_bytes": max_bytes, "limits": limits}
        splitting = {"model": self.model, "load": dict(self.load)}
        reading = -(-workers // _WORKERS_A_READER)
        # Half of the processors that it uses: where a node is lost, the others have room for its actors. (Ray Data
        # restarts actors and repeats what they were doing without being told.)
        half = {"num_cpus": 0 if gpus else self.threads / 2, "num_gpus": gpus}
        parts = (
            ray.data.from_items(files, override_num_blocks=max(1, -(-len(files) // _FILES_A_TASK)))
            .map_batches(
                _Read,
                fn_constructor_kwargs=splitting | how,
                batch_size=_FILES_A_TASK,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=reading),
                num_cpus=0,
            )
            .map_batches(
                _Compress,
                fn_constructor_kwargs=splitting | {"rate": rate, "threads": self.threads},
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=workers),
                **half,
            )
        )
        return _RaySource(listing, parts, model, rate, max_bytes, limits)


def _ray(address: str | None) -> Any:  # noqa: ANN401 - Ray has no types to speak of
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    # Ray warns that arguments of actors lie in its object store: they live as long as this process, which owns them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray = optional("ray", package="ray", extra="scale")
    optional("ray.data", package="ray", extra="scale")
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # how a run goes is said by whoever called
    if not ray.is_initialized():
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"the Ray cluster cannot be reached ({error}); give --ray-address HOST:PORT") from None
    return ray


class _Read:
    """Reads and splits files, in an actor that needs the tokenizer of its model."""

    def __init__(
        self, *, model: str, load: Mapping[str, Any], known: frozenset[str], max_bytes: int, limits: ReadLimits
    ) -> None:
        from clara.model import ClaraModel  # noqa: PLC0415

        self._model = ClaraModel.load(model, **{**load, "device": "cpu", "merge": False})
        self._known, self._max_bytes, self._limits = known, max_bytes, limits

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        numbers, paths = batch["file"].to_pylist(), [Path(path) for path in batch["path"].to_pylist()]
        if not paths:
            return
        listing = FileListing(files=tuple(paths), unsupported=(), skipped=(), hidden=0)
        with Reader(listing, max_bytes=self._max_bytes, limits=self._limits) as reader:
            for number, path in zip(numbers, paths, strict=True):
                for document in reader.read(path):
                    yield from map(_packed, self._parts(number, document))
            yield _packed(_Part(numbers[-1], report=reader.report()))

    def _parts(self, number: int, document: Document) -> Iterator[_Part]:
        if document.content_hash in self._known:
            yield _Part(number, document)
            return
        first, texts = True, list[str]()
        for passage in iter_passages(document, self._model.token_spans, max_tokens=self._model.window_tokens):
            texts.append(prompts.passage_text(passage.title, passage.text))
            if len(texts) == _TEXTS_A_PART:
                yield _Part(number, document if first else None, tuple(texts))
                first, texts = False, []
        if texts or first:
            yield _Part(number, document if first else None, tuple(texts))


class _Compress:
    """Compresses texts, in an actor with a model of its own."""

    def __init__(self, *, model: str, load: Mapping[str, Any], rate: int, threads: int) -> None:
        import torch  # noqa: PLC0415

        from clara.model import ClaraModel  # noqa: PLC0415

        torch.set_num_threads(threads)
        self._model, self._rate = ClaraModel.load(model, **load), rate

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for payload in batch["part"].to_pylist():
            part: _Part = pickle.loads(payload)  # noqa: S301 - our own workers wrote it
            made = self._model.compress(list(part.texts), rate=self._rate) if part.texts else []
            yield _packed(replace(part, memories=tuple(made)))


def _packed(part: _Part) -> pa.Table:
    """A table of one row; as an Arrow binary, for numpy cuts zeros off the end of bytes."""
    import pyarrow as pa  # noqa: PLC0415

    return pa.table({"part": pa.array([pickle.dumps(part)], pa.large_binary())})


class _RaySource:
    """Documents and memories from the workers, in the order of the listing (``indexing.Source``)."""

    def __init__(
        self,
        listing: FileListing,
        parts: Any,  # noqa: ANN401 - a Ray dataset
        model: ClaraModel,
        rate: int,
        max_bytes: int,
        limits: ReadLimits,
    ) -> None:
        self._place = {path: number for number, path in enumerate(listing.files)}
        self._parts = self._coming(parts)
        self._next: _Part | None = None
        self._model, self._rate = model, rate
        self._memories: dict[str, Memory] = {}  # of texts that came, oldest first
        nothing = replace(listing, files=())
        self._report = Reader(nothing, max_bytes=max_bytes, limits=limits).report()

    def __enter__(self) -> _RaySource:
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    @staticmethod
    def _coming(parts: Any) -> Generator[_Part]:  # noqa: ANN401 - a Ray dataset
        for batch in parts.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2):
            for payload in batch["part"].to_pylist():
                yield pickle.loads(payload)  # noqa: S301 - our own workers wrote it

    def _pull(self) -> _Part | None:
        """Take in the next part; None at the end."""
        part = next(self._parts, None)
        if part is None:
            return None
        self._memories.update(zip(part.texts, part.memories, strict=True))
        while len(self._memories) > _KEPT_MEMORIES:
            del self._memories[next(iter(self._memories))]
        if part.report is not None:
            self._report = _sum(self._report, part.report)
        return part

    def read(self, path: Path) -> Iterator[Document]:
        """The documents of the listing's next file; where a part belongs to an earlier one, nobody needed it."""
        number = self._place[path]
        while True:
            part, self._next = self._next or self._pull(), None
            if part is None or part.file > number:
                self._next = part
                return
            if part.document is not None:
                yield part.document

    def compress(self, texts: Sequence[str]) -> list[Memory]:
        """Memories of texts whose passages were read."""
        # The parts of a document follow its first, so whatever is wanted of it comes before the next document.
        while self._next is None and not self._memories.keys() >= set(texts):
            part = self._pull()
            if part is None:
                break
            if part.document is not None or part.report is not None:
                self._next = part
        # Asked for only now: what came earlier may have gone while the rest was waited for.
        missing = [text for text in dict.fromkeys(texts) if text not in self._memories]
        made = self._model.compress(missing, rate=self._rate) if missing else []
        known = self._memories | dict(zip(missing, made, strict=True))
        return [known[text] for text in texts]

    def report(self) -> IngestReport:
        """Counts of what was read so far."""
        return self._report


def _sum(one: IngestReport, other: IngestReport) -> IngestReport:
    """Two reports together."""
    return IngestReport(
        files=one.files + other.files,
        documents=one.documents + other.documents,
        characters=one.characters + other.characters,
        hidden=one.hidden + other.hidden,
        skipped=(*one.skipped, *other.skipped),
        left_out=Counter(one.left_out) + Counter(other.left_out),
    )
