"""What is asked to calibrate a checkpoint: a sample of the records' questions, over the passages of their records."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clara.data import DataRecord, DocText, MultiHop, QAPair
from clara.data.neighbours import holds_answer
from clara.metrics import normalize_answer
from clara.records import Passage


@dataclass(frozen=True, slots=True)
class SampleQuestion:
    """A question with what is known of its passages.

    Attributes:
        text: the question.
        answers: gold answers.
        gold: ids of the passages that support them; may be empty.
        own: ids of all passages of its record.
    """

    text: str
    answers: tuple[str, ...]
    gold: frozenset[str]
    own: frozenset[str]


@dataclass(frozen=True, slots=True)
class Sample:
    """Questions, and the passages that they are searched in.

    Attributes:
        questions: at most one of a record.
        passages: of all their records, by id, each text once.
    """

    questions: Sequence[SampleQuestion]
    passages: Mapping[str, Passage]

    def answerless(self, question: SampleQuestion) -> frozenset[str]:
        """Passages of other records that do not hold an answer of a question: from these it cannot be answered."""
        answers = [normalize_answer(answer) for answer in question.answers]
        return frozenset(
            name
            for name, passage in self.passages.items()
            if name not in question.own and not holds_answer(passage.text, answers)
        )


def draw(records: Sequence[DataRecord], limit: int, seed: int) -> Sample:
    """Draw a sample of questions: at most ``limit``, and one of each record."""
    rng = random.Random(seed)
    questions: list[SampleQuestion] = []
    passages: dict[str, Passage] = {}
    places: dict[tuple[str, str], str] = {}
    for record in rng.sample(records, len(records)):
        if len(questions) == limit:
            break
        asked = _asked(record)
        if not asked:
            continue
        ids = [_take(doc, passages, places) for doc in _docs(record)]
        gold = frozenset(ids[i] for i in record.gold) if isinstance(record, MultiHop) else frozenset(ids)
        pair = rng.choice(asked)
        questions.append(SampleQuestion(pair.question.strip(), pair.answers, gold, frozenset(ids)))
    return Sample(questions, passages)


def _asked(record: DataRecord) -> Sequence[QAPair]:
    return (QAPair(record.question, record.answers),) if isinstance(record, MultiHop) else record.all_pairs


def _docs(record: DataRecord) -> Sequence[DocText]:
    return record.docs if isinstance(record, MultiHop) else (DocText(record.title, record.text),)


def _take(doc: DocText, passages: dict[str, Passage], places: dict[tuple[str, str], str]) -> str:
    """The id of a document among the passages; it is put there if it is not."""
    key = (doc.title, doc.text)
    if key not in places:
        name = places[key] = f"{len(passages):08}"
        passages[name] = Passage(name, name, doc.title, doc.text, 0, len(doc.text))
    return places[key]
