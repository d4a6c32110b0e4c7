"""Zero-shot metrics, all of them read off ranks, with 95 % intervals.

A rank is 0 where the right answer scores best; a hit at k is a rank below k. Ties go to the answer
that stands first.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metadata.stats import wilson

# Shapes: N queries, M answers, C classes, D width of the embedding.

SCORES = 2**22  # (queries, answers) scores held at a time: 32 MB
CLASSIFICATION_KS = (1, 5)
RETRIEVAL_KS = (1, 5, 10)
NEVER = np.iinfo(np.int64).max  # rank of what no answer is right for: a hit at no k


def best_ranks(
    query_ND: NDArray[np.floating],
    answer_MD: NDArray[np.floating],
    query_group_N: NDArray[np.integer],
    answer_group_M: NDArray[np.integer],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) rank of the best answer of each query's group, and (N,) the answer that came first.

    Cosines of unit vectors in float64. The rank is NEVER where no answer is of the query's group.
    """
    rank_N = np.empty(len(query_ND), np.int64)
    first_N = np.empty(len(query_ND), np.int64)
    for block in _blocks(len(query_ND), len(answer_MD)):
        score_BM = query_ND[block].astype(np.float64) @ answer_MD.T.astype(np.float64)
        right_BM = query_group_N[block, None] == answer_group_M
        best_B1 = np.where(right_BM, score_BM, -np.inf).max(axis=1, keepdims=True)
        place_B = (right_BM & (score_BM == best_B1)).argmax(axis=1)
        before_BM = np.arange(len(answer_MD)) < place_B[:, None]
        rank_B = ((score_BM > best_B1) | ((score_BM == best_B1) & before_BM)).sum(axis=1)
        rank_N[block] = np.where(right_BM.any(axis=1), rank_B, NEVER)
        first_N[block] = score_BM.argmax(axis=1)
    return rank_N, first_N


def classification(
    rank_N: NDArray[np.int64], label_N: NDArray[np.integer], classes: int
) -> dict[str, Any]:
    """acc1, acc5 (null below 5 classes) and the mean of the recalls of the classes that occur.

    Source: CLIP_benchmark's zeroshot_classification; the last is sklearn's balanced accuracy.
    """
    known, index_N, count_C = np.unique(label_N, return_inverse=True, return_counts=True)
    recall_C = np.bincount(index_N, rank_N < 1, minlength=len(known)) / count_C
    # A class of few images moves the mean as much as one of many: fewer images' worth of proof.
    trials = len(known) ** 2 / (1 / count_C).sum()
    acc = {f"acc{k}": proportion(rank_N < k) if classes >= k else None for k in CLASSIFICATION_KS}
    return {**acc, "mean_per_class_recall": interval(float(recall_C.mean()), trials)}


def retrieval(text_rank_N: NDArray[np.int64], image_rank_K: NDArray[np.int64]) -> dict[str, Any]:
    """R@k of the texts found for each image (one of its own is enough), and of each text's image.

    An image without a text has found none: a miss.

    Source: CLIP_benchmark's zeroshot_retrieval.
    """
    images = int((text_rank_N != NEVER).sum())  # captions of one are no independent trials
    found: dict[str, Any] = {}
    for k in RETRIEVAL_KS:
        found[f"image_retrieval_recall@{k}"] = interval(float((image_rank_K < k).mean()), images)
        found[f"text_retrieval_recall@{k}"] = proportion(text_rank_N < k)
    return found


def proportion(hit_N: NDArray[np.bool_]) -> dict[str, float]:
    """Share of hits, with its interval."""
    return interval(float(hit_N.mean()), len(hit_N))


def interval(share: float, trials: float) -> dict[str, float]:
    """A share of independent trials, and the 95 % interval around it: value, low, high."""
    low, high = wilson(share, trials)
    return {"value": share, "low": low, "high": high}


def _blocks(queries: int, answers: int) -> Iterator[slice]:
    step = max(1, SCORES // max(1, answers))
    for start in range(0, queries, step):
        yield slice(start, start + step)
