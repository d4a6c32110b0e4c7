"""Finds runs of equal keys, and pairs of places inside them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Shapes: N sorted keys, R runs of equal ones.


def runs(key_N: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (R,) where each run of equal sorted keys starts, and (R,) its length."""
    is_first_N = np.append(True, key_N[1:] != key_N[:-1])[: len(key_N)]
    first_R = np.flatnonzero(is_first_N)
    return first_R, np.diff(first_R, append=len(key_N))


def neighbours(
    first_R: NDArray[np.int64], size_R: NDArray[np.int64], reach: int | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields all pairs of places inside a run, at most `reach` apart: (a, b) by distance."""
    last_N = np.repeat(first_R + size_R - 1, size_R)
    before_R = np.cumsum(size_R) - size_R  # places in earlier runs
    a = np.repeat(first_R - before_R, size_R) + np.arange(len(last_N))
    step = 0
    while reach is None or step < reach:
        step += 1
        more = a + step <= last_N
        a, last_N = a[more], last_N[more]
        if not len(a):
            return
        yield a, a + step
