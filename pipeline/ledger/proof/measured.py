"""Every metric of every evaluated model, and what it would be on other items of the task.

The main metric of a task is the one that results.json names: that of DataComp's rules, else R@5 of
the pictures of captions, else top 5, else top 1. No top 5 of 12 classes or fewer is taken up:
guessing is good at it. A fine task has more than 12 classes, or is a retrieval.

Other items are draws, with replacement, of those that a task holds. A metric is read off the stored
rank of each item again, as a ratio of two sums over items, by group: its value is the mean over
groups. A reading that does not give the stored value is none.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.evaluated import FEW_CLASSES, NEVER, Ranks
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.stats import DRAWS, draw_weights
from clipmill.pipeline.ledger.proof.trials import READERS, Task, Trial

# Shapes: N rows of ranks, K terms, G groups, S models, D draws, B of them held at a time.

AT = re.compile(r"(acc|image_retrieval_recall@|text_retrieval_recall@)(\d+)$")
PER_CLASS, BOTH_WAYS, MACRO_F1 = "mean_per_class_recall", "mean_recall@1", "F1-macro_all"
JACCARD = {
    "avg_jaccard_score": (0, 99),
    "jaccard_score_5-6": (0, 6),
    "jaccard_score_10-12": (10, 99),
}
BLOCK = 2**22  # weights held at a time: 16 MB


@dataclass(frozen=True)
class Terms:
    """The terms of a metric's sums: the item of each, what it adds above and below the line. Those
    of a group stand together."""

    item_K: NDArray[np.int64]
    above_K: NDArray[np.float64]
    below_K: NDArray[np.float64]
    starts_G: NDArray[np.int64]  # where each group begins

    @property
    def value(self) -> float:
        """The metric, each item counted once."""
        below_G = np.add.reduceat(self.below_K, self.starts_G)
        return float((np.add.reduceat(self.above_K, self.starts_G) / below_G).mean())

    def has_the_items_of(self, other: "Terms") -> bool:
        """Whether they differ in what is above the line alone."""
        pairs = zip(vars(self).items(), vars(other).values(), strict=True)
        return all(np.array_equal(a, b) for (name, a), b in pairs if name != "above_K")


def terms(metric: str, stored: Mapping[str, Any], ranks: pa.Table) -> Terms | None:
    """The terms of a metric by its name and what results.json holds of it; None where the ranks do
    not tell it."""
    try:
        found = _terms(metric, stored, ranks)
    except KeyError:  # a column of ranks that an older evaluation did not store
        return None
    return found if found and abs(found.value - stored["value"]) < 1e-9 else None


def redrawn(models: Sequence[Terms], key: int) -> NDArray[np.float64]:
    """(S, D) the metric of each model on each draw; the same draws whatever the metric and model.

    A group of which a draw has no item counts for nothing there.
    """
    if not all(one.has_the_items_of(models[0]) for one in models):
        return np.concatenate([redrawn([one], key) for one in models])
    first = models[0]
    above_KS = np.stack([one.above_K for one in models], axis=1).astype(np.float32)
    below_K, ends_G = first.below_K.astype(np.float32), [*first.starts_G[1:], len(first.item_K)]
    blocks = []
    for weight_BN in _weights(int(first.item_K.max()) + 1, key):
        total_BS = np.zeros((len(weight_BN), len(models)))
        groups_B = np.zeros(len(weight_BN))
        for start, end in zip(first.starts_G, ends_G, strict=True):
            weight_BK = weight_BN[:, first.item_K[start:end]]
            below_B = (weight_BK @ below_K[start:end]).astype(np.float64)
            total_BS += (weight_BK @ above_KS[start:end]) / np.where(below_B > 0, below_B, 1)[
                :, None
            ]
            groups_B += below_B > 0
        blocks.append(total_BS / np.maximum(groups_B, 1)[:, None])
    return np.concatenate(blocks).T


def _weights(items: int, key: int) -> Iterator[NDArray[np.float32]]:
    step = max(1, min(DRAWS, BLOCK // items))
    for first in range(0, DRAWS, step):
        yield draw_weights(items, key, first, min(step, DRAWS - first))


def _terms(metric: str, stored: Mapping[str, Any], ranks: pa.Table) -> Terms | None:
    if metric == BOTH_WAYS:
        ways = [_hits(ranks, f"{way}_retrieval_recall@", 1) for way in ("image", "text")]
        hit_K = np.concatenate([hit_K for _, hit_K in ways])
        group_K = np.repeat([0, 1], [len(hit_K) for _, hit_K in ways])
        return _by_group(np.concatenate([item_K for item_K, _ in ways]), hit_K, group_K)
    if at := AT.match(metric):
        item_K, hit_K = _hits(ranks, at[1], int(at[2]))
        return _by_group(item_K, hit_K, np.zeros(len(item_K)))
    if metric in JACCARD:
        return _jaccard(ranks, *JACCARD[metric])
    if metric == MACRO_F1:
        label_N, guess_N = (ranks[name].fill_null(-1).to_numpy() for name in ("label", "predicted"))
        both_K, item_K = np.concatenate([label_N, guess_N]), np.tile(np.arange(len(label_N)), 2)
        above_K = np.concatenate([2.0 * (label_N == guess_N), np.zeros(len(label_N))])
        occurs_K = np.isin(both_K, label_N)
        return _by_group(item_K[occurs_K], above_K[occurs_K], both_K[occurs_K])
    if metric == PER_CLASS:
        item_K, hit_K = _hits(ranks, "acc", 1)
        return _by_group(item_K, hit_K, ranks["label"].to_numpy())
    if "group" in stored:  # the worst one is taken as known
        item_K, hit_K = _hits(ranks, "acc", 5 if "top5" in metric else 1)
        in_K = ranks["group"].to_numpy() == stored["group"]
        return _by_group(item_K[in_K], hit_K[in_K], np.zeros(in_K.sum()))
    return None


def _hits(ranks: pa.Table, kind: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The items, and 1 where the right answer is among the k best; of ties the chance of it."""
    column = {"acc": "rank", "text_retrieval_recall@": "text_rank"}.get(kind, "image_ranks")
    counts, item_K = [ranks[column].combine_chunks()], np.arange(len(ranks))
    if f"{column}_tied" in ranks.column_names:
        counts += [ranks[f"{column}_{which}"].combine_chunks() for which in ("tied", "tied_right")]
    if column == "image_ranks":
        item_K = np.repeat(item_K, counts[0].value_lengths().to_numpy())
        counts = [count.flatten() for count in counts]
    missing = NEVER, 0, 1
    filled = [np.asarray(it.fill_null(null)) for it, null in zip(counts, missing, strict=False)]
    return item_K, Ranks(*filled).hits(k)


