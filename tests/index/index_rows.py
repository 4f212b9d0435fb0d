"""Synthetic passages and memories: a pure function of names and numbers, so that two runs make the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from clara.index import IndexRow, StoreModel
from clara.records import FloatArray, Memory, Passage, QueryMemory

MODEL = StoreModel(fingerprint="f" * 64, name="tiny", rate=4, memory_tokens=4, width=16)

# Words that English stemming leaves alone and that are no stop words, so that the plain oracle sees what LanceDB sees.
WORDS = (
    "amber",
    "basalt",
    "copper",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "harbor",
    "indigo",
    "jasper",
    "karst",
    "loam",
)


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def values(*parts: object, model: StoreModel = MODEL, scale: float = 1.0) -> FloatArray:
    """Memory values [N, H] that already are fp16 numbers."""
    rng = np.random.default_rng(int(digest(*parts)[:16], 16))
    drawn = rng.standard_normal((model.memory_tokens, model.width)) * scale
    return drawn.astype(np.float16).astype(np.float32)


def question(numbers: FloatArray, *, centre: FloatArray | None = None, model: StoreModel = MODEL) -> QueryMemory:
    """A question of the given memory values, compared by late interaction where it has a centre."""
    return QueryMemory(np.array(numbers, dtype=np.float32), model.fingerprint, model.rate, 3, centre)


def words(*parts: object, count: int = 12) -> str:
    rng = np.random.default_rng(int(digest("words", *parts)[:16], 16))
    # Falling frequencies, so that idf differs from word to word.
    weights = 1.0 / np.arange(1, len(WORDS) + 1)
    return " ".join(rng.choice(WORDS, size=count, p=weights / weights.sum()))


def row(
    uri: str,
    version: str,
    index: int,
    *,
    memory: FloatArray | None = None,
    text: str | None = None,
    title: str = "",
    model: StoreModel = MODEL,
) -> IndexRow:
    body = words(uri, version, index) if text is None else text
    start = 1000 * index
    passage = Passage(
        id=digest(uri, version, start)[:16], document=uri, title=title, text=body, start=start, end=start + len(body)
    )
    numbers = values(uri, version, index, model=model) if memory is None else memory
    return IndexRow(
        passage=passage,
        memory=Memory(numbers, model.fingerprint, model.rate, token_count=len(body.split())),
        content_hash=digest(uri, version),
        metadata={"version": version},
    )


def document(uri: str, version: str, passages: int) -> list[IndexRow]:
    return [row(uri, version, index) for index in range(passages)]


def plain(rows: Sequence[IndexRow]) -> list[tuple[object, ...]]:
    """Rows as values that compare with ``==``, memories bit by bit."""
    return [
        (row.passage, row.memory.values.tobytes(), _facts(row.memory), row.content_hash, dict(row.metadata))
        for row in rows
    ]


def _facts(memory: Memory) -> tuple[object, ...]:
    return memory.values.shape, memory.fingerprint, memory.rate, memory.token_count
