"""Computes F1 and average precision: no means over pictures, so a bootstrap gives the interval.

A class has pictures, and a picture may have several classes.
"""

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.evaluated import NEVER
from clipmill.stages.evaluate._metrics import scores

# Shapes: N queries or pictures, M answers, C classes, D width of the embedding, R bootstrap draws,
# P pairs of a picture and a prediction, or a class that it has, G groups of equal ones.

DRAWS = 200  # bootstrap samples of the pictures


def best_answers(
    query_ND: NDArray[np.floating], answer_MD: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (P,) queries, ascending, and (P,) their best answers: several if they tie.

    A query whose vector is NaN has none.
    """
    pairs = []
    for block, score_BM in scores(query_ND, answer_MD):
        best_B1 = score_BM.max(axis=1, keepdims=True)
        row, answer = np.nonzero((score_BM == best_B1) & (best_B1 > -np.inf))
        pairs.append((row + block.start, answer))
    row_P, answer_P = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return row_P, answer_P


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
    score_CN = chain.from_iterable(score_BN for _, score_BN in scores(class_CD, picture_ND))
    for number, score_N in enumerate(score_CN):
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
    class_P: NDArray[np.integer], rank_P: NDArray[np.int64], tied_P: NDArray[np.int64], classes: int
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


def macro_f1(
    predicted_P: NDArray[np.integer],
    label_N: NDArray[np.integer],
    classes: int,
    row_P: NDArray[np.integer] | None = None,
) -> dict[str, Any]:
    """Computes the mean F1 of the classes that occur; a bootstrap over pictures gives the interval.

    row_P is the picture of each prediction, by default one each; several share a picture's weight.

    Source: WILDS' F1-macro_all, which is sklearn's f1_score over the labels that occur.
    """
    every_N = np.arange(len(label_N))
    row_P = every_N if row_P is None else row_P
    share_P = 1 / np.bincount(row_P, minlength=len(label_N))[row_P]
    right_P = predicted_P == label_N[row_P]

    def mean_f1(row_N: NDArray[np.integer]) -> float:
        times_N = np.bincount(row_N, minlength=len(label_N))
        weight_P = times_N[row_P] * share_P
        true_C = np.bincount(label_N, times_N, minlength=classes)
        guessed_C = np.bincount(predicted_P, weight_P, minlength=classes)
        hit_C = np.bincount(predicted_P[right_P], weight_P[right_P], minlength=classes)
        occurs_C = true_C > 0
        return float((2 * hit_C[occurs_C] / (true_C + guessed_C)[occurs_C]).mean())

    draw = np.random.default_rng(0)  # a fixed seed, for equal results
    drawn = [mean_f1(draw.integers(0, len(every_N), len(every_N))) for _ in range(DRAWS)]
    value = mean_f1(every_N)
    low, high = (float(bound) for bound in np.quantile(drawn, (0.025, 0.975)))
    guessed = f1_of_guesses(np.bincount(label_N, minlength=classes))
    return {"value": value, "low": min(low, value), "high": max(high, value), "chance": guessed}


def f1_of_guesses(count_C: NDArray[np.integer]) -> float:
    """Returns the mean F1 of the classes that occur, if each picture is given a random class.

    Error: the ratio of expected counts, not the expected ratio; within 2 % from 100 pictures on.
    """
    some_C = count_C[count_C > 0]
    guessed = count_C.sum() / len(count_C)  # of each class
    return float((2 * some_C / len(count_C) / (some_C + guessed)).mean())
