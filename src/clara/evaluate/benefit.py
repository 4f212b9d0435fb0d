"""Kept benefit: how much of what full text adds to an answer memories keep.

    kept = (F1 memory - F1 none) / (F1 text - F1 none)

over the questions that all three systems answered. Knows results, not how they came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from clara.evaluate.grid import Benefit
from clara.evaluate.groups import Group, groups
from clara.evaluate.system_result import SystemResult
from clara.metrics import Interval


@dataclass(frozen=True, slots=True)
class KeptBenefit:
    """One system between the two ends of a pair, on one data set.

    Attributes:
        pair: name of the pair.
        group: what was asked.
        system: label of the system.
        n: questions that all three answered.
        none: F1 of the system that reads nothing, on these questions.
        text: F1 of the system that reads the full text, on these questions.
        memory: F1 of the system itself, on these questions.
        kept: the ratio; None where full text does not help on these questions.
        ci95: bootstrap interval of the ratio, questions drawn together for the three; None with ``kept``, and where
            full text does not help in more than one draw of forty.
    """

    pair: str
    group: Group
    system: str
    n: int
    none: float
    text: float
    memory: float
    kept: float | None
    ci95: Interval | None

    def to_json(self) -> dict[str, object]:
        """One flat object."""
        values = asdict(self)
        group = values.pop("group")
        return {**group, **values, "ci95": [self.ci95.low, self.ci95.high] if self.ci95 is not None else None}


def kept_benefits(
    results: Sequence[SystemResult], pairs: Sequence[Benefit], *, resamples: int = 2000, seed: int = 0
) -> list[KeptBenefit]:
    """The kept benefit of every other system between the systems of each pair.

    Args:
        results: of any data sets and settings; only those of the same questions are compared.
        pairs: names of the two ends; a pair whose systems were not run on a data set gives nothing there.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: two results are of one system on the same questions.
    """
    found: list[KeptBenefit] = []
    for pair in pairs:
        for group in groups(results).values():
            none = next((result for result in group if result.subject.system == pair.none), None)
            text = next((result for result in group if result.subject.system == pair.text), None)
            if none is None or text is None:
                continue
            for result in group:
                if result is not none and result is not text and result.n:
                    kept = _kept(pair.name, none, text, result, resamples=resamples, seed=seed)
                    found.extend([kept] if kept is not None else [])
    return found


def f1_by_question(result: SystemResult) -> dict[str, float]:
    """F1 of each scored question; a repeated identifier is told apart by its place."""
    scored: dict[str, float] = {}
    for place, row in enumerate(result.rows):
        if row.scores is not None:
            scored[f"{place}:{row.id}"] = row.scores.f1
    return scored


def _kept(
    pair: str, none: SystemResult, text: SystemResult, memory: SystemResult, *, resamples: int, seed: int
) -> KeptBenefit | None:
    scores = [f1_by_question(result) for result in (none, text, memory)]
    shared = [question for question in scores[2] if question in scores[0] and question in scores[1]]
    if not shared:
        return None
    values = np.array([[by_question[question] for question in shared] for by_question in scores])
    means = values.mean(axis=1)
    gain = means[1] - means[0]
    kept = float((means[2] - means[0]) / gain) if gain > 0 else None
    return KeptBenefit(
        pair=pair,
        group=Group.of(memory.subject),
        system=memory.subject.label,
        n=len(shared),
        none=float(means[0]),
        text=float(means[1]),
        memory=float(means[2]),
        kept=kept,
        ci95=_interval(values, resamples=resamples, seed=seed) if kept is not None else None,
    )


def _interval(values: npt.NDArray[np.float64], *, resamples: int, seed: int) -> Interval | None:
    """Percentile bootstrap of the ratio; ``values`` is [none, text, memory] x questions."""
    draws = np.random.default_rng(seed).integers(values.shape[1], size=(resamples, values.shape[1]))
    none, text, memory = values[:, draws].mean(axis=2)
    gain = text - none
    if np.mean(gain <= 0) > 1 / 40:
        return None
    helped = gain > 0
    low, high = np.quantile((memory[helped] - none[helped]) / gain[helped], [0.025, 0.975])
    return Interval(float(low), float(high))
