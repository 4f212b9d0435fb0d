"""Are two systems really different? Paired permutation tests on the same questions, corrected for their number.

The test is Fisher's randomisation test (swap the two scores of a question at random, compare the mean difference),
the one that ranx calls ``fisher``; scipy computes it. ranx itself would bring thirteen packages (numba, llvmlite and
pandas among them, 337 MB) and scores rankings only, while what is compared here is mostly answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from clara.errors import MissingExtraError

RESAMPLES = 9999


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the questions that both answered.

    Attributes:
        first: label of one system.
        second: label of the other.
        n: questions in common.
        difference: mean of first minus mean of second.
        p: two-sided, of the single comparison.
        p_holm: the same, corrected by Holm's method for the number of comparisons made together.
    """

    first: str
    second: str
    n: int
    difference: float
    p: float
    p_holm: float


def paired_p(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p of the hypothesis that both lists have the same mean.

    Exact where there are few enough questions to try every exchange, else from 9,999 random ones.

    Args:
        first: one value a question.
        second: the other system's, same questions, same order.
        seed: of the random exchanges.

    Raises:
        MissingExtraError: scipy is not installed.
        ValueError: the lists are empty or differ in length.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"a paired test needs two lists of the same questions, got {len(first)} and {len(second)}")
    try:
        from scipy.stats import permutation_test  # noqa: PLC0415 - an optional package, imported at its own door
    except ImportError:
        raise MissingExtraError("scipy", "eval") from None
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    differences = differences[differences != 0]  # an equal pair is the same either way round
    if differences.size < 2:
        return 1.0  # no exchange is less extreme than what was seen

    def mean(left: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
        return np.asarray(left.mean(axis=axis))

    result = permutation_test(
        (differences,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def compare_all(scores: Mapping[str, Mapping[str, float]], *, seed: int = 0) -> list[Comparison]:
    """Compare every pair of systems, by label.

    Args:
        scores: for each system the score of each question that it answered, by question.
        seed: of the random exchanges.

    Returns:
        One comparison a pair with at least one question in common, in the order of ``scores``.
    """
    made = []
    for first, second in combinations(scores, 2):
        shared = [question for question in scores[first] if question in scores[second]]
        if not shared:
            continue
        left = [scores[first][question] for question in shared]
        right = [scores[second][question] for question in shared]
        p = paired_p(left, right, seed=seed)
        made.append(Comparison(first, second, len(shared), float(np.mean(left) - np.mean(right)), p, p))
    corrected = holm([comparison.p for comparison in made])
    return [replace(comparison, p_holm=p) for comparison, p in zip(made, corrected, strict=True)]


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in their own order."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected
