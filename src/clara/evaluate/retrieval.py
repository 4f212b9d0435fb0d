"""Scores of rankings: Recall@k, Precision@k, nDCG@10 and MRR, computed by ir-measures.

Knows indices of candidates and which are gold; a gold document that is no candidate counts against recall.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import fmean

from clara.errors import MissingExtraError

MEASURES = ("R@1", "R@3", "R@5", "R@10", "P@1", "P@3", "P@5", "nDCG@10", "RR")
"""As ir-measures spells them; ``RR`` averages to MRR."""

RECALL_DEPTHS = (1, 3, 5, 10)


def score_rankings(
    rankings: Sequence[Sequence[int]], gold: Sequence[Collection[int]], *, missing: Sequence[int] | None = None
) -> list[dict[str, float]]:
    """Score each question's ranking.

    Args:
        rankings: for each question indices of its candidates, best first, each once.
        gold: for each question the indices that are relevant.
        missing: for each question how many relevant documents are not among the candidates; none by default. A
            question needs at least one relevant document in all.

    Returns:
        For each question the value of every measure in ``MEASURES``, 0 to 1.

    Raises:
        MissingExtraError: ir-measures is not installed.
        ValueError: a question has no relevant document, or a candidate is ranked twice.
    """
    try:
        import ir_measures  # noqa: PLC0415 - an optional package, imported at its own door
    except ImportError:
        raise MissingExtraError("ir-measures", "eval") from None
    qrels, run = [], []
    absent = missing if missing is not None else [0] * len(rankings)
    for number, (ranking, relevant, away) in enumerate(zip(rankings, gold, absent, strict=True)):
        if not relevant and not away:
            raise ValueError(
                "a ranking can only be scored with relevant documents: leave the question out and count it"
            )
        if len(set(ranking)) != len(ranking):
            raise ValueError("a ranking must hold each candidate once")
        name = str(number)
        qrels += [ir_measures.Qrel(name, str(index), 1) for index in relevant]
        qrels += [ir_measures.Qrel(name, f"missing-{index}", 1) for index in range(away)]
        # Scores fall with the rank, so that nothing is left to how ties are broken.
        run += [ir_measures.ScoredDoc(name, str(index), -float(place)) for place, index in enumerate(ranking)]
    measures = [ir_measures.parse_measure(name) for name in MEASURES]
    scored: list[dict[str, float]] = [dict.fromkeys(MEASURES, 0.0) for _ in rankings]
    for metric in ir_measures.iter_calc(measures, qrels, run):
        scored[int(metric.query_id)][str(metric.measure)] = float(metric.value)
    return scored


def mean_scores(scored: Sequence[dict[str, float]]) -> dict[str, float] | None:
    """Means over the questions; None without questions."""
    if not scored:
        return None
    return {name: fmean(values[name] for values in scored) for name in MEASURES}
