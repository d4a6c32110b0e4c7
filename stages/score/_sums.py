"""Sums shares in whole numbers, draws rows by hash: no order of rows changes a mean or a draw."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.dataset import State
from clipmill.stages.ops.tables.rows import joined

# Shapes: N rows, K columns.

BITS = 40  # that a value from 0 to 1 is summed in: 2^23 rows of a shard have room


def whole(share_KN: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns (2, K) sums of values from 0 to 1, in whole numbers that no order of rows changes:
    the upper bits, and the lower 30."""
    sum_K = np.rint(share_KN * 2.0**BITS).astype(np.int64).sum(axis=1)
    return np.stack([sum_K >> 30, sum_K & (2**30 - 1)])


def mean_of(sum_2: NDArray[np.int64], count: int) -> float:
    """Returns the mean of so many values that `whole` summed."""
    return float(((int(sum_2[0]) << 30) + int(sum_2[1])) / count / 2.0**BITS)


def least(most: int, *states: State) -> State:
    """Returns the rows of all with the least `hash`, at most so many, in its order."""
    every = joined(*states)
    hash_N: Any = every["hash"]
    first = np.arange(len(hash_N))
    if len(first) > most:
        first = np.flatnonzero(hash_N <= np.partition(hash_N, most - 1)[most - 1])
    first = first[np.argsort(hash_N[first], kind="stable")][:most]
    return {name: array[first] for name, array in every.items()}
