"""Reads every metric of every evaluated model, and its value on other draws of the task's items.

A task's main metric is the one named by results.json: DataComp's rules, else image R@5 of captions,
else top 5, else top 1. Top 5 is dropped for 12 classes or fewer: guessing is good at it. A fine
task has more than 12 classes, or is a retrieval.

Draws are bootstrap samples, with replacement, of a task's items. A metric is computed again from
the stored rank of each item, as a mean over items, by group; its value is the mean over groups.
Terms that do not reproduce the stored value are discarded.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.evaluated import FEW_CLASSES, NEVER, Ranks
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.uid import mixed
from clipmill.pipeline.ledger.proof.noise import DRAWS, draw_weights
from clipmill.pipeline.ledger.proof.trials import READERS, Task, Trial

# Shapes: N rows of ranks, K terms, G groups, S models, D draws, B of them held at a time.

AT = re.compile(r"(acc|image_recall@|image_retrieval_recall@|text_retrieval_recall@)(\d+)$")
PAIRS = "pair_accuracy"
PER_CLASS, BOTH_WAYS, MACRO_F1 = "mean_per_class_recall", "mean_recall@1", "F1-macro_all"
JACCARD = {
    "avg_jaccard_score": (0, 99),
    "jaccard_score_5-6": (0, 6),
    "jaccard_score_10-12": (10, 99),
}
Drawing = Callable[[int, int], Iterator[NDArray[np.float32]]]  # items, key -> (B, N) weights
BLOCK = 2**22  # weights held at a time: 16 MB


@dataclass(frozen=True)
class Terms:
    """The terms of a metric's means: each one's item and value, sorted by group."""

    item_K: NDArray[np.int64]
    value_K: NDArray[np.float64]
    starts_G: NDArray[np.int64]  # first term of each group

    @property
    def value(self) -> float:
        """Returns the metric, with each item counted once."""
        terms_G = np.diff(self.starts_G, append=len(self.item_K))
        return float((np.add.reduceat(self.value_K, self.starts_G) / terms_G).mean())


def terms(metric: str, stored: Mapping[str, Any], ranks: pa.Table) -> Terms | None:
    """Returns the terms of a metric by its name and entry in results.json; None if the ranks do not
    give the stored value."""
    try:
        parts = _terms(metric, stored, ranks)
    except KeyError:  # an older evaluation did not store this column of ranks
        return None
    return parts if parts and abs(parts.value - stored["value"]) < 1e-9 else None


def redrawn(
    models: Sequence[Terms], key: int, drawing: Drawing | None = None
) -> NDArray[np.float64]:
    """Returns (S, D) the metric of each model on each draw; all metrics and models share the draws.

    A group without an item in a draw is left out there.
    """
    first = models[0]
    if not all(
        np.array_equal(model.item_K, first.item_K)
        and np.array_equal(model.starts_G, first.starts_G)
        for model in models
    ):
        return np.concatenate([redrawn([model], key, drawing) for model in models])
    value_KS = np.stack([model.value_K for model in models], axis=1).astype(np.float32)
    ends_G, one_K = [*first.starts_G[1:], len(first.item_K)], np.ones(len(first.item_K), np.float32)
    blocks = []
    for weight_BN in (drawing or _weights)(int(first.item_K.max()) + 1, key):
        total_BS = np.zeros((len(weight_BN), len(models)))
        groups_B = np.zeros(len(weight_BN))
        for start, end in zip(first.starts_G, ends_G, strict=True):
            weight_BK = weight_BN[:, first.item_K[start:end]]
            count_B1 = (weight_BK @ one_K[start:end]).astype(np.float64)[:, None]
            total_BS += weight_BK @ value_KS[start:end] / np.maximum(count_B1, 1)
            groups_B += count_B1[:, 0] > 0
        blocks.append(total_BS / np.maximum(groups_B, 1)[:, None])
    return np.concatenate(blocks).T


def _weights(items: int, key: int) -> Iterator[NDArray[np.float32]]:
    step = max(1, min(DRAWS, BLOCK // items))
    for first in range(0, DRAWS, step):
        yield draw_weights(items, key, first, min(step, DRAWS - first))


def halves(items: int, key: int) -> Iterator[NDArray[np.float32]]:
    """Yields (2, N) the weights of one half of the items, by hash, and of the other."""
    is_first_N = mixed(np.arange(items, dtype=np.uint64) ^ np.uint64(key)) < np.uint64(2**63)
    yield np.stack([is_first_N, ~is_first_N]).astype(np.float32)


def _terms(metric: str, stored: Mapping[str, Any], ranks: pa.Table) -> Terms | None:
    if metric == BOTH_WAYS:
        ways = [_hits(ranks, f"{way}_retrieval_recall@", 1) for way in ("image", "text")]
        hit_K = np.concatenate([hit_K for _, hit_K in ways])
        group_K = np.repeat([0, 1], [len(hit_K) for _, hit_K in ways])
        return _by_group(np.concatenate([item_K for item_K, _ in ways]), hit_K, group_K)
    if match := AT.match(metric):
        item_K, hit_K = _hits(ranks, match[1], int(match[2]))
        return _by_group(item_K, hit_K)
    if metric.startswith(PAIRS):  # in results.json `pair_accuracy_Texts` is of one pattern
        hit_K = _hits(ranks, "acc", 1)[1].reshape(-1, 2).prod(axis=1)
        pattern_K = ranks["pattern"].to_numpy()[::2]
        in_K = (pattern_K == metric.removeprefix(f"{PAIRS}_")) | (metric == PAIRS)
        return _by_group(np.flatnonzero(in_K), hit_K[in_K])
    if metric in JACCARD:
        return _jaccard(ranks, *JACCARD[metric])
    if metric == MACRO_F1:
        label_N, guess_N = (ranks[name].fill_null(-1).to_numpy() for name in ("label", "predicted"))
        both_K, item_K = np.concatenate([label_N, guess_N]), np.tile(np.arange(len(label_N)), 2)
        value_K = np.concatenate([2.0 * (label_N == guess_N), np.zeros(len(label_N))])
        occurs_K = np.isin(both_K, label_N)
        return _by_group(item_K[occurs_K], value_K[occurs_K], both_K[occurs_K])
    if metric == PER_CLASS:
        item_K, hit_K = _hits(ranks, "acc", 1)
        return _by_group(item_K, hit_K, ranks["label"].to_numpy())
    if "group" in stored:  # results.json names the worst group
        item_K, hit_K = _hits(ranks, "acc", 5 if "top5" in metric else 1)
        in_K = ranks["group"].to_numpy() == stored["group"]
        return _by_group(item_K[in_K], hit_K[in_K])
    return None


def _hits(ranks: pa.Table, kind: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the items, and 1 for a right answer in the top k; ties give its probability."""
    of_row = {"acc": "rank", "image_recall@": "rank", "text_retrieval_recall@": "text_rank"}
    column = of_row.get(kind, "image_ranks")
    counts, item_K = [ranks[column].combine_chunks()], np.arange(len(ranks))
    if f"{column}_tied" in ranks.column_names:
        counts += [ranks[f"{column}_{which}"].combine_chunks() for which in ("tied", "tied_right")]
    if column == "image_ranks":
        item_K = np.repeat(item_K, counts[0].value_lengths().to_numpy())
        counts = [count.flatten() for count in counts]
    missing = NEVER, 0, 1
    filled = [np.asarray(c.fill_null(null)) for c, null in zip(counts, missing, strict=False)]
    return item_K, Ranks(*filled).hits(k)


