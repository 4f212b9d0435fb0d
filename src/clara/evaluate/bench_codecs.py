"""What each codec costs in bytes, answers, recall and time, on questions with gold answers.

Memories are compressed once; each codec then stores and reads them again, and the same questions are ranked and
answered. Answers are extractive, from the memories of the gold documents, and compared question by question with those
from memories kept as fp16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np

from clara.data import DocText, MultiHop
from clara.errors import InputError
from clara.evaluate.cache import Cache, unwrap
from clara.evaluate.contexts import DocumentMemories, rank_documents
from clara.index.codecs import CODECS, DEFAULT_CODEC, make_codec
from clara.metrics import bootstrap_interval, recall_at_k, score_answer
from clara.model import ClaraModel
from clara.prompts import passage_text
from clara.records import FloatArray, GenerationRequest, Memory

_Progress: TypeAlias = Callable[[str], None]

_RECALL_AT = 5
_ANSWERED_AT_ONCE = 8
_MAX_NEW_TOKENS = 32


@dataclass(frozen=True, slots=True)
class _CodecCost:
    """What one codec costs at one rate.

    Attributes:
        codec: its name.
        bytes_per_passage: of a stored memory.
        recall_at_5: share of the gold documents among the five ranked first, mean of the questions.
        f1: mean F1 of extractive answers from the gold documents' memories.
        f1_difference: mean difference of F1 from fp16's, question by question.
        f1_low: lower end of that difference's 95 % bootstrap interval.
        f1_high: its upper end.
        encode_per_second: memories encoded a second.
        decode_per_second: memories decoded a second.
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
    model: ClaraModel, records: Sequence[MultiHop], *, rate: int, progress: _Progress | None = None
) -> list[_CodecCost]:
    """Measure every codec at one rate.

    Args:
        model: compresses, ranks and answers.
        records: questions with gold documents; the codebook of ``residual`` is learnt from their documents' memories.
        rate: compression rate.
        progress: told what is being done.

    Raises:
        InputError: no question has a gold document.
    """
    asked = [record for record in records if record.gold]
    if not asked:
        raise InputError("no question of the data names a gold document; give records with docs and gold")
    tell = progress or (lambda _: None)
    tell(f"compressing the documents of {len(asked)} questions at {rate}x")
    docs = list(dict.fromkeys(doc for record in asked for doc in record.docs))
    memories = unwrap(DocumentMemories(model, rate, Cache()).of(docs))
    queries = model.encode_queries([record.question for record in asked], rate=rate)
    scores: dict[str, list[float]] = {}
    costs: list[_CodecCost] = []
    for codec in CODECS:
        tell(f"answering from {codec}")
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
    """F1 of each answer."""
    scores: list[float] = []
    for start in range(0, len(requests), _ANSWERED_AT_ONCE):
        batch = slice(start, start + _ANSWERED_AT_ONCE)
        answers = model.generate_many(requests[batch], max_new_tokens=_MAX_NEW_TOKENS)
        scores += [
            score_answer(answer.text, record.answers).f1 for answer, record in zip(answers, records[batch], strict=True)
        ]
    return scores