def _jaccard(ranks: pa.Table, least: int, most: int) -> Terms | None:
    """Of instances with so many candidates: right ones among as many that score best."""
    right_N, rank_N = ranks["is_right"].to_numpy(), ranks["rank"].fill_null(NEVER).to_numpy()
    _, index_N, count_I = np.unique(
        ranks["instance"].to_numpy(), return_inverse=True, return_counts=True
    )
    wanted_I = np.bincount(index_N, right_N, minlength=len(count_I))
    both_I = np.bincount(index_N, right_N & (rank_N < wanted_I[index_N]), minlength=len(count_I))
    instance_K = np.flatnonzero((count_I >= least) & (count_I <= most))
    index_K = (both_I / (2 * wanted_I - both_I))[instance_K]
    return _by_group(instance_K, index_K, np.zeros(len(instance_K))) if len(instance_K) else None


def _by_group(
    item_K: NDArray[np.int64], above_K: NDArray[np.float64], group_K: NDArray[Any]
) -> Terms:
    order_K = np.argsort(group_K, kind="stable")
    starts_G = np.unique(group_K[order_K], return_index=True)[1]
    return Terms(item_K[order_K], above_K[order_K], np.ones(len(item_K)), starts_G)


# Shapes: S models that have the metric, D draws of a task's items.

