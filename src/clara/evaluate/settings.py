"""Settings of one evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clara.config import Settings
from clara.records import ContextKind, Wording


class EvalConfig(Settings):
    """What the model is given, and how answers are made (clara.md section 8).

    Attributes:
        given: which of a record's documents: ``gold``: the gold ones, in record order; ``candidates``: the ``k`` that
            the model itself ranks first among all, best first.
        context: the form they are given in; ``none`` is closed book.
        rate: compression rate of memories; None is the model's default.
        limit: questions, counted from the first record of the file; None is all.
        k: documents in the prompt with ``given="candidates"``; Recall@5 looks at 5 whatever ``k`` is.
        wording: whether answers are in any words, or held to those of the documents given.
        reader: which weights read the prompt: the trained ``generator`` or the ``base`` backbone alone.
        batch_size: questions generated together.
        max_new_tokens: longest answer, in tokens.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    given: Literal["gold", "candidates"] = "gold"
    context: ContextKind = "memory"
    rate: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    k: int = Field(default=5, ge=1)
    wording: Wording = "free"
    reader: Literal["generator", "base"] = "generator"
    batch_size: int = Field(default=8, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    resamples: int = Field(default=2000, ge=1000)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> EvalConfig:
        if self.wording == "quoted" and self.context == "none":
            raise ValueError("with context none there is nothing to quote; use wording free")
        return self
