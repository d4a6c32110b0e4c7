"""Approximate scores of centres for rows, and a bound on their error.

<x - m, c - m> / (|x - m| * longest) - weight * ratio orders the centres c of a row x as <x, c>
does, or as -|x - c|^2: m is the mean of the centres, `longest` their greatest distance to it, and
`weight`, 0 to 1, the part that does not depend on the row. Without their mean, near-equal vectors
differ in the first of the digits that are kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Shapes: K centres, D width; B rows of a block, C centres of a strip.

Metric = Literal["cosine", "euclidean", "dot"]
Precision = Literal["float32", "bfloat16"]
Products = Callable[[NDArray[Any]], NDArray[np.float32]]  # (D, B) rows to (C, B)

STRIP = 1024  # centres: with a block of 256 rows their scores stay in a core's second cache
FLOAT_BITS = 2.0**-24  # float32 rounds by at most this share
HALF_BITS = 2.0**-8  # bfloat16 by this
LIGHT = 2.0**-60  # a row so near to the mean that weights overflow counts as further away
TINY = 2.0**-200  # less than any distance of float32 vectors but 0


@cache
def processor() -> frozenset[str]:
    """Returns what this machine's processor can do, as LLVM names it."""
    from llvmlite.binding import get_host_cpu_features

    return frozenset(name for name, has in get_host_cpu_features().items() if has)


def best_precision(wanted: Precision | None) -> Precision:
    """Returns bfloat16 if the processor multiplies it and float32 is not wanted."""
    has_bfloat16 = "avx512bf16" in processor()
    return "bfloat16" if has_bfloat16 and wanted != "float32" else "float32"


@dataclass(frozen=True)
class Frame:
    """The scales of scores of rows by these centres."""

    middle_D: NDArray[np.float64]  # m
    longest: float
    weight_K: NDArray[np.float32]
    heaviest: float  # what a weight of 1 takes from a dot product
    beyond: float  # |m| for dot products, whose float64 rounds in proportion to it

    @property
    def least(self) -> float:
        """Returns the distance to m that a nearer row counts as."""
        return max(self.heaviest / self.longest * LIGHT, TINY)

    def ratio(self, length: Any) -> Any:
        """Returns what a weight of 1 takes from scores of rows that far from m: array or tensor."""
        return self.heaviest / (length * self.longest)

    def gaps(self, length: Any, lost: Any, lost_most: float, precision: Precision) -> Any:
        """Returns two gaps a row: scores further apart are in order, coarse ones and float64's.

        The first is twice the error of a score: sums of D products in any order, roundings of both
        vectors and of the score, and float64's own, which defines the answer. Only weights that
        take at most 2 from a score matter: with more, the centre that has the least weight is
        nearer. `lost` is what rounding to bfloat16 takes from the rows, and `lost_most` at most
        from a centre.
        """
        D = len(self.middle_D)
        sure = D * 2.0**-50 * (length + self.longest + self.beyond) ** 2
        off = sure / length / self.longest
        if precision == "float32":
            off += (D + 24) * FLOAT_BITS
        else:
            off += lost * (1 + lost_most) + lost_most + HALF_BITS + (4 * D + 24) * FLOAT_BITS
        return (2.02 * off).clip(max=2.0**100), sure


def need_finite(length: Any) -> None:
    """Raises ValueError for a length that is not finite, as of a vector with NaN or infinity."""
    if not (length < np.inf).all():
        raise ValueError("a vector that is NaN or infinite is near to nothing")


def frame(centre_KD: NDArray[np.float32], metric: Metric) -> Frame:
    from clipmill.stages.ops.vectors._sift import lengths

    K = len(centre_KD)
    middle_D, length_K = centre_KD.mean(axis=0, dtype=np.float64), np.empty(K)
    lengths(centre_KD, middle_D, length_K)
    need_finite(length_K)
    if metric == "euclidean":
        weight_K, beyond = length_K**2 / 2, 0.0
    else:
        weight_K = np.concatenate([-(centre_KD[part] @ middle_D) for part in _parts(K)])
        beyond = float(np.sqrt(middle_D @ middle_D))
    weight_K -= weight_K.min()
    heaviest = float(weight_K.max())
    share_K = (weight_K / (heaviest or 1)).astype(np.float32)
    return Frame(middle_D, float(length_K.max()) or 1.0, share_K, heaviest, beyond)


class Scores:
    """Centres prepared to be multiplied with rows on this processor."""

    def __init__(self, centre_KD: NDArray[np.float32], frame: Frame, precision: Precision) -> None:
        from clipmill.stages.ops.vectors._sift import TALL, halve_rows, pairs_of, shift_rows, tiled

        self.frame, self.precision, self.lost = frame, precision, 0.0
        self.strips: list[tuple[int, Products]] = []  # by their first centre
        for part in _parts(len(centre_KD)):
            unit_CD = np.empty((part.stop - part.start, centre_KD.shape[1]), np.float32)
            longest_C = np.full(len(unit_CD), frame.longest)
            shift_rows(centre_KD[part], frame.middle_D, longest_C, unit_CD)
            products: Products = partial(np.matmul, unit_CD)
            if precision == "bfloat16":
                half_CD, lost_C = np.empty(unit_CD.shape, np.uint16), np.empty(len(unit_CD))
                halve_rows(unit_CD, unit_CD.view(np.uint32), half_CD, lost_C)
                self.lost = max(self.lost, float(lost_C.max()))
                products = partial(tiled, pairs_of(half_CD, TALL), len(half_CD))
            self.strips.append((part.start, products))

    def block(self, row_BD: NDArray[np.float32]) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Returns the rows prepared, their (B,) ratio, and their two (B,) gaps."""
        from clipmill.stages.ops.vectors._sift import halve_rows, lengths, shift_rows

        B, D = row_BD.shape
        length_B, lost_B, unit_BD = np.empty(B), np.zeros(B), np.empty((B, D), np.float32)
        lengths(row_BD, self.frame.middle_D, length_B)
        need_finite(length_B)
        np.maximum(length_B, self.frame.least, out=length_B)
        shift_rows(row_BD, self.frame.middle_D, length_B, unit_BD)
        ready_BD: NDArray = unit_BD
        if self.precision == "bfloat16":
            ready_BD = np.empty((B, D), np.uint16)
            halve_rows(unit_BD, unit_BD.view(np.uint32), ready_BD, lost_B)
        gap_B, sure_gap_B = self.frame.gaps(length_B, lost_B, self.lost, self.precision)
        ratio_B = self.frame.ratio(length_B).astype(np.float32)
        return ready_BD, ratio_B, gap_B.astype(np.float32), sure_gap_B


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + STRIP, rows)) for start in range(0, rows, STRIP))
