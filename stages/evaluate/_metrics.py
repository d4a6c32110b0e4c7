"""Computes zero-shot metrics from ranks, with 95 % intervals and the value of guessing.

A rank is 0 if the right answer scores best; a hit at k is a rank below k. With ties, a hit is its
probability over all orders of the tied answers: a model that scores all alike is guessing.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.evaluated import NEVER, Ranks
from clipmill.metadata.stats import wilson

# Shapes: N queries or pictures, M answers, C classes, G groups, I instances, D width of the
# embedding, P pairs of a picture and a prediction, or a class that it has; R bootstrap draws.

SCORES = 2**22  # (queries, answers) scores in memory: 32 MB
CLASSIFICATION_KS = (1, 5)
RETRIEVAL_KS = (1, 5, 10)
HARD = 10  # least candidates of a WinoGAViL instance in the main metric
DRAWS = 200  # bootstrap samples of the pictures, for F1, which is no mean over them
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
    for block, score_BM in _scores(query_ND, answer_MD):
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


def best_answers(
    query_ND: NDArray[np.floating], answer_MD: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (P,) queries, ascending, and (P,) their best answers: several if they tie.

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
    """Yields blocks of queries, and (B, M) their scores; NaN becomes -inf, which is never best.

    Equal answers are multiplied once, as their position in a matrix might change the last bit.
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
    score_CN = chain.from_iterable(score_BN for _, score_BN in _scores(class_CD, picture_ND))
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
    cut_N = (slot_N > 0) & (tied_N > slot_N)
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


def _blocks(queries: int, answers: int) -> Iterator[slice]:
    step = max(1, SCORES // max(1, answers))
    for start in range(0, queries, step):
        yield slice(start, start + step)


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


def f1_of_guesses(count_C: NDArray[np.integer]) -> float:
    """Returns the mean F1 of the classes that occur, if each picture is given a random class.

    Error: the ratio of expected counts, not the expected ratio; within 2 % from 100 pictures on.
    """
    some_C = count_C[count_C > 0]
    guessed = count_C.sum() / len(count_C)  # of each class
    return float((2 * some_C / len(count_C) / (some_C + guessed)).mean())


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