def _jaccard(ranks: pa.Table, least: int, most: int) -> Terms | None:
    """Returns terms of the Jaccard index between right candidates and as many top-ranked ones, for
    instances with `least` to `most` candidates."""
    right_N, rank_N = ranks["is_right"].to_numpy(), ranks["rank"].fill_null(NEVER).to_numpy()
    _, index_N, count_I = np.unique(
        ranks["instance"].to_numpy(), return_inverse=True, return_counts=True
    )
    wanted_I = np.bincount(index_N, right_N, minlength=len(count_I))
    both_I = np.bincount(index_N, right_N & (rank_N < wanted_I[index_N]), minlength=len(count_I))
    instance_K = np.flatnonzero((count_I >= least) & (count_I <= most))
    index_K = (both_I / (2 * wanted_I - both_I))[instance_K]
    return _by_group(instance_K, index_K) if len(instance_K) else None


def _by_group(
    item_K: NDArray[np.int64], value_K: NDArray[np.float64], group_K: NDArray[Any] | None = None
) -> Terms:
    group_K = np.zeros(len(item_K)) if group_K is None else group_K  # all are of one
    order_K = np.argsort(group_K, kind="stable")
    starts_G = np.unique(group_K[order_K], return_index=True)[1]
    return Terms(item_K[order_K], value_K[order_K], starts_G)


# Shapes: S models that have the metric, D draws of a task's items.

