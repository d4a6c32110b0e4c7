"""Zero-shot metrics, all of them read off ranks, with 95 % intervals and their value by guessing.

A rank is 0 where the right answer scores best; a hit at k is a rank below k. Where answers tie, a
hit is the chance of one, each order of theirs as likely: who says the same of all is guessing.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.evaluated import NEVER, Ranks
from clipmill.metadata.stats import wilson

# Shapes: N queries, M answers, C classes, G groups, I instances, D width of the embedding; N
# pictures.

SCORES = 2**22  # (queries, answers) scores held at a time: 32 MB
CLASSIFICATION_KS = (1, 5)
RETRIEVAL_KS = (1, 5, 10)
HARD = 10  # candidates of a WinoGAViL instance that counts
DRAWS = 200  # bootstrapped samples of the pictures, for the metric that is no mean over them
Metrics = dict[str, dict[str, Any] | None]


def best_ranks(
    query_ND: NDArray[np.floating],
    answer_MD: NDArray[np.floating],
    query_group_N: NDArray[np.integer],
    answer_group_M: NDArray[np.integer],
) -> Ranks:
    """(N,) ranks of the best answer of each query's group, by cosines in float64."""
    better_N, right_N, wrong_N = np.empty((3, len(query_ND)), np.int64)
    for block, score_BM in _scores(query_ND, answer_MD):
        is_right_BM = query_group_N[block, None] == answer_group_M
        best_B1 = np.where(is_right_BM, score_BM, -np.inf).max(axis=1, keepdims=True)
        ties_BM = score_BM == best_B1
        has_one_B = best_B1[:, 0] > -np.inf
        better_N[block] = np.where(has_one_B, (score_BM > best_B1).sum(axis=1), NEVER)
        right_N[block] = np.where(has_one_B, (ties_BM & is_right_BM).sum(axis=1), 1)
        wrong_N[block] = np.where(has_one_B, (ties_BM & ~is_right_BM).sum(axis=1), 0)
    return Ranks(better_N, wrong_N, right_N)


def best_answers(
    query_ND: NDArray[np.floating], answer_MD: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,) queries, ascending, and (P,) an answer that scores best: several of a query that tie.

    A query whose vector is NaN has none.
    """
    pairs = []
    for block, score_BM in _scores(query_ND, answer_MD):
        best_B1 = score_BM.max(axis=1, keepdims=True)
        row, answer = np.nonzero((score_BM == best_B1) & (best_B1 > -np.inf))
        pairs.append((row + block.start, answer))
    row_P, answer_P = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return row_P, answer_P


def _scores(
    query_ND: NDArray[np.floating], answer_MD: NDArray[np.floating]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Blocks of queries, and (B, M) their scores: -inf in the place of NaN, so never the best.

    Equal answers are multiplied once: else the place in a matrix might decide their last bit.
    """
    wide_MD = np.ascontiguousarray(answer_MD, np.float64)
    whole_M = wide_MD.view(np.dtype((np.void, wide_MD.shape[1] * wide_MD.itemsize)))[:, 0]
    _, first_U, kind_M = np.unique(whole_M, return_index=True, return_inverse=True)
    has_copies = len(first_U) < len(wide_MD)
    answer_DU = (wide_MD[first_U] if has_copies else wide_MD).T
    for block in _blocks(len(query_ND), len(answer_MD)):
        with np.errstate(invalid="ignore"):  # NaN is a miss, not a mistake
            score_BM = query_ND[block].astype(np.float64) @ answer_DU
        score_BM = score_BM[:, kind_M] if has_copies else score_BM
        yield block, np.where(np.isnan(score_BM), -np.inf, score_BM)


def classification(ranks: Ranks, label_N: NDArray[np.integer], classes: int) -> Metrics:
    """acc1, acc5 (null below 5 classes) and the mean of the recalls of the classes that occur.

    Source: CLIP_benchmark's zeroshot_classification; the last is sklearn's balanced accuracy.
    """
    known, index_N, count_C = np.unique(label_N, return_inverse=True, return_counts=True)
    recall_C = np.bincount(index_N, ranks.hits(1), minlength=len(known)) / count_C
    # A class of few images moves the mean as much as one of many: fewer images' worth of proof.
    trials = len(known) ** 2 / (1 / count_C).sum()
    found: Metrics = {
        f"acc{k}": proportion(ranks.hits(k), k / classes) if classes >= k else None
        for k in CLASSIFICATION_KS
    }
    mean = interval(float(recall_C.mean()), trials)
    return {**found, "mean_per_class_recall": mean | {"chance": 1 / classes}}


def worst_group(
    hit_N: NDArray[np.floating],
    group_N: NDArray[np.integer],
    guess: float,
    ignored: Sequence[int] = (),
) -> dict[str, Any] | None:
    """The least share of hits of a group, and the group's number; null without a group that counts.

    `guess` is the chance of a hit.

    Source: WILDS' worst-group accuracy (Koh et al. 2021). Of equal groups the first is named.
    Error: the interval is that group's alone; which group is worst is taken as known.
    """
    some_G = np.setdiff1d(group_N, ignored)
    if not len(some_G):
        return None
    count_G = np.array([(group_N == group).sum() for group in some_G])
    share_G = np.array([hit_N[group_N == group].mean() for group in some_G])
    worst = int(share_G.argmin())
    found = interval(float(share_G[worst]), int(count_G[worst]))
    return found | {"chance": least_share(guess, count_G), "group": int(some_G[worst])}


