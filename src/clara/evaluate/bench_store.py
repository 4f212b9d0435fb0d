"""Costs of a store: a large one's time, bytes, memory and recall; and each codec's bytes, answers, recall and time.

The memories of a large store are drawn from a Gaussian fitted to real ones, with the real ones among them, and their
texts from words as common and as rare as the real texts': compressing a million passages would take days, and a store
does not see the difference. Everything that is measured of it runs in a process of its own, so that its memory is the
store's and not the model's.

For the codecs memories are compressed once; each codec then stores and reads them again, and the same questions are
ranked and answered, extractively from the memories of their gold documents, and compared one by one with fp16's.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from clara.data import DocText, MultiHop
from clara.errors import InputError
from clara.evaluate.cache import Cache, unwrap
from clara.evaluate.contexts import DocumentMemories, rank_documents
from clara.index import DocumentEntry, IndexRow, LanceStore, StoreModel
from clara.index.codecs import CODECS, DEFAULT_CODEC, make_codec
from clara.index.ranking import Ranked, best, best_together, late_depth
from clara.metrics import bootstrap_interval, recall_at_k, score_answer
from clara.pipeline import filled_by
from clara.prompts import passage_text
from clara.records import FloatArray, GenerationRequest, Memory, Passage, QueryMemory
from clara.similarity import token_matches

if TYPE_CHECKING:
    from clara.model import ClaraModel


_PASSAGES_A_DOCUMENT = 10
_WORD = re.compile(r"\w+")
# Rows of one call of ``add``: 64 MiB of float32 memories at 16x, as ``indexing`` commits them.
_COMMIT_BYTES = 64 << 20
_WARM_UP = 3
_K = 10
# How the memory tokens of a passage differ from their mean is one of so many draws: drawing it for each of a million
# passages would take a quarter of an hour, and the search column depends on the mean and the length alone.
_APART = 4096
# Share of each covariance that is its diagonal: fewer passages than dimensions leave directions without any spread.
_SHRINKAGE = 0.1


@dataclass(frozen=True, slots=True)
class _Milliseconds:
    """CPU milliseconds of a search, all threads together."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class _StoreSpeed:
    """Measurements of a store; searches are for ten passages.

    Attributes:
        bytes_per_passage: of the whole folder after the run.
        add_seconds: in calls that add passages and record documents.
        index_seconds: in the call that ends the run: compaction and indexes.
        rss_bytes: peak of the process that did all of it.
        recall_at_10: share of the ten passages that an exact search finds by memory, mean of the questions.
    """

    passages: int
    bytes_per_passage: float
    add_seconds: float
    index_seconds: float
    rss_bytes: int
    latent_ms: _Milliseconds
    text_ms: _Milliseconds
    hybrid_ms: _Milliseconds
    recall_at_10: float


@dataclass(frozen=True, slots=True, eq=False)
class StoreBench:
    """Input of a measurement.

    Attributes:
        values: the memories of ``texts``, real passages, float32 [T, N, H].
        asked: real questions as memories, float32 [Q, N, H].
        centre: float32 [H], of the questions; None without late interaction.
    """

    model: StoreModel
    codec: str
    passages: int
    texts: Sequence[str]
    values: FloatArray
    questions: Sequence[str]
    asked: FloatArray
    centre: FloatArray | None

    @classmethod
    def of(
        cls, model: ClaraModel, texts: Sequence[str], questions: Sequence[str], *, passages: int, rate: int, codec: str
    ) -> StoreBench:
        """Compress real passages and encode real questions; the other arguments as the attributes."""
        memories = model.compress(texts, rate=rate)
        asked = model.encode_queries(questions, rate=rate)
        values = np.stack([memory.values for memory in memories])
        queries = np.stack([query.values for query in asked])
        return cls(filled_by(model, rate), codec, passages, texts, values, questions, queries, asked[0].centre)

    def queries(self) -> list[QueryMemory]:
        """The questions as a store takes them."""
        model = self.model
        return [QueryMemory(one.copy(), model.fingerprint, model.rate, 1, self.centre) for one in self.asked]


