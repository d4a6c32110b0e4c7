"""Mean average precision of a task whose pictures have several classes each, or none."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.evaluated import NEVER
from clipmill.stages.evaluate._metrics import DRAWS, SCORES

# Shapes: N pictures, C classes, P pairs of a picture and a class that it has, R bootstrap draws, D
# width of the embedding.


def mean_average_precision(
    picture_ND: NDArray[np.floating],
    class_CD: NDArray[np.floating],
    picture_P: NDArray[np.integer],
    class_P: NDArray[np.integer],
) -> tuple[dict[str, Any], NDArray[np.int64], NDArray[np.int64]]:
    """Returns the metric, and for each pair its rank and number of ties in the class, both (P,).

    The mean goes over all classes; one that no picture has counts 0. A rank is the number of
    pictures that score better, NEVER without a score; ties include the picture itself: 1 is none.

    Source: CLIP_benchmark's mean_average_precision. Pictures that tie may come in any order: the
    precision is the expected one (McSherry and Najork 2008), so guessing is scored as guessing.
    Error: the interval is a bootstrap of the pictures, in which ties keep one order.
    """
    classes, pictures = len(class_CD), len(picture_ND)
    rank_P, tied_P = np.full(len(picture_P), NEVER), np.ones(len(picture_P), np.int64)
    drawn_R = np.zeros(DRAWS)
    draw = np.random.default_rng(0)  # the same draws whenever it is computed
    times_RN = draw.multinomial(pictures, np.full(pictures, 1 / pictures), DRAWS).astype(np.int32)
    for number, score_N in enumerate(_scores(picture_ND, class_CD)):
        of_class = np.flatnonzero(class_P == number)
        right_N = np.zeros(pictures, bool)
        right_N[picture_P[of_class]] = True
        order_N = np.argsort(-score_N, kind="stable")
        rising_N = np.sort(score_N)
        right_score_P = score_N[picture_P[of_class]]
        above_P = np.searchsorted(rising_N, right_score_P, side="right")
        has_score_P = right_score_P > -np.inf
        rank_P[of_class] = np.where(has_score_P, pictures - above_P, NEVER)
        tied_P[of_class] = np.where(
            has_score_P, above_P - np.searchsorted(rising_N, right_score_P, side="left"), 1
        )
        right_N &= score_N > -np.inf
        drawn_R += _resampled(times_RN, order_N, right_N, len(of_class)) / classes
    value = float(average_precisions(class_P, rank_P, tied_P, classes).mean())
    all_tie = np.zeros_like(rank_P), np.full_like(tied_P, pictures)
    chance = float(average_precisions(class_P, *all_tie, classes).mean())
    low, high = (float(bound) for bound in np.quantile(drawn_R, (0.025, 0.975)))
    metric = {"value": value, "low": min(low, value), "high": max(high, value), "chance": chance}
    return metric, rank_P, tied_P


def average_precisions(
    class_P: NDArray[np.integer],
    rank_P: NDArray[np.int64],
    tied_P: NDArray[np.int64],
    classes: int,
) -> NDArray[np.float64]:
    """Returns (C,) the average precision of each class, a mean over all orders of tied pictures."""
    count_C = np.bincount(class_P, minlength=classes)
    has_rank_P = rank_P != NEVER
    keys = np.stack([class_P[has_rank_P], rank_P[has_rank_P], tied_P[has_rank_P]])
    (class_G, rank_G, tied_G), right_G = np.unique(keys, axis=1, return_counts=True)
    before_G = np.cumsum(right_G) - right_G  # right ones ahead, in this class and those before it
    _, first_G = np.unique(class_G, return_index=True)
    before_G -= np.repeat(before_G[first_G], np.diff([*first_G, len(class_G)]))
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, (rank_G + tied_G).max(initial=0) + 1)))
    sum_G = harmonic[rank_G + tied_G] - harmonic[rank_G]  # of 1 / place, over the tied places
    # A right one at tied place j has (right - 1) (j - 1) / (tied - 1) right ones tied before it.
    more_G = (right_G - 1) / np.maximum(tied_G - 1, 1) * (tied_G - (rank_G + 1) * sum_G)
    precision_G = right_G / tied_G * ((before_G + 1) * sum_G + more_G)
    alone_G = tied_G == 1
    precision_G[alone_G] = (before_G[alone_G] + 1) / (rank_G[alone_G] + 1)
    return np.bincount(class_G, precision_G, minlength=classes) / np.maximum(count_C, 1)


def _scores(
    picture_ND: NDArray[np.floating], class_CD: NDArray[np.floating]
) -> Iterator[NDArray[np.float64]]:
    """Yields (N,) cosines to each class in turn, in float64; -inf in the place of NaN."""
    step = max(1, SCORES // max(1, len(picture_ND)))
    wide_ND = picture_ND.astype(np.float64)
    for start in range(0, len(class_CD), step):
        with np.errstate(invalid="ignore"):
            score_BN = class_CD[start : start + step].astype(np.float64) @ wide_ND.T
        yield from np.where(np.isnan(score_BN), -np.inf, score_BN)


def _resampled(
    times_RN: NDArray[np.int32], order_N: NDArray[np.int64], right_N: NDArray[np.bool_], wanted: int
) -> NDArray[np.float64]:
    """Returns (R,) average precision of a class in each draw; copies of a picture are adjacent."""
    if not wanted:
        return np.zeros(len(times_RN))
    at_W = np.flatnonzero(right_N[order_N])
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, len(order_N) + 1)))
    found_R = np.zeros(len(times_RN))
    for draw, times_N in enumerate(times_RN):
        of_order_N = times_N[order_N]
        ends_W, copies_W = np.cumsum(of_order_N)[at_W], of_order_N[at_W]
        right_W = np.cumsum(copies_W)
        # Copies j = 1 … c of a right one add (right before + j) / (all before + j).
        misses_W = (ends_W - copies_W) - (right_W - copies_W)
        summed_W = copies_W - misses_W * (harmonic[ends_W] - harmonic[ends_W - copies_W])
        found_R[draw] = summed_W.sum() / max(copies_W.sum(), 1)
    return found_R
