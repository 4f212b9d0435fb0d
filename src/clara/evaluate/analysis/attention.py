"""Where the generator looks while it answers: the passage that holds the answer, the others, or neither.

Each prompt holds the gold passages and some others, in random order, as memories; the answer is the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np
from pydantic import Field

from clara.data import DataRecord, DocText, MultiHop
from clara.evaluate.analysis.asking import Asker, AskSettings, Progress, choose, counted, distractors
from clara.evaluate.analysis.insight import Insight
from clara.evaluate.isolation import Failure
from clara.evaluate.protocol import AnswerModel
from clara.metrics import Interval, bootstrap_interval, score_answer
from clara.model.inspection import AnswerAttention
from clara.records import Memory

EMPTY = "answers without a token"


class AttentionSettings(AskSettings):
    """Settings of the analysis.

    Attributes:
        distractors: passages that are not gold, beside the gold ones.
    """

    distractors: int = Field(default=4, ge=0)


@dataclass(frozen=True, slots=True)
class QuestionAttention:
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
class AttentionReport:
    """Means over the questions.

    Attributes:
        model: its name.
        fingerprint: of the model.
        n: questions measured.
        errors: questions that gave an error, or an answer without a token, by reason.
        unusable: records that could not be asked, by reason.
        gold_share: mean share of gold passages in the attention that memories get.
        chance: mean share if attention did not tell passages apart.
        ci95: bootstrap interval of ``gold_share``.
        rows: the questions.
    """

    model: str
    fingerprint: str
    n: int
    errors: dict[str, int]
    unusable: dict[str, int]
    gold_share: float
    chance: float
    ci95: Interval
    rows: tuple[QuestionAttention, ...]

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)

    def by_layer(self, name: str) -> list[float]:
        """Mean over questions of a part (``gold``, ``other``, …), by layer; empty where no question has it."""
        rows = [values for row in self.rows if (values := getattr(row, name))]
        return [fmean(layer) for layer in zip(*rows, strict=True)]


def answer_attention(
    model: AnswerModel,
    insight: Insight,
    records: Sequence[DataRecord],
    settings: AttentionSettings,
    *,
    progress: Progress | None = None,
) -> AttentionReport:
    """Answer questions, and look where the generator looked.

    Raises:
        RecordError: no question can be asked.
        ConfigError: the rate is not served.
    """
    chosen = choose(records, settings.limit)
    asker, rng = Asker.of(model, settings), np.random.default_rng(settings.seed)
    rows, errors = list[QuestionAttention](), dict[str, int]()
    for question in counted(chosen.questions, progress):
        docs = [question.docs[i] for i in question.gold] + distractors(question, settings.distractors, rng)
        order = rng.permutation(len(docs))
        shown = [docs[i] for i in order]
        gold = [bool(i < len(question.gold)) for i in order]
        made = _question(asker, insight, question, shown, gold)
        if isinstance(made, QuestionAttention):
            rows.append(made)
        else:
            errors[made] = errors.get(made, 0) + 1
    shares = [row.gold_share for row in rows]
    return AttentionReport(
        model=model.name,
        fingerprint=model.fingerprint,
        n=len(rows),
        errors=errors,
        unusable=dict(chosen.unusable),
        gold_share=fmean(shares) if shares else 0.0,
        chance=fmean(row.chance for row in rows) if rows else 0.0,
        ci95=bootstrap_interval(shares or [0.0], seed=settings.seed),
        rows=tuple(rows),
    )


def _question(
    asker: Asker, insight: Insight, question: MultiHop, docs: Sequence[DocText], gold: Sequence[bool]
) -> QuestionAttention | str:
    """One question's row, or why there is none."""
    answer = asker.answers(question.question, [docs])[0]
    if isinstance(answer, Failure):
        return answer.reason
    if not answer.token_ids:
        return EMPTY
    memories, owner = list[Memory](), list[int]()
    for place, windows in enumerate(asker.windows(docs)):
        if isinstance(windows, Failure):
            return windows.reason
        memories.extend(windows)
        owner.extend([place] * len(windows))
    seen = insight.attention(question.question, memories, answer.token_ids)
    return row_of(question, answer.text, seen, owner, gold)


def row_of(
    question: MultiHop, prediction: str, seen: AnswerAttention, owner: Sequence[int], gold: Sequence[bool]
) -> QuestionAttention:
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
    return QuestionAttention(
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
