"""Which record comes when: weighted mixing of several sources, a pure function of its numbers.

Knows sizes and weights, not records; how records become batches is ``train``'s work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clara.errors import ConfigError


def mixture(sizes: Sequence[int], weights: Sequence[float], *, seed: int, length: int) -> npt.NDArray[np.int64]:
    """Draw ``length`` records from several sources in the proportions of ``weights``.

    Each draw picks a source with probability weight / sum of weights, then that source's next item. A source is gone
    through in a shuffled order, and is shuffled anew each time it has been gone through, so small sources repeat
    evenly. Draw i depends on everything but ``length``: a run that is resumed or prolonged sees the same records at
    the same indices.

    Args:
        sizes: number of items of each source.
        weights: relative weight of each source, not negative; a source of weight 0 is never drawn.
        seed: of all draws, not negative.
        length: number of draws.

    Returns:
        int64 [length, 2]: source and item within the source.

    Raises:
        ConfigError: names every fault: unequal lengths, a negative or infinite weight, a weight on an empty source,
            weights that sum to 0, a negative seed or length.
    """
    _check(sizes, weights, seed=seed, length=length)
    heap = np.cumsum(np.asarray(weights, dtype=np.float64))
    drawn = np.random.default_rng([seed, 0]).random(length) * heap[-1]
    # side="right" keeps a source of weight 0 out: a draw equal to its bound falls to the next source. Rounding can
    # carry the product up to the last bound itself, hence the step below it.
    sources = np.searchsorted(heap, np.minimum(drawn, np.nextafter(heap[-1], 0)), side="right")
    items = np.empty(length, dtype=np.int64)
    for source, size in enumerate(sizes):
        places = np.flatnonzero(sources == source)
        items[places] = _epochs(size, len(places), seed=seed, source=source)
    return np.stack([sources.astype(np.int64), items], axis=1)


def _epochs(size: int, count: int, *, seed: int, source: int) -> npt.NDArray[np.int64]:
    """The first ``count`` items of a source, int64 [count]: one permutation after the other."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    orders = [
        np.random.default_rng([seed, 1, source, epoch]).permutation(size) for epoch in range(math.ceil(count / size))
    ]
    return np.concatenate(orders)[:count].astype(np.int64)


def _check(sizes: Sequence[int], weights: Sequence[float], *, seed: int, length: int) -> None:
    faults = []
    if len(sizes) != len(weights):
        faults.append(f"expected one weight a source, got {len(weights)} weights for {len(sizes)} sources")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights):
        faults.append(f"weights must be finite and not negative, got {list(weights)}")
    elif not 0 < sum(weights) < math.inf:
        faults.append(f"the sum of the weights must be finite and above 0, got {sum(weights)}")
    faults.extend(
        f"source {source} has weight {weight} and no items"
        for source, (size, weight) in enumerate(zip(sizes, weights, strict=False))
        if size <= 0 < weight
    )
    if seed < 0:
        faults.append(f"seed must not be negative, got {seed}")
    if length < 0:
        faults.append(f"length must not be negative, got {length}")
    if faults:
        raise ConfigError("mixture of sources: " + "; ".join(faults))
