"""Where the generator looks while it answers: the passage that holds the answer, the others, or neither.

Each prompt holds the gold passages and some others, in random order, as memories; the answer is the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from pydantic import Field

from clara.analysis.harness import (
    AnalysisReport,
    Asker,
    AskSettings,
    InspectableModel,
    OnProgress,
    distractors,
    measure_questions,
)
from clara.data import DataRecord, MultiHop
from clara.evaluate.cache import unwrap
from clara.metrics import Interval, score_answer
from clara.model.inspection import AnswerAttention

_EMPTY = "answers without a token"


class AttentionSettings(AskSettings):
    """Settings of the analysis.

    Attributes:
        distractors: passages that are not gold, beside the gold ones.
    """

    distractors: int = Field(default=4, ge=0)


@dataclass(frozen=True, slots=True)
class _QuestionAttention:
    """One question.

    Attributes:
        id: the record's.
        prediction: the model's answer.
        f1: its token F1.
        gold: mean attention to a gold passage's memory, by layer.
        other: mean attention to another passage's memory, by layer; empty without others.
        question: attention to the question, by layer.
        rest: to the words around the memories, the first position left out, by layer.
        first: to the first position (the attention sink), by layer.
        gold_share: of the attention that memories get over all layers, what gold passages get.
        chance: gold passages' share of the memory vectors.
        passages: attention to each passage's memory, in prompt order, by answer token: the mean over layers.
        is_gold: which passages are gold, in prompt order.
    """

    id: str
    prediction: str
    f1: float
    gold: tuple[float, ...]
    other: tuple[float, ...]
    question: tuple[float, ...]
    rest: tuple[float, ...]
    first: tuple[float, ...]
    gold_share: float
    chance: float
    passages: tuple[tuple[float, ...], ...]
    is_gold: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class AttentionReport(AnalysisReport):
    """Means over the questions.

    Attributes:
        gold_share: mean share of gold passages in the attention that memories get.
        chance: mean share if attention did not tell passages apart.
        ci95: bootstrap interval of ``gold_share``.
        rows: the questions.
    """

    gold_share: float
    chance: float
    ci95: Interval
    rows: tuple[_QuestionAttention, ...]

    def by_layer(self, name: str) -> list[float]:
        """Mean over questions of a part (``gold``, ``other``, …), by layer; empty where no question has it."""
        rows = [values for row in self.rows if (values := getattr(row, name))]
        return [fmean(layer) for layer in zip(*rows, strict=True)]


def answer_attention(
    model: InspectableModel,
    records: Sequence[DataRecord],
    settings: AttentionSettings,
    on_progress: OnProgress | None = None,
) -> AttentionReport:
    """Answer questions, and look where the generator looked.

    Raises:
        RecordError: no question can be asked.
        ConfigError: the rate is not served.
    """
    asker, rng, insight = Asker.of(model, settings), np.random.default_rng(settings.seed), model.inspector()

    def measure(_: int, question: MultiHop) -> _QuestionAttention | str:
        docs = [question.docs[i] for i in question.gold] + distractors(question, settings.distractors, rng)
        order = rng.permutation(len(docs))
        shown, gold = [docs[i] for i in order], [bool(i < len(question.gold)) for i in order]
        answer = unwrap(asker.answers(question.question, [shown]))[0]
        if not answer.token_ids:
            return _EMPTY
        windows = asker.windows(shown)
        owner = [place for place, found in enumerate(windows) for _ in found]
        memories = [memory for found in windows for memory in found]
        seen = insight.attention(question.question, memories, answer.token_ids)
        return row_of(question, answer.text, seen, owner, gold)

    measured = measure_questions(records, settings.limit, measure, on_progress)
    return AttentionReport(
        **measured.facts(model),
        gold_share=measured.mean(lambda row: row.gold_share),
        chance=measured.mean(lambda row: row.chance),
        ci95=measured.interval(lambda row: row.gold_share, settings.seed),
        rows=measured.rows,
    )


def row_of(
    question: MultiHop, prediction: str, seen: AnswerAttention, owner: Sequence[int], gold: Sequence[bool]
) -> _QuestionAttention:
    """One question's parts.

    Args:
        question: for its id and answers.
        prediction: the answer.
        seen: attention to each memory.
        owner: for each memory the passage it is a window of.
        gold: for each passage whether it is gold.
    """
    windows = seen.memories.sum(axis=3)  # [layers, T, memories]
    passages = np.stack([windows[:, :, np.asarray(owner) == p].sum(axis=2) for p in range(len(gold))], axis=2)
    layers, right = passages.mean(axis=1), np.asarray(gold)  # [layers, passages]
    held = np.asarray([gold[place] for place in owner])
    return _QuestionAttention(
        id=question.id,
        prediction=prediction,
        f1=score_answer(prediction, question.answers).f1,
        gold=_listed(layers[:, right].mean(axis=1)),
        other=_listed(layers[:, ~right].mean(axis=1)) if not right.all() else (),
        question=_listed(seen.question.mean(axis=1)),
        rest=_listed((seen.rest - seen.first).mean(axis=1)),
        first=_listed(seen.first.mean(axis=1)),
        gold_share=float(layers[:, right].sum() / layers.sum()),
        chance=float(held.mean()),
        passages=tuple(_listed(token) for token in passages.mean(axis=0)),
        is_gold=tuple(gold),
    )


def _listed(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
