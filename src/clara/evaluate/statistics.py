"""Comparisons of systems on the same questions: paired permutation tests, Holm's correction, kept benefit.

The test is Fisher's randomisation test (swap the two scores of a question at random, compare the mean difference),
computed by scipy; ranx would bring thirteen packages (337 MB) and scores rankings only.

    kept benefit = (F1 system - F1 none) / (F1 text - F1 none)

over the questions that all three systems answered: the share of full text's gain that memories keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from clara.config import Settings
from clara.errors import optional
from clara.evaluate.questions import Group
from clara.evaluate.results import Result, grouped, plain
from clara.metrics import Interval

_RESAMPLES = 9999


class Benefit(Settings):
    """A pair of systems, closed-book (``none``) and full text, between which kept benefit is measured."""

    name: str
    none: str
    text: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems, by label, on the ``n`` questions that both answered: mean of the first minus mean of the second.

    ``p`` is two-sided, of the single comparison; ``p_holm`` corrected for all comparisons made together.
    """

    first: str
    second: str
    n: int
    difference: float
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class KeptBenefit:
    """Kept benefit of a system between the two ends of a pair, on the ``n`` questions that all three answered.

    Attributes:
        none: F1 of the closed-book system; ``text`` and ``memory`` (the system itself) likewise.
        kept: the ratio; None where full text does not help.
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
        """Flat JSON object."""
        own: dict[str, Any] = plain(self)
        return {**own.pop("group"), **own}


def _paired_p(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p of equal means: exact for few questions, else from 9,999 random exchanges."""
    stats = optional("scipy.stats", package="scipy", extra="eval")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    differences = differences[differences != 0]  # an equal pair is the same either way round
    if differences.size < 2:
        return 1.0  # no exchange is less extreme than what was seen
    result = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def compare_all(scores: Mapping[str, Mapping[str, float]], *, seed: int = 0) -> list[Comparison]:
    """Compare every pair of systems with a question in common; ``scores`` by system's label, then by question."""
    made = []
    for first, second in combinations(scores, 2):
        shared = [question for question in scores[first] if question in scores[second]]
        if not shared:
            continue
        left = [scores[first][question] for question in shared]
        right = [scores[second][question] for question in shared]
        p = _paired_p(left, right, seed=seed)
        made.append(Comparison(first, second, len(shared), float(np.mean(left) - np.mean(right)), p, p))
    corrected = _holm([comparison.p for comparison in made])
    return [replace(comparison, p_holm=p) for comparison, p in zip(made, corrected, strict=True)]


def _holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in their own order."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def kept_benefits(
    results: Sequence[Result], pairs: Sequence[Benefit], *, resamples: int = 2000, seed: int = 0
) -> list[KeptBenefit]:
    """The kept benefit of every other system between the systems of each pair, on tasks that have both."""
    benefits: list[KeptBenefit] = []
    for pair in pairs:
        for group, own in grouped(results).items():
            none = next((result for result in own if result.system == pair.none), None)
            text = next((result for result in own if result.system == pair.text), None)
            if none is None or text is None:
                continue
            others = [result for result in own if result not in (none, text) and result.n]
            kept = [_kept(pair.name, group, (none, text, result), resamples=resamples, seed=seed) for result in others]
            benefits += [item for item in kept if item is not None]
    return benefits


def _kept(
    pair: str, group: Group, results: tuple[Result, Result, Result], *, resamples: int, seed: int
) -> KeptBenefit | None:
    """The benefit of the last of (none, text, memory); None without a question in common."""
    scores = [result.f1_by_question() for result in results]
    shared = [question for question in scores[2] if question in scores[0] and question in scores[1]]
    if not shared:
        return None
    values = np.array([[by_question[question] for question in shared] for by_question in scores])
    means = values.mean(axis=1)
    gain = means[1] - means[0]
    kept = float((means[2] - means[0]) / gain) if gain > 0 else None
    return KeptBenefit(
        pair=pair,
        group=group,
        system=results[2].label,
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
