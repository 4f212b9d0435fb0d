"""What the analyses ask of a model beyond ``AnswerModel``: a look inside. ``clara.model.inspection`` gives one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from clara.model.inspection import (
    AnswerAttention,
    EncoderRole,
    Lens,
    SelectionGradient,
    Space,
    States,
)
from clara.records import FloatArray, Memory, QueryMemory


class Insight(Protocol):
    """Hidden states, logit lens, attention and gradients of one model; see ``Inspector`` for each."""

    def states(self, texts: Sequence[str], *, role: EncoderRole, rate: int) -> list[States]:
        """Last hidden states and memories of texts."""

    def lens(self, text: str, *, role: EncoderRole, rate: int, space: Space = "hidden", top: int = 5) -> Lens:
        """Top tokens of each memory vector of a text."""

    def log_likelihood(self, question: str, contexts: Sequence[Sequence[Memory]], answer: str) -> FloatArray:
        """Log-likelihood of an answer under each context."""

    def selection_gradient(
        self,
        question: str,
        query: QueryMemory,
        candidates: Sequence[Memory],
        answer: str,
        *,
        k: int,
        temperature: float,
    ) -> SelectionGradient:
        """The straight-through selector on one question."""

    def attention(self, question: str, memories: Sequence[Memory], answer_ids: Sequence[int]) -> AnswerAttention:
        """Attention while an answer is written."""
