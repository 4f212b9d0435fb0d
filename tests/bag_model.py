"""A small model that really compresses, ranks and answers, with bags of words in place of weights.

A memory is the text's words hashed into N x H counts. Its generator knows which text gave which memory, reads the
sentence that shares most words with the question, and answers with the words that the question does not hold.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from clara.errors import ConfigError, ModelError
from clara.records import Generation, GenerationRequest, Memory, QueryMemory, TokenCounts

STOP_WORDS = frozenset(["a", "an", "the", "is", "was", "of", "in", "on", "at", "it", "and", "by", "what", "who", "how"])
HIDDEN = 64


def words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.lower()) if word not in STOP_WORDS]


class BagModel:
    """An ``AnswerModel`` whose work can be checked by hand; ``calls`` keeps what it was asked."""

    name = "bag-of-words"

    def __init__(
        self, *, window_tokens: int = 64, fingerprint: str = "bag-1", rates: tuple[int, ...] = (8, 16)
    ) -> None:
        self.window_tokens = window_tokens
        self.fingerprint = fingerprint
        self.rates = rates
        self.default_rate = rates[0]
        self.broken = frozenset[str]()
        self.compressed: list[str] = []
        self.requests: list[GenerationRequest] = []
        self.max_new_tokens: set[int] = set()
        self._texts: dict[bytes, str] = {}

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]

    def compress(self, texts: Sequence[str], *, rate: int | None = None) -> list[Memory]:
        for text in texts:
            self._check(text)
            if len(self.token_spans(text)) > self.window_tokens:
                raise ModelError(f"text of {len(self.token_spans(text))} tokens for a window of {self.window_tokens}")
        self.compressed.extend(texts)
        memories = [self._bag(text, rate) for text in texts]
        self._texts.update({memory.values.tobytes(): text for memory, text in zip(memories, texts, strict=True)})
        return memories

    def encode_queries(self, questions: Sequence[str], *, rate: int | None = None) -> list[QueryMemory]:
        bags = (self._bag(question, rate) for question in questions)
        return [QueryMemory(bag.values, bag.fingerprint, bag.rate, bag.token_count) for bag in bags]

    def generate_many(self, requests: Sequence[GenerationRequest], *, max_new_tokens: int = 32) -> list[Generation]:
        self.max_new_tokens.add(max_new_tokens)
        for request in requests:
            self._check(request.question)
        self.requests.extend(requests)
        return [self._answer(request) for request in requests]

    def _check(self, text: str) -> None:
        for part in self.broken:
            if part in text:
                raise RuntimeError(f"out of memory at {part}\nsecond line")

    def _bag(self, text: str, rate: int | None) -> Memory:
        rate = self.rates[0] if rate is None else rate
        if rate not in self.rates:
            raise ConfigError(f"this model serves {self.rates}, not {rate}")
        flat = np.zeros(self.window_tokens // rate * HIDDEN, dtype=np.float32)
        for word in words(text):
            flat[zlib.crc32(word.encode()) % flat.size] += 1
        values = flat.reshape(-1, HIDDEN)
        return Memory(values, self.fingerprint, rate, len(self.token_spans(text)))

    def _answer(self, request: GenerationRequest) -> Generation:
        texts = request.texts or tuple(self._texts[memory.values.tobytes()] for memory in request.memories)
        sentences = [part for text in texts for part in re.split(r"(?<=\.)\s|\n", text)]
        asked = set(words(request.question))
        # Of sentences that share as much with the question, the one that says more beyond it.
        best = max(sentences, key=lambda part: (len(asked & set(words(part))), len(words(part))), default="unknown")
        found = [word for word in words(best) if word not in asked or request.reader == "base"]
        counts = TokenCounts(prompt=0, memory=0, text_equivalent=0, generated=len(found))
        return Generation(" ".join(found), tuple(range(len(found))), counts, "stop")