def bench_store(plan: StoreBench, folder: Path) -> _StoreSpeed:
    """Fill and search a store in a process of its own, in a folder that is empty."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (plan, folder))


def _measure(plan: StoreBench, folder: Path) -> _StoreSpeed:
    """As :func:`bench_store`, in this process."""
    add_seconds, index_seconds, exact = _fill(plan, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    queries = plan.queries()
    with LanceStore.open(folder, plan.model) as store:
        latent = _timed(lambda i: store.search_latent(queries[i], _K), len(queries))
        text = _timed(lambda i: store.search_text(plan.questions[i], _K), len(queries))
        hybrid = _timed(lambda i: store.search_hybrid(queries[i], plan.questions[i], _K), len(queries))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        recall = _recall(store, queries, exact)
    return _StoreSpeed(
        passages=plan.passages,
        bytes_per_passage=size / plan.passages,
        add_seconds=add_seconds,
        index_seconds=index_seconds,
        rss_bytes=peak,
        latent_ms=latent,
        text_ms=text,
        hybrid_ms=hybrid,
        recall_at_10=recall,
    )


class _Exact:
    """The passages nearest to each question by flattened cosine in float32, kept while passages go by."""

    def __init__(self, queries: Sequence[QueryMemory], *, late: bool) -> None:
        self._vectors = np.stack([query.search_vector() for query in queries])
        self._depth = late_depth(_K) if late else _K
        self.near: list[list[Ranked]] = [[] for _ in queries]

    def see(self, rows: Sequence[IndexRow]) -> None:
        flat = np.stack([row.memory.values.reshape(-1) for row in rows])
        scores = (self._vectors @ flat.T) / np.maximum(np.linalg.norm(flat, axis=1), np.float32(1e-30))
        for i, line in enumerate(scores):
            least = self.near[i][-1].score if len(self.near[i]) == self._depth else -np.inf
            new = [Ranked(rows[j].passage.id, float(line[j])) for j in np.flatnonzero(line >= least).tolist()]
            self.near[i] = best([*self.near[i], *new], self._depth)


def _fill(plan: StoreBench, folder: Path) -> tuple[float, float, _Exact]:
    """Fill a store; seconds of adding and of ending the run, and what an exact search would find first."""
    size = max(_PASSAGES_A_DOCUMENT, _COMMIT_BYTES // (4 * plan.model.values))
    size -= size % _PASSAGES_A_DOCUMENT
    exact = _Exact(plan.queries(), late=plan.centre is not None)
    adding = 0.0
    with LanceStore.create(folder, plan.model, codec=plan.codec) as store:
        for rows in _rows(plan, size):
            exact.see(rows)
            before = time.perf_counter()
            store.add(rows)
            counts = Counter(row.passage.document for row in rows)
            store.finish_documents([DocumentEntry(uri, _content_hash(uri), count) for uri, count in counts.items()])
            adding += time.perf_counter() - before
        before = time.perf_counter()
        store.optimize()
    return adding, time.perf_counter() - before, exact


def _rows(plan: StoreBench, size: int) -> Iterator[list[IndexRow]]:
    """The store's rows, ``size`` at a time: real passages spread evenly among drawn ones."""
    rng = np.random.default_rng(0)
    draw = _fitted(plan.values, rng)
    write = _texts_like(plan.texts, rng)
    every = max(1, plan.passages // len(plan.texts))
    for start in range(0, plan.passages, size):
        numbers = range(start, min(start + size, plan.passages))
        values, texts = draw(len(numbers)), write(len(numbers))
        rows: list[IndexRow] = []
        for i, number in enumerate(numbers):
            real, rest = divmod(number, every)
            if rest == 0 and real < len(plan.texts):
                rows.append(_row(plan.model, number, plan.texts[real], plan.values[real].copy()))
            else:
                rows.append(_row(plan.model, number, texts[i], values[i].copy()))
        yield rows


def _row(model: StoreModel, number: int, text: str, values: FloatArray) -> IndexRow:
    document, place = divmod(number, _PASSAGES_A_DOCUMENT)
    uri = f"/corpus/{document:07}.txt"
    start = 2000 * place
    passage_id = hashlib.sha256(f"{uri}{place}".encode()).hexdigest()[:16]
    passage = Passage(passage_id, uri, f"Document {document}", text, start, start + len(text))
    # Neither is the same for all, as in real documents: of a column of equal values LanceDB reads all to take one.
    memory = Memory(values, model.fingerprint, model.rate, min(256, len(text) // 4))
    return IndexRow(passage, memory, _content_hash(uri), {"heading": f"Part {place}"})


def _content_hash(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()


def _fitted(values: FloatArray, rng: np.random.Generator) -> Callable[[int], FloatArray]:
    """Draws memories as real ones [T, N, H] are: passages differ, and the memory tokens of each from its mean."""
    tokens, width = values.shape[1:]
    means = values.mean(axis=1)
    between = _root(means)
    within = _root((values - means[:, None]).reshape(-1, width))
    centre = means.mean(axis=0)

    apart = rng.standard_normal((_APART * tokens, width), dtype=np.float32) @ within
    apart = apart.reshape(_APART, tokens, width)
    apart -= apart.mean(axis=1, keepdims=True)
    apart *= np.float32(np.sqrt(tokens / max(tokens - 1, 1)))

    def draw(count: int) -> FloatArray:
        whole = centre + rng.standard_normal((count, width), dtype=np.float32) @ between
        drawn: FloatArray = apart[rng.integers(0, _APART, count)] + whole[:, None]
        return drawn

    return draw


def _texts_like(texts: Sequence[str], rng: np.random.Generator) -> Callable[[int], list[str]]:
    """Draws texts of the real ones' mean length, a word in that share of them in which it would be of more real ones.

    A word's count of texts less a discount is its share; what that leaves goes to words that no text holds, which
    become rarer from the rarest known one on as Zipf's law has it (Pitman and Yor, 1997; the discount by words seen
    once and twice, as Kneser and Ney's). Drawn by their shares of 64 texts, a question's words came in two to six times
    as many passages as of 48,000 real ones.
    """
    parts = [_WORD.findall(text.lower()) for text in texts]
    spoken = Counter(Counter(word for words in parts for word in words).values())
    discount = spoken[1] / (spoken[1] + 2 * spoken[2] + 1)
    counts = Counter(word for words in parts for word in set(words))
    vocabulary = list(counts)
    share = np.cumsum([count - discount for count in counts.values()]) / counts.total()
    length, different = round(sum(map(len, parts)) / len(parts)), round(counts.total() / len(parts))
    order = np.concatenate([np.arange(different), rng.integers(0, different, length - different)])

    def draw(count: int) -> list[str]:
        places = np.searchsorted(share, rng.random((count, different)))
        unseen = places == len(vocabulary)
        ranks = len(vocabulary) * (1 - rng.random(np.count_nonzero(unseen))) ** (-discount / (1 - discount))
        places[unseen] = np.minimum(ranks, 1 << 53)
        return [
            " ".join(vocabulary[place] if place < len(vocabulary) else f"w{place}" for place in line)
            for line in places[:, order].tolist()
        ]

    return draw


def _root(samples: FloatArray) -> FloatArray:
    """A square root of the covariance of samples [S, H]: standard normal numbers times it have that covariance."""
    covariance = np.cov(samples.astype(np.float64), rowvar=False)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    roots, directions = np.linalg.eigh(covariance)
    root: FloatArray = (np.sqrt(np.maximum(roots, 0))[:, None] * directions.T).astype(np.float32)
    return root


def _timed(search: Callable[[int], object], count: int) -> _Milliseconds:
    """CPU time of each of some searches, after a few to warm up."""
    for i in range(_WARM_UP):
        search(i % count)
    times = []
    for i in range(count):
        before = time.process_time()
        search(i)
        times.append(1000 * (time.process_time() - before))
    return _Milliseconds(float(np.percentile(times, 50)), float(np.percentile(times, 95)))


def _recall(store: LanceStore, queries: Sequence[QueryMemory], exact: _Exact) -> float:
    """Mean share of the passages that an exact search finds which the store's search finds too."""
    shares = []
    for query, near in zip(queries, exact.near, strict=True):
        if query.centre is None:
            wanted = {item.id for item in near}
        else:
            rows = store.get([item.id for item in near])
            matches = {row.passage.id: token_matches(query, row.memory.values) for row in rows}
            wanted = {item.id for item in best_together(matches, _K)}
        found = {hit.passage.id for hit in store.search_latent(query, _K)}
        shares.append(len(found & wanted) / len(wanted))
    return float(np.mean(shares))


_RECALL_AT = 5
_ANSWERED_AT_ONCE = 8
_MAX_NEW_TOKENS = 32


@dataclass(frozen=True, slots=True)
class _CodecCost:
    """Costs of one codec at one rate.

    The F1 difference is from fp16's, question by question; low and high end its 95 % bootstrap interval.
    """

    codec: str
    bytes_per_passage: int
    recall_at_5: float
    f1: float
    f1_difference: float
    f1_low: float
    f1_high: float
    encode_per_second: float
    decode_per_second: float


@dataclass(frozen=True, slots=True)
class _Stored:
    """Memories as a codec gives them back, documents as they were."""

    documents: list[tuple[Memory, ...]]
    memory_bytes: int
    encode_seconds: float
    decode_seconds: float


def bench_codecs(
    model: ClaraModel, records: Sequence[MultiHop], *, rate: int, progress: Callable[[str], None] = lambda _: None
) -> list[_CodecCost]:
    """Measure every codec at one rate; the codebook of ``residual`` is learnt from the questions' documents.

    Raises:
        InputError: no question has a gold document.
    """
    asked = [record for record in records if record.gold]
    if not asked:
        raise InputError("no question of the data names a gold document; give records with docs and gold")
    progress(f"compressing the documents of {len(asked)} questions at {rate}x")
    docs = list(dict.fromkeys(doc for record in asked for doc in record.docs))
    memories = unwrap(DocumentMemories(model, rate, Cache()).of(docs))
    queries = model.encode_queries([record.question for record in asked], rate=rate)
    scores: dict[str, list[float]] = {}
    costs: list[_CodecCost] = []
    for codec in CODECS:
        progress(f"answering from {codec}")
        stored = _stored(codec, memories)
        kept = dict(zip(docs, stored.documents, strict=True))
        orders = [
            rank_documents(query, [kept[doc] for doc in record.docs])
            for query, record in zip(queries, asked, strict=True)
        ]
        recall = [recall_at_k(order, record.gold, _RECALL_AT) for order, record in zip(orders, asked, strict=True)]
        requests = [_request(record, kept) for record in asked]
        scores[codec] = _f1(model, requests, asked)
        apart = np.array(scores[codec]) - np.array(scores[DEFAULT_CODEC])
        interval = bootstrap_interval(apart)
        count = sum(map(len, memories))
        costs.append(
            _CodecCost(
                codec=codec,
                bytes_per_passage=stored.memory_bytes,
                recall_at_5=float(np.mean(recall)),
                f1=float(np.mean(scores[codec])),
                f1_difference=float(apart.mean()),
                f1_low=interval.low,
                f1_high=interval.high,
                encode_per_second=count / stored.encode_seconds,
                decode_per_second=count / stored.decode_seconds,
            )
        )
    return costs


def _stored(name: str, documents: Sequence[tuple[Memory, ...]]) -> _Stored:
    """Documents' memories after a codec has stored and read them."""
    windows = [memory for document in documents for memory in document]
    values: FloatArray = np.stack([memory.values for memory in windows])
    with TemporaryDirectory(prefix="clara-bench-") as folder:
        codec = make_codec(name, (values.shape[1], values.shape[2]), Path(folder))
        codec.prepare(values)
        begun = time.perf_counter()
        stored = codec.encode(values)
        encoded = time.perf_counter()
        decoded = codec.decode(stored)
        done = time.perf_counter()
    read = iter(replace(memory, values=one.copy()) for memory, one in zip(windows, decoded, strict=True))
    again = [tuple(next(read) for _ in document) for document in documents]
    return _Stored(again, codec.memory_bytes, encoded - begun, done - encoded)


def _request(record: MultiHop, kept: Mapping[DocText, tuple[Memory, ...]]) -> GenerationRequest:
    """A question with the memories of its gold documents, answered by a span of their texts."""
    gold = [record.docs[place] for place in record.gold]
    return GenerationRequest(
        record.question,
        memories=tuple(memory for doc in gold for memory in kept[doc]),
        quote_from=tuple(passage_text(doc.title, doc.text) for doc in gold),
    )


def _f1(model: ClaraModel, requests: Sequence[GenerationRequest], records: Sequence[MultiHop]) -> list[float]:
    scores: list[float] = []
    for start in range(0, len(requests), _ANSWERED_AT_ONCE):
        batch = slice(start, start + _ANSWERED_AT_ONCE)
        answers = model.generate_many(requests[batch], max_new_tokens=_MAX_NEW_TOKENS)
        scores += [
            score_answer(answer.text, record.answers).f1 for answer, record in zip(answers, records[batch], strict=True)
        ]
    return scores
