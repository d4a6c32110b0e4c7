"""What a metric would be on other items: on draws, with replacement, of those that a task holds.

Every metric is read off the stored rank of each item, as a ratio of sums over items, by group: its
value is the mean over groups.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metadata.stats import DRAWS, draw_weights

# Shapes: N items (pictures), K terms, G groups, S models, D draws.

AT = re.compile(r"(acc|image_retrieval_recall@|text_retrieval_recall@)(\d+)$")
PER_CLASS = "mean_per_class_recall"
BLOCK = 2**22  # weights held at a time: 16 MB


@dataclass(frozen=True)
class Terms:
    """Of a metric's sums: the item that each term belongs to, its group, and whether it is a hit.

    The terms of a group stand together.
    """

    item_K: NDArray[np.int64]
    starts_G: NDArray[np.int64]  # where each group begins
    hit_K: NDArray[np.float64]


def terms(metric: str, ranks: pa.Table) -> Terms | None:
    """The terms of a metric, by its name in results.json; None of one that ranks do not tell."""
    known = AT.match(metric)
    if known:
        name, k = known[1], int(known[2])
        column = {"acc": "rank", "text_retrieval_recall@": "text_rank"}.get(name, "image_ranks")
        if column not in ranks.column_names:
            return None
        rank = ranks[column].combine_chunks()
        item_K = np.arange(len(ranks))
        if column == "image_ranks":
            item_K, rank = np.repeat(item_K, rank.value_lengths().to_numpy()), rank.flatten()
        hit_K = np.asarray(rank.fill_null(np.iinfo(np.int64).max)) < k  # null: none is right
        return Terms(item_K, np.zeros(1, np.int64), hit_K.astype(np.float64))
    if metric == PER_CLASS and {"rank", "label"} <= set(ranks.column_names):
        label_N = ranks["label"].to_numpy()
        item_K = np.argsort(label_N, kind="stable")
        starts_G = np.unique(label_N[item_K], return_index=True)[1]
        return Terms(item_K, starts_G, (ranks["rank"].to_numpy()[item_K] < 1).astype(np.float64))
    return None


def redrawn(models: Sequence[Terms], items: int, key: int) -> NDArray[np.float64]:
    """(S, D) the metric of each model on each draw; the same draws whatever the metric and model.

    A group of which a draw has no item counts for nothing there.
    """
    hit_KS = np.stack([one.hit_K for one in models], axis=1).astype(np.float32)
    item_K, starts_G = models[0].item_K, models[0].starts_G
    ends_G = [*starts_G[1:], len(item_K)]
    blocks = []
    for weight_BN in _weights(items, key):
        total_BS = np.zeros((len(weight_BN), len(models)))
        groups_B1 = np.zeros((len(weight_BN), 1))
        for start, end in zip(starts_G, ends_G, strict=True):
            weight_BK = weight_BN[:, item_K[start:end]]
            all_B1 = weight_BK.sum(axis=1, keepdims=True, dtype=np.float64)
            total_BS += (weight_BK @ hit_KS[start:end]) / np.maximum(all_B1, 1)
            groups_B1 += all_B1 > 0
        blocks.append(total_BS / np.maximum(groups_B1, 1))
    return np.concatenate(blocks).T


def _weights(items: int, key: int) -> Iterator[NDArray[np.float32]]:
    step = max(1, min(DRAWS, BLOCK // max(1, items)))
    for first in range(0, DRAWS, step):
        yield draw_weights(items, key, first, min(step, DRAWS - first))
