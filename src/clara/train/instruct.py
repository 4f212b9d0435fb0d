"""Stage ``instruct``: compression instruction tuning (clara.md section 4).

Trains the same weights as ``scp`` on questions with several passages, each compressed on its own, all memories in one
prompt.
"""

from __future__ import annotations

import numpy as np

from clara import prompts
from clara.data import DataRecord, MultiHop, PassageQA
from clara.train.config import TrainConfig
from clara.train.examples import Example, Target


def example(
    record: DataRecord, config: TrainConfig, rng: np.random.Generator, *, others: list[str] | None = None
) -> Example | None:
    """An example of one record: its gold passages and some others, in random order.

    Args:
        record: a multi-hop record, or a passage record whose pairs all read the same passages.
        config: ``documents`` and ``distractors`` bound the number of passages.
        rng: of the draw.
        others: texts of other passages, to draw distractors of a passage record from.

    Returns:
        None for a record without gold passages or questions.
    """
    if isinstance(record, MultiHop):
        gold = [_text(record, i) for i in record.gold]
        rest = [_text(record, i) for i in range(len(record.docs)) if i not in record.gold]
        targets = [Target(prompts.QUESTION + record.question.strip(), record.answers[0])]
    else:
        gold, rest = [prompts.passage_text(record.title, record.text)], others or []
        targets = _targets(record, config, rng)
    if not gold or not targets:
        return None
    gold = gold[: config.documents]
    room = min(config.documents - len(gold), len(rest), int(rng.integers(0, config.distractors + 1)))
    drawn = [rest[i] for i in rng.choice(len(rest), size=room, replace=False)] if room > 0 else []
    texts = [*gold, *drawn]
    return Example(tuple(texts[i] for i in rng.permutation(len(texts))), tuple(targets))


def _text(record: MultiHop, index: int) -> str:
    return prompts.passage_text(record.docs[index].title, record.docs[index].text)


def _targets(record: PassageQA, config: TrainConfig, rng: np.random.Generator) -> list[Target]:
    pairs = record.all_pairs
    chosen = sorted(rng.permutation(len(pairs))[: config.pairs])
    return [Target(prompts.QUESTION + pairs[i].question.strip(), pairs[i].answers[0]) for i in chosen]
