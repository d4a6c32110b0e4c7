"""What guessing gives: the expected value of a metric where every answer is as likely as any."""

from functools import cache
from math import comb

import numpy as np
from numpy.typing import NDArray

# Shapes: G groups, C classes, N pictures.


def least_share(guess: float, count_G: NDArray[np.integer]) -> float:
    """Expected least share of hits of G groups whose trials hit with one probability.

    It is below `guess`: small groups are now and then much worse.

    Source: the sum over shares s of P(every group's share > s), each group binomial.
    """
    below_G = [_at_most(guess, int(count)) for count in count_G]
    share_S = np.unique(np.concatenate([np.arange(n + 1) / n for n in count_G]))
    above_S = np.ones(len(share_S))
    for count, below in zip(count_G, below_G, strict=True):
        hits_S = np.floor(share_S * count + 1e-9).astype(np.int64)
        above_S *= 1 - below[hits_S]
    return float(share_S[0] + (np.diff(share_S) * above_S[:-1]).sum())


def macro_f1(count_C: NDArray[np.integer]) -> float:
    """Mean F1 of the classes that occur, each picture given any of C classes.

    Error: the ratio of expected counts, not the expected ratio; within 2 % from 100 pictures on.
    """
    some_C = count_C[count_C > 0]
    guessed = count_C.sum() / len(count_C)  # of each class
    return float((2 * some_C / len(count_C) / (some_C + guessed)).mean())


def any_of(own_N: NDArray[np.integer], texts: int, k: int) -> NDArray[np.float64]:
    """(N,) chance that one of a picture's own texts is among k of all texts."""
    taken = min(k, texts)
    own_U, index_N = np.unique(own_N, return_inverse=True)
    none_U = [comb(texts - int(own), taken) / comb(texts, taken) for own in own_U]
    return 1 - np.array(none_U)[index_N]


@cache
def jaccard(candidates: int, wanted: int) -> float:
    """Expected Jaccard index of two sets of `wanted` among the candidates, one of them any."""
    return jaccard_of_ties(wanted, 0, candidates, wanted, wanted)


@cache
def jaccard_of_ties(wanted: int, sure: int, tied: int, right: int, slots: int) -> float:
    """Expected Jaccard index of `wanted` right ones and as many taken, of which `sure` are right.

    The last `slots` are any of `tied` candidates, `right` of which are right.
    """
    ways = comb(tied, slots)
    return sum(
        comb(right, more)
        * comb(tied - right, slots - more)
        / ways
        * (sure + more)
        / (2 * wanted - sure - more)
        for more in range(min(right, slots) + 1)
    )


def _at_most(guess: float, count: int) -> NDArray[np.float64]:
    """P(hits <= h) for h of 0 to `count`."""
    if guess >= 1:
        return np.append(np.zeros(count), 1.0)
    hit = np.arange(count)
    ratio = np.log((count - hit) / (hit + 1)) + np.log(guess / (1 - guess))
    logs = np.append(0.0, np.cumsum(ratio)) + count * np.log1p(-guess)
    return np.minimum(np.cumsum(np.exp(logs)), 1.0)
