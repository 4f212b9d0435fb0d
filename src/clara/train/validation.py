"""Validation on held-out records: the loss, greedy answers, and recall of the selected passages.

Answers are decoded as in use, memories and all, but by the training network itself, with unmerged adapters. Which step
was best is ``loop``'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch

from clara.data import DataRecord, MultiHop
from clara.metrics import AnswerScores, mean_of_known, recall_at_k, score_answer
from clara.model.backbone import Tokenizer
from clara.model.decoder import Decoder, splice
from clara.model.generator import DecodeLoop, DecodingRow
from clara.model.network import Network
from clara.train.batch import Batch, Collate
from clara.train.data import Surroundings, TrainingData, held_out_examples
from clara.train.examples import CandidateExample, Example
from clara.train.objective import evaluating, passage_memories
from clara.train.stages.base import Stage
from clara.train.stages.selecting import CandidateBatch, query_memories

_ANSWER_TOKENS = 32
"""Longest validation answer; the answers of the training sets are shorter, and a rambling one has lost by then."""

_ANSWERS_AT_ONCE = 16

_MEASURES = ("em", "f1", "recall_at_1", "recall_at_5")

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class _RateScores:
    """Scores at one compression rate; EM and F1 are None where nothing is answered, recall where nothing is selected.

    The loss is in nats a label token; EM and F1 are of greedy answers, recall is of a question's gold passages.
    """

    loss: float
    em: float | None = None
    f1: float | None = None
    recall_at_1: float | None = None
    recall_at_5: float | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """Scores on the held-out records, means over the rates and of each rate; and the default rate's loss."""

    default_loss: float
    loss: float
    em: float | None
    f1: float | None
    recall_at_1: float | None
    recall_at_5: float | None
    rates: Mapping[int, _RateScores]

    @property
    def quality(self) -> float | None:
        """F1, else Recall@5; None where only the loss was measured."""
        return self.recall_at_5 if self.f1 is None else self.f1


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Batches to validate on by rate, the same at each interval.

    ``questions`` are to be answered: one an example, whose reply is not shown, with the gold answers of each.
    """

    losses: Mapping[int, Sequence[Batch]]
    questions: Mapping[int, Sequence[tuple[Batch, Sequence[tuple[str, ...]]]]]
    tokenizer: Tokenizer
    stage: Stage


@dataclass(frozen=True, slots=True)
class _HeldOutQuestion:
    """A held-out question: an example with that question alone, and its gold answers."""

    example: Example | CandidateExample
    answers: tuple[str, ...]


def held_out(data: TrainingData, stage: Stage, collator: Collate, tokenizer: Tokenizer) -> HeldOut | None:
    """Make the batches to validate on, at every rate; None if no record is held out."""
    if not data.held_out:
        return None
    examples, size = held_out_examples(data, stage), stage.config.batch_size // stage.config.accumulation
    asked = sorted(asked_questions(data, stage), key=lambda one: one.example.length)
    losses = {rate: [collator(part, rate=rate) for part in _parts(examples, size)] for rate in stage.rates}
    questions = {
        rate: [
            (collator([one.example for one in part], rate=rate), [one.answers for one in part])
            for part in _parts(asked, _ANSWERS_AT_ONCE)
        ]
        for rate in stage.rates
    }
    return HeldOut(losses, questions, tokenizer, stage)


def asked_questions(data: TrainingData, stage: Stage) -> list[_HeldOutQuestion]:
    """The first question of each held-out record, then the second ones, …, up to ``held_out_answers``."""
    asking, around = stage.asking(), Surroundings(data)
    rng = np.random.default_rng([stage.config.seed, 6])
    singles = [_singles(record) for record in data.held_out]
    asked: list[_HeldOutQuestion] = []
    for number in range(max(map(len, singles), default=0)):
        for record in (row[number] for row in singles if number < len(row)):
            if len(asked) == stage.config.held_out_answers:
                return asked
            example = asking.example(record, rng, around)
            if example is not None:
                answers = record.answers if isinstance(record, MultiHop) else record.pairs[0].answers
                asked.append(_HeldOutQuestion(example, answers))
    return asked


def _singles(record: DataRecord) -> list[DataRecord]:
    """A record for each of its questions."""
    if isinstance(record, MultiHop):
        return [record]
    return [replace(record, pairs=(pair,), complex_pairs=(), paraphrase=None) for pair in record.all_pairs]


def _parts(rows: Sequence[_Row], size: int) -> list[Sequence[_Row]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def measure(network: Decoder, loss: Callable[[Batch], float], held_out: HeldOut) -> Validation:
    """Validate the network as it is, in evaluation mode; the mode is put back.

    Draws nothing random, so a run that validates goes on as one that does not. ``loss`` gives nats a label token.
    """
    device = network.adapters.bare().device
    rates = {}
    with evaluating(network):
        for rate, batches in held_out.losses.items():
            shares = [float(batch.weights.sum()) for batch in batches]
            total = sum(loss(batch.to(device)) * share for batch, share in zip(batches, shares, strict=True))
            rates[rate] = _scored(network, held_out, rate, total / sum(shares))
    means = {name: mean_of_known(getattr(scores, name) for scores in rates.values()) for name in _MEASURES}
    return Validation(
        default_loss=rates[held_out.stage.config.compression.default_rate].loss,
        loss=fmean(scores.loss for scores in rates.values()),
        rates=rates,
        **means,
    )


def _scored(network: Decoder, held_out: HeldOut, rate: int, loss: float) -> _RateScores:
    model = network.adapters.bare()
    device, bf16 = model.device, model.dtype == torch.bfloat16
    answers: list[AnswerScores] = []
    ranked: list[tuple[list[int], set[int]]] = []
    for questions, gold in held_out.questions[rate]:
        batch = questions.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            if isinstance(network, Network) and isinstance(batch, CandidateBatch):
                ranked.extend(_rankings(network, batch))
            if batch.labels.numel():
                replies = _greedy(network, batch, held_out)
                answers.extend(score_answer(*pair) for pair in zip(replies, gold, strict=True))
    return _RateScores(
        loss=loss,
        em=mean_of_known(score.em for score in answers),
        f1=mean_of_known(score.f1 for score in answers),
        recall_at_1=mean_of_known(recall_at_k(ranking, gold, 1) for ranking, gold in ranked),
        recall_at_5=mean_of_known(recall_at_k(ranking, gold, 5) for ranking, gold in ranked),
    )


def _rankings(network: Network, batch: CandidateBatch) -> Iterator[tuple[list[int], set[int]]]:
    """Rows of each question's own candidates, best first, and of the gold ones; without any it is left out."""
    queries, memories = query_memories(network, batch), passage_memories(network, batch)
    scores = network.similarity(queries, memories, rate=batch.rate)
    for row, candidates, positive in zip(scores, batch.candidates.tolist(), batch.positives, strict=True):
        places = [place for place in candidates if place >= 0]
        gold = {place for place in places if bool(positive[place])}
        if gold:
            yield sorted(places, key=lambda place: -float(row[place])), gold


def _greedy(network: Decoder, batch: Batch, held_out: HeldOut) -> list[str]:
    """Greedy answers to a batch with one question an example, from its prompts alone."""
    length = batch.decoder_ids.shape[1]
    rows, places = batch.label_index // length, batch.label_index % length
    # The reply's first token is the first label; the position before it is the last of the prompt.
    sizes = [int(places[rows == row].min()) + 1 for row in range(len(batch.decoder_ids))]
    embeds = network.embed(batch.decoder_ids)
    memories = held_out.stage.prompt_memories(network, batch)
    if memories is not None:
        embeds = splice(embeds, batch.slots, memories)
    tokenizer = held_out.tokenizer
    stops = frozenset({int(tokenizer.eos_token_id)})
    answers = [DecodingRow((embeds[row, :size],), _ANSWER_TOKENS, stops) for row, size in enumerate(sizes)]
    with network.adapters.use("generator"):
        for _ in DecodeLoop(lambda: nullcontext(network.adapters.bare())).steps(answers):
            pass
    return [tokenizer.decode(answer.written, skip_special_tokens=True).strip() for answer in answers]