TELLING = ("image_retrieval_recall@5", "acc5", "acc1")  # where an older evaluation names none
HEADLINE = "mean of fine tasks"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of one task. `models` are the numbers of those that have it."""

    task: str
    metric: str
    chance: float | None  # its value by guessing
    is_main: bool  # the one that counts of its task
    is_fine: bool
    models: tuple[int, ...]
    value_S: NDArray[np.float64]
    draw_SD: NDArray[np.float64] | None  # on each draw of the items; None where no ranks tell

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.metric


def measured(trials: Sequence[Trial]) -> list[Measured]:
    """Every metric of every task, the tasks in the order in which they come.

    Tasks of one name whose content or rules differ are two, and never compared.
    """
    by_task: dict[tuple[str, str], dict[int, Task]] = {}
    for number, trial in enumerate(trials):
        for name, task in trial.tasks.items():
            by_task.setdefault((name, task.digest), {})[number] = task
    names = [name for name, _ in by_task]
    found: list[Measured] = []
    with ThreadPoolExecutor(READERS) as pool:
        for (name, digest), of in by_task.items():
            ranks = dict(zip(of, pool.map(_ranks, of.values()), strict=True))
            told = f"{name} ({digest})" if names.count(name) > 1 else name
            found += _of_task(told, of, ranks)
    return found


def telling(every: Sequence[Measured]) -> list[Measured]:
    """The main metric of each task, retrieval first."""
    return sorted((one for one in every if one.is_main), key=lambda one: one.metric != TELLING[0])


def mean_of(tasks: Sequence[Measured]) -> Measured:
    """The mean of some tasks that the same models have; their items are drawn apart."""
    chances = [one.chance for one in tasks if one.chance is not None]
    draws = [one.draw_SD for one in tasks if one.draw_SD is not None]
    return Measured(
        task=HEADLINE,
        metric="",
        chance=sum(chances) / len(tasks) if len(chances) == len(tasks) else None,
        is_main=True,
        is_fine=True,
        models=tasks[0].models,
        value_S=np.mean([one.value_S for one in tasks], axis=0),
        draw_SD=np.mean(draws, axis=0) if len(draws) == len(tasks) else None,
    )


def _of_task(
    name: str, of: dict[int, Task], ranks: dict[int, pa.Table | None]
) -> Iterator[Measured]:
    first = next(iter(of.values()))
    every = dict.fromkeys(metric for task in of.values() for metric in task.metrics)
    metrics = [metric for metric in every if not _is_easy(metric, first.classes)]
    main = next((known for known in (first.main, *TELLING, *metrics) if known in metrics), None)
    for metric in metrics:
        held = {number: task for number, task in of.items() if metric in task.metrics}
        yield Measured(
            task=name,
            metric=metric,
            chance=next(iter(held.values())).metrics[metric].get("chance"),
            is_main=metric == main,
            is_fine=first.kind == "retrieval" or (first.classes or 0) > FEW_CLASSES,
            models=tuple(held),
            value_S=np.array([task.metrics[metric]["value"] for task in held.values()]),
            draw_SD=_draws(metric, held, ranks),
        )


def _is_easy(metric: str, classes: int | None) -> bool:
    """Whether it is a top k above 1 of few classes."""
    at = AT.match(metric)
    is_top_k = at is not None and at[1] == "acc" and int(at[2]) > 1
    return is_top_k and classes is not None and classes <= FEW_CLASSES


def _draws(
    metric: str, held: dict[int, Task], ranks: dict[int, pa.Table | None]
) -> NDArray[np.float64] | None:
    """None where the ranks of any model do not tell the metric."""
    found = []
    for number, task in held.items():
        table = ranks[number]
        of = None if table is None else terms(metric, task.metrics[metric], table)
        if of is None:
            return None
        found.append(of)
    return redrawn(found, int(next(iter(held.values())).digest, 16))


def _ranks(task: Task) -> pa.Table | None:
    """The stored ranks; None of an evaluation that leaves none."""
    held = Outputs(task.folder)
    if task.ranks not in held.names:
        return None
    return pq.read_table(pa.BufferReader(held.read(task.ranks)))