# Main metrics of older evaluations, which name none.
MAIN_METRICS = ("image_retrieval_recall@5", "acc5", "acc1")
HEADLINE = "mean of fine tasks"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of one task; `models` are the numbers of the models that have it."""

    task: str
    metric: str
    chance: float | None  # its value by guessing
    is_main: bool  # the task's main metric
    is_fine: bool
    models: tuple[int, ...]
    value_S: NDArray[np.float64]
    draw_SD: NDArray[np.float64] | None  # on each draw of the items; None without ranks for it

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.metric


def measured(trials: Sequence[Trial], drawing: Drawing | None = None) -> list[Measured]:
    """Returns every metric of every task, tasks in order of first occurrence.

    Tasks of one name with different content or rules stay apart and are never compared. Of tasks
    with equal content only the first is fine: the items of both would count as independent.
    """
    by_task: dict[tuple[str, str], dict[int, Task]] = {}
    for number, trial in enumerate(trials):
        for name, task in trial.tasks.items():
            by_task.setdefault((name, task.digest), {})[number] = task
    names = [name for name, _ in by_task]
    metrics: list[Measured] = []
    first: dict[tuple[str, str | None], str] = {}  # name by content
    with ThreadPoolExecutor(READERS) as pool:
        for (name, digest), models in by_task.items():
            ranks = dict(zip(models, pool.map(_ranks, models.values()), strict=True))
            label = f"{name} ({digest})" if names.count(name) > 1 else name
            task = next(iter(models.values()))
            files = task.content, task.kind  # a probe is no copy
            is_copy = bool(task.content) and first.setdefault(files, name) != name
            metrics += _of_task(label, is_copy, models, ranks, drawing)
    return metrics


def main_metrics(metrics: Sequence[Measured]) -> list[Measured]:
    """Returns the main metric of each task, retrieval first."""
    return sorted(
        (metric for metric in metrics if metric.is_main),
        key=lambda metric: metric.metric != MAIN_METRICS[0],
    )


def mean_of(tasks: Sequence[Measured]) -> Measured:
    """Returns the mean over tasks of the same models; the items of each are drawn independently."""
    chances = [task.chance for task in tasks if task.chance is not None]
    draws = [task.draw_SD for task in tasks if task.draw_SD is not None]
    return Measured(
        task=HEADLINE,
        metric="",
        chance=sum(chances) / len(tasks) if len(chances) == len(tasks) else None,
        is_main=True,
        is_fine=True,
        models=tasks[0].models,
        value_S=np.mean([task.value_S for task in tasks], axis=0),
        draw_SD=np.mean(draws, axis=0) if len(draws) == len(tasks) else None,
    )


def _of_task(
    name: str,
    is_copy: bool,
    models: dict[int, Task],
    ranks: dict[int, pa.Table | None],
    drawing: Drawing | None,
) -> Iterator[Measured]:
    first = next(iter(models.values()))
    every = dict.fromkeys(metric for task in models.values() for metric in task.metrics)
    metrics = [metric for metric in every if not _is_easy(metric, first.classes)]
    main = next((m for m in (first.main, *MAIN_METRICS, *metrics) if m in metrics), None)
    for metric in metrics:
        having = {number: task for number, task in models.items() if metric in task.metrics}
        yield Measured(
            task=name,
            metric=metric,
            chance=next(iter(having.values())).metrics[metric].get("chance"),
            is_main=metric == main,
            is_fine=not is_copy
            and (
                first.kind == "retrieval"
                or (first.kind != "probe" and (first.classes or 0) > FEW_CLASSES)
            ),
            models=tuple(having),
            value_S=np.array([task.metrics[metric]["value"] for task in having.values()]),
            draw_SD=_draws(metric, having, ranks, drawing),
        )


def _is_easy(metric: str, classes: int | None) -> bool:
    """Returns whether a metric is a top k above 1 of few classes."""
    match = AT.match(metric)
    is_top_k = match is not None and match[1] == "acc" and int(match[2]) > 1
    return is_top_k and classes is not None and classes <= FEW_CLASSES


def _draws(
    metric: str,
    models: dict[int, Task],
    ranks: dict[int, pa.Table | None],
    drawing: Drawing | None,
) -> NDArray[np.float64] | None:
    """Returns the metric on each draw; None if any model's ranks do not give it."""
    models_terms = []
    for number, task in models.items():
        table = ranks[number]
        model_terms = None if table is None else terms(metric, task.metrics[metric], table)
        if model_terms is None:
            return None
        models_terms.append(model_terms)
    return redrawn(models_terms, int(next(iter(models.values())).digest, 16), drawing)


def _ranks(task: Task) -> pa.Table | None:
    """Returns the stored ranks; None if an evaluation leaves none."""
    outputs = Outputs(task.folder)
    if task.ranks not in outputs.names:
        return None
    return pq.read_table(pa.BufferReader(outputs.read(task.ranks)))