def macro_f1(
    predicted_P: NDArray[np.integer],
    label_N: NDArray[np.integer],
    classes: int,
    row_P: NDArray[np.integer] | None = None,
) -> dict[str, Any]:
    """Mean F1 of the classes that occur; pictures drawn again and again give the interval.

    row_P: whose prediction each is, by default one a picture; several of one share its guess.

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

    draw = np.random.default_rng(0)  # the same draws whenever it is computed
    drawn = [mean_f1(draw.integers(0, len(every_N), len(every_N))) for _ in range(DRAWS)]
    value = mean_f1(every_N)
    low, high = (float(bound) for bound in np.quantile(drawn, (0.025, 0.975)))
    guessed = f1_of_guesses(np.bincount(label_N, minlength=classes))
    return {"value": value, "low": min(low, value), "high": max(high, value), "chance": guessed}


def retrieval(text_ranks: Ranks, image_ranks: Ranks, count_N: NDArray[np.integer]) -> Metrics:
    """R@k of the texts found for each image (one of its own is enough), and of each text's image.

    count_N: how many of the K texts are each image's. One without a text has found none: a miss.
    mean_recall@1 is the mean of the two.

    Source: CLIP_benchmark's zeroshot_retrieval; the mean is DataComp's.
    """
    images, texts = len(text_ranks.better_N), len(image_ranks.better_N)
    trials = int((count_N > 0).sum())  # captions of one are no independent trials
    found: dict[str, dict[str, Any]] = {}
    for k in RETRIEVAL_KS:
        by_text = interval(float(image_ranks.hits(k).mean()), trials)
        found[f"image_retrieval_recall@{k}"] = by_text | {"chance": min(1.0, k / images)}
        guess = float(any_of(count_N, texts, k).mean())
        found[f"text_retrieval_recall@{k}"] = proportion(text_ranks.hits(k), guess)
    both = [found[f"{side}_retrieval_recall@1"] for side in ("image", "text")]
    mean = interval(sum(one["value"] for one in both) / 2, trials)
    found["mean_recall@1"] = mean | {"chance": sum(one["chance"] for one in both) / 2}
    return {**found}


def association(
    rank_N: NDArray[np.int64], right_N: NDArray[np.bool_], instance_N: NDArray[np.integer]
) -> Metrics:
    """Mean Jaccard index of the right pictures and as many that score best, by instance.

    rank_N is how many of its instance score better than a picture, NEVER where it has no score. Of
    several that tie each is taken as likely: the index is the expected one. Of all instances; of
    those with 5 or 6 candidates; of those with 10 to 12, the metric that counts. Null where there
    is none.

    Source: WinoGAViL (Bitton et al. 2022) as DataComp scores it.
    Error: the interval takes each instance as one trial; an index varies less than a hit does.
    """
    _, index_N, count_I = np.unique(instance_N, return_inverse=True, return_counts=True)
    wanted_I = np.bincount(index_N, right_N, minlength=len(count_I)).astype(np.int64)
    _, tie_N, size_T = np.unique(
        np.stack([index_N, rank_N]), axis=1, return_inverse=True, return_counts=True
    )
    slot_N = wanted_I[index_N] - np.minimum(rank_N, len(rank_N))  # left for those that tie
    tied_N = size_T[tie_N]
    both_I = np.bincount(index_N, right_N & (tied_N <= slot_N), minlength=len(count_I))
    index_I = both_I / (2 * wanted_I - both_I)
    cut_N = (slot_N > 0) & (tied_N > slot_N)
    for instance in np.unique(index_N[cut_N]):
        of_N = cut_N & (index_N == instance)
        ties = int(tied_N[of_N][0]), int(right_N[of_N].sum()), int(slot_N[of_N][0])
        index_I[instance] = jaccard_of_ties(int(wanted_I[instance]), int(both_I[instance]), *ties)
    guess_I = np.array([jaccard_of_guesses(n, a) for n, a in zip(count_I, wanted_I, strict=True)])
    parts = {
        "avg_jaccard_score": count_I > 0,
        "jaccard_score_5-6": count_I <= 6,
        "jaccard_score_10-12": count_I >= HARD,
    }
    return {
        name: interval(float(index_I[of_I].mean()), int(of_I.sum()))
        | {"chance": float(guess_I[of_I].mean())}
        if of_I.any()
        else None
        for name, of_I in parts.items()
    }


def proportion(hit_N: NDArray[np.floating], guess: float) -> dict[str, Any]:
    """Share of hits, its interval, and what guessing gives."""
    return interval(float(hit_N.mean()), len(hit_N)) | {"chance": guess}


def interval(share: float, trials: float) -> dict[str, float]:
    """A share of independent trials, and the 95 % interval around it: value, low, high."""
    low, high = wilson(share, trials)
    return {"value": share, "low": low, "high": high}


def _blocks(queries: int, answers: int) -> Iterator[slice]:
    step = max(1, SCORES // max(1, answers))
    for start in range(0, queries, step):
        yield slice(start, start + step)


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


def f1_of_guesses(count_C: NDArray[np.integer]) -> float:
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
def jaccard_of_guesses(candidates: int, wanted: int) -> float:
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
