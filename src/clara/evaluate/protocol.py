"""What evaluation asks of a model and of a splitter, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from clara.ingest import TokenSpans
from clara.records import Document, Generation, GenerationRequest, Memory, Passage, QueryMemory


class AnswerModel(Protocol):
    """A model that compresses texts and questions, and answers from memories, texts or nothing."""

    @property
    def fingerprint(self) -> str:
        """What its memories are marked with."""

    @property
    def name(self) -> str:
        """What results call it."""

    @property
    def window_tokens(self) -> int:
        """The longest text that ``compress`` takes, in tokens."""

    def token_spans(self, text: str) -> Sequence[tuple[int, int]]:
        """Character spans of the text's tokens."""

    def compress(self, texts: Sequence[str], *, rate: int | None = None) -> list[Memory]:
        """One memory a text, in order; ``rate`` None is the model's default."""

    def encode_queries(self, questions: Sequence[str], *, rate: int | None = None) -> list[QueryMemory]:
        """One query memory a question, in the space of ``compress`` at the same rate."""

    def generate_many(self, requests: Sequence[GenerationRequest], *, max_new_tokens: int = 32) -> list[Generation]:
        """One greedy answer a request, in order."""


class TextReader(Protocol):
    """Answers from full text or from nothing, with weights of its own; ``model.reader.Reader`` is one."""

    @property
    def fingerprint(self) -> str:
        """Of its weights."""

    @property
    def context(self) -> Literal["text", "none"]:
        """What it was trained to answer from."""

    def generate_many(self, requests: Sequence[GenerationRequest], *, max_new_tokens: int = 32) -> list[Generation]:
        """One greedy answer a request, in order."""


class Splitter(Protocol):
    """Cuts a document into passages that a model's window holds; ``clara.ingest.split`` is one."""

    def __call__(self, document: Document, token_spans: TokenSpans, /, *, max_tokens: int) -> Sequence[Passage]:
        """The passages in order; ``passage_text`` of each has at most ``max_tokens`` tokens."""
