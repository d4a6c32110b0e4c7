"""Computes zero-shot metrics from ranks, with 95 % intervals and the value of guessing.

A rank is 0 if the right answer scores best; a hit at k is a rank below k. With ties, a hit is its
probability over all orders of the tied answers: a model that scores all alike is guessing.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.evaluated import NEVER, Ranks
from clipmill.metadata.stats import wilson

# Shapes: N queries or pictures, M answers, C classes, G groups, I instances, D width of the
# embedding.

SCORES = 2**22  # (queries, answers) scores in memory: 32 MB
CLASSIFICATION_KS = (1, 5)
RETRIEVAL_KS = (1, 5, 10)
HARD = 10  # least candidates of a WinoGAViL instance in the main metric
PAIRS = "pair_accuracy"
Metrics = dict[str, dict[str, Any] | None]


def best_ranks(
    query_ND: NDArray[np.floating],
    answer_MD: NDArray[np.floating],
    query_group_N: NDArray[np.integer],
    answer_group_M: NDArray[np.integer],
    is_own: bool = False,
) -> Ranks:
    """Returns (N,) ranks of the best answer of each query's group, by cosines in float64.

    With `is_own` the queries are the answers, too, and none is an answer to itself.
    """
    better_N, right_N, wrong_N = np.empty((3, len(query_ND)), np.int64)
    for block, score_BM in scores(query_ND, answer_MD):
        if is_own:
            np.fill_diagonal(score_BM[:, block], -np.inf)
        is_right_BM = query_group_N[block, None] == answer_group_M
        best_B1 = np.where(is_right_BM, score_BM, -np.inf).max(axis=1, keepdims=True)
        ties_BM = score_BM == best_B1
        has_any_B = best_B1[:, 0] > -np.inf
        better_N[block] = np.where(has_any_B, (score_BM > best_B1).sum(axis=1), NEVER)
        right_N[block] = np.where(has_any_B, (ties_BM & is_right_BM).sum(axis=1), 1)
        wrong_N[block] = np.where(has_any_B, (ties_BM & ~is_right_BM).sum(axis=1), 0)
    return Ranks(better_N, wrong_N, right_N)


def scores(
    query_ND: NDArray[np.floating], answer_MD: NDArray[np.floating]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yields blocks of queries, and (B, M) their scores; NaN becomes -inf, which is never best.

    Equal answers are multiplied once, as their position in a matrix might change the last bit.
    """
    wide_MD = np.ascontiguousarray(answer_MD, np.float64)
    whole_M = wide_MD.view(np.dtype((np.void, wide_MD.shape[1] * wide_MD.itemsize)))[:, 0]
    _, first_U, kind_M = np.unique(whole_M, return_index=True, return_inverse=True)
    has_copies = len(first_U) < len(wide_MD)
    answer_DU = (wide_MD[first_U] if has_copies else wide_MD).T
    step = max(1, SCORES // max(1, len(answer_MD)))
    for start in range(0, len(query_ND), step):
        block = slice(start, start + step)
        with np.errstate(invalid="ignore"):  # NaN is a miss, not a mistake
            score_BM = query_ND[block].astype(np.float64) @ answer_DU
        score_BM = score_BM[:, kind_M] if has_copies else score_BM
        yield block, np.where(np.isnan(score_BM), -np.inf, score_BM)


def classification(ranks: Ranks, label_N: NDArray[np.integer], classes: int) -> Metrics:
    """Computes acc1, acc5 (null below 5 classes) and the mean recall of the classes that occur.

    Source: CLIP_benchmark's zeroshot_classification; the last is sklearn's balanced accuracy.
    """
    known, index_N, count_C = np.unique(label_N, return_inverse=True, return_counts=True)
    recall_C = np.bincount(index_N, ranks.hits(1), minlength=len(known)) / count_C
    # A class of few images weighs as much as one of many, so the mean has fewer effective trials.
    trials = len(known) ** 2 / (1 / count_C).sum()
    metrics: Metrics = {
        f"acc{k}": proportion(ranks.hits(k), k / classes) if classes >= k else None
        for k in CLASSIFICATION_KS
    }
    mean = interval(float(recall_C.mean()), trials)
    return {**metrics, "mean_per_class_recall": mean | {"chance": 1 / classes}}


def worst_group(
    hit_N: NDArray[np.floating],
    group_N: NDArray[np.integer],
    guess: float,
    ignored: Sequence[int] = (),
) -> dict[str, Any] | None:
    """Computes the least share of hits over groups, and its group; null if all are ignored.

    `guess` is the chance of a hit.

    Source: WILDS' worst-group accuracy (Koh et al. 2021). Ties go to the first group.
    Error: the interval is of that group alone; which group is worst is taken as known.
    """
    some_G = np.setdiff1d(group_N, ignored)
    if not len(some_G):
        return None
    count_G = np.array([(group_N == group).sum() for group in some_G])
    share_G = np.array([hit_N[group_N == group].mean() for group in some_G])
    worst = int(share_G.argmin())
    share = interval(float(share_G[worst]), int(count_G[worst]))
    return share | {"chance": least_share(guess, count_G), "group": int(some_G[worst])}


def retrieval(text_ranks: Ranks, image_ranks: Ranks, count_N: NDArray[np.integer]) -> Metrics:
    """Computes R@k of texts for each image (any of its own is a hit), and of images for each text.

    count_N is the number of texts of each image; an image without a text is a miss. mean_recall@1
    is the mean of both directions.

    Source: CLIP_benchmark's zeroshot_retrieval; the mean is DataComp's.
    """
    images, texts = len(text_ranks.better_N), len(image_ranks.better_N)
    trials = int((count_N > 0).sum())  # captions of one image are not independent
    metrics: dict[str, dict[str, Any]] = {}
    for k in RETRIEVAL_KS:
        by_text = interval(float(image_ranks.hits(k).mean()), trials)
        metrics[f"image_retrieval_recall@{k}"] = by_text | {"chance": min(1.0, k / images)}
        guess = float(any_of(count_N, texts, k).mean())
        metrics[f"text_retrieval_recall@{k}"] = proportion(text_ranks.hits(k), guess)
    both = [metrics[f"{kind}_retrieval_recall@1"] for kind in ("image", "text")]
    mean = interval(sum(recall["value"] for recall in both) / 2, trials)
    metrics["mean_recall@1"] = mean | {"chance": sum(recall["chance"] for recall in both) / 2}
    return {**metrics}


def association(
    rank_N: NDArray[np.int64], right_N: NDArray[np.bool_], instance_N: NDArray[np.integer]
) -> Metrics:
    """Computes the mean Jaccard index, over instances, of the right pictures and as many top ones.

    rank_N is the number of pictures of the instance that score better, NEVER without a score. With
    ties the index is its expectation over all orders. The means are over all instances; those with
    5 or 6 candidates; and those with 10 to 12, which is the main metric. Null without instances.

    Source: WinoGAViL (Bitton et al. 2022) as DataComp scores it.
    Error: the interval takes each instance as one trial; an index varies less than a hit does.
    """
    _, index_N, count_I = np.unique(instance_N, return_inverse=True, return_counts=True)
    answers_I = np.bincount(index_N, right_N, minlength=len(count_I)).astype(np.int64)
    _, tie_N, size_T = np.unique(
        np.stack([index_N, rank_N]), axis=1, return_inverse=True, return_counts=True
    )
    slot_N = answers_I[index_N] - np.minimum(rank_N, len(rank_N))  # places left for tied pictures
    tied_N = size_T[tie_N]
    both_I = np.bincount(index_N, right_N & (tied_N <= slot_N), minlength=len(count_I))
    index_I = both_I / (2 * answers_I - both_I)
    cut_N = (slot_N > 0) & (tied_N > slot_N)  # one tie of an instance, with too few places left
    for instance in np.unique(index_N[cut_N]):
        in_N = cut_N & (index_N == instance)
        ties = int(tied_N[in_N][0]), int(right_N[in_N].sum()), int(slot_N[in_N][0])
        index_I[instance] = jaccard_of_ties(int(answers_I[instance]), int(both_I[instance]), *ties)
    guess_I = np.array([jaccard_of_guesses(n, a) for n, a in zip(count_I, answers_I, strict=True)])
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


def pairs(ranks: Ranks, pattern_N: Sequence[str]) -> Metrics:
    """Computes the share of pairs both of whose texts choose their own picture, and by pattern.

    Rows 2 i and 2 i + 1 are a pair; a rank is 0 if a text's own picture scores above the other's.

    Source: MMVP-VLM (Tong et al. 2024), whose code takes ties as the second picture; here a tie is
    half a hit.
    """
    hit_P = ranks.hits(1).reshape(-1, 2).prod(axis=1)
    pattern_P = np.array(pattern_N[::2])
    by_pattern = {f"{PAIRS}_{name}": hit_P[pattern_P == name] for name in np.unique(pattern_P)}
    return {name: proportion(hits, 1 / 4) for name, hits in ({PAIRS: hit_P} | by_pattern).items()}


def proportion(hit_N: NDArray[np.floating], guess: float) -> dict[str, Any]:
    """Returns the share of hits, its interval, and the value of guessing."""
    return interval(float(hit_N.mean()), len(hit_N)) | {"chance": guess}


def interval(share: float, trials: float) -> dict[str, float]:
    """Returns a share of independent trials and its 95 % interval: value, low, high."""
    low, high = wilson(share, trials)
    return {"value": share, "low": low, "high": high}


def least_share(guess: float, count_G: NDArray[np.integer]) -> float:
    """Returns the expected least share of hits over G groups, if trials hit at probability `guess`.

    It is below `guess`, as small groups vary more.

    Source: the sum over shares s of P(every group's share > s), each group binomial.
    """
    below_G = [_at_most(guess, int(count)) for count in count_G]
    share_S = np.unique(np.concatenate([np.arange(n + 1) / n for n in count_G]))
    above_S = np.ones(len(share_S))
    for count, below in zip(count_G, below_G, strict=True):
        hits_S = np.floor(share_S * count + 1e-9).astype(np.int64)
        above_S *= 1 - below[hits_S]
    return float(share_S[0] + (np.diff(share_S) * above_S[:-1]).sum())


def any_of(own_N: NDArray[np.integer], texts: int, k: int) -> NDArray[np.float64]:
    """Returns (N,) the chance that any of a picture's own texts is among k random texts."""
    taken = min(k, texts)
    own_U, index_N = np.unique(own_N, return_inverse=True)
    none_U = [comb(texts - int(own), taken) / comb(texts, taken) for own in own_U]
    return 1 - np.array(none_U)[index_N]


@cache
def jaccard_of_guesses(candidates: int, answers: int) -> float:
    """Returns the expected Jaccard index of the right answers and as many random candidates."""
    return jaccard_of_ties(answers, 0, candidates, answers, answers)


@cache
def jaccard_of_ties(answers: int, sure: int, tied: int, right: int, slots: int) -> float:
    """Returns the expected Jaccard index of `answers` right candidates and as many taken ones.

    `sure` right ones are taken without a tie; the last `slots` are random ones of `tied`
    candidates, `right` of which are right.
    """
    ways = comb(tied, slots)
    return sum(
        comb(right, more)
        * comb(tied - right, slots - more)
        / ways
        * (sure + more)
        / (2 * answers - sure - more)
        for more in range(min(right, slots) + 1)
    )


def _at_most(guess: float, count: int) -> NDArray[np.float64]:
    """Returns P(hits <= h) for h of 0 to `count`."""
    if guess >= 1:
        return np.append(np.zeros(count), 1.0)
    hit = np.arange(count)
    ratio = np.log((count - hit) / (hit + 1)) + np.log(guess / (1 - guess))
    logs = np.append(0.0, np.cumsum(ratio)) + count * np.log1p(-guess)
    return np.minimum(np.cumsum(np.exp(logs)), 1.0)
