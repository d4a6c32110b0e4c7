"""Scores a model on one task: embeds its pictures, and computes the metrics of its kind."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.evaluated import FEW_CLASSES, NEVER, Ranks
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.storage import Storage
from clipmill.stages.evaluate._bootstrap import best_answers, macro_f1, mean_average_precision
from clipmill.stages.evaluate._metrics import (
    PAIRS,
    Metrics,
    association,
    best_ranks,
    classification,
    pairs,
    retrieval,
    worst_group,
)
from clipmill.stages.models.image_text import ImageTextModel
from clipmill.stages.ops.tasks.folders import Finding, Sample, TaskFolder, refuse, samples
from clipmill.stages.ops.vectors.matrices import from_matrix, unit_rows

# Shapes: N pictures, K captions, C classes, I instances, T templates, D width of the embedding.

BATCH = 64  # decoded pictures in a batch
EMPTY = np.empty((0, 0, 3), np.uint8)
MEAN_AP = "mean_average_precision"
CLASS_TABLE = ".classes"
KEPT = 8  # sets of class vectors cached in a worker; ImageNet's by a large model is 4 MB
CLASSES: dict[str, NDArray[np.floating]] = {}  # by digest of model, class names and templates


def scored_task(
    folder: Storage, task: TaskFolder, model: ImageTextModel, stage: str, has_vectors: bool = False
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """Returns a task's entry in the results, and its tables by the end of the file's name.

    These are the ranks of its samples; with vectors, also those of its classes.
    """
    pictures = embed_pictures(folder, task, model, stage)
    metrics, ranks = SCORE[task.kind](task, pictures, model)
    tables = {"": ranks}
    if has_vectors and task.kind == "classification":
        tables[""] = ranks.append_column("embedding", from_matrix(pictures.embeddings))
        classes = {"class": task.classnames, "embedding": from_matrix(class_vectors(task, model))}
        scales = pa.array([getattr(model, "scale", None)] * len(task.classnames), pa.float64())
        tables[CLASS_TABLE] = pa.table({**classes, "scale": scales})
    metric = main_metric(task, metrics)
    result = {
        "kind": task.kind,
        "listed": task.listed.name if task.listed else None,
        "metric": metric,
        "chance": (metrics[metric] or {}).get("chance"),
        "pictures": len(pictures.keys),
        "classes": len(task.classnames) or None,
        "captions": sum(map(len, pictures.captions)) if task.is_retrieval else None,
        "instances": len(set(pictures.groups)) if task.kind == "association" else None,
        "metrics": metrics,
    }
    return result, tables


def main_metric(task: TaskFolder, metrics: Metrics) -> str:
    """Returns the main metric's name: DataComp's of a listed task, else by kind and classes."""
    if task.listed and task.listed.metric:
        return task.listed.metric
    if task.is_retrieval:
        return "image_retrieval_recall@5"
    if task.kind == "multilabel":
        return MEAN_AP
    if task.kind == "pairs":
        return PAIRS
    if task.kind == "association":
        hard = "jaccard_score_10-12"
        return hard if metrics[hard] else "avg_jaccard_score"
    return "acc5" if len(task.classnames) > FEW_CLASSES else "acc1"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A task's pictures as embeddings, with labels, captions and groups."""

    keys: list[str]
    embeddings: NDArray[np.float32]  # (N, D)
    labels: NDArray[np.int64]  # (N,)
    several: list[tuple[int, ...]]  # classes of each, of a multi-label task
    captions: list[tuple[str, ...]]
    groups: list[int | None]
    patterns: list[str]  # of a task of pairs


def embed_pictures(
    folder: Storage, task: TaskFolder, model: ImageTextModel, stage: str
) -> Pictures:
    """Embeds a task's pictures, decoding a batch ahead; raises StageError at an unfit picture."""
    known: list[Sample] = []
    embedded = [np.empty((0, model.width), np.float32)]
    every = samples(folder, task)

    def next_batch() -> list[Sample | Finding]:
        return list(islice(every, BATCH))

    with ThreadPoolExecutor(1) as thread:
        decoding = thread.submit(next_batch)
        while batch := decoding.result():
            decoding = thread.submit(next_batch)
            refuse([found for found in batch if isinstance(found, Finding)], stage, folder)
            decoded = [sample for sample in batch if isinstance(sample, Sample)]
            embedded.append(model.embed_images([sample.rgb for sample in decoded]))
            known += [replace(sample, rgb=EMPTY) for sample in decoded]
    if not known:
        empty = Finding("no sample", task.name, "put pictures into the shards of test/")
        refuse([empty], stage, folder)
    if task.is_retrieval and not any(sample.captions for sample in known):
        bare = Finding("no caption", task.name, "write some into KEY.txt, one a line")
        refuse([bare], stage, folder)
    return Pictures(
        keys=[sample.key for sample in known],
        embeddings=np.concatenate(embedded),
        labels=np.array([sample.label for sample in known], np.int64),
        several=[sample.labels for sample in known],
        captions=[sample.captions for sample in known],
        groups=[sample.group for sample in known],
        patterns=[sample.pattern for sample in known],
    )


def score_classification(
    task: TaskFolder, pictures: Pictures, model: ImageTextModel
) -> tuple[Metrics, pa.Table]:
    """Classifies pictures by the nearest class vector; returns metrics, and a row a picture."""
    class_CD = class_vectors(task, model)
    label_N, classes = pictures.labels, len(class_CD)
    ranks = best_ranks(pictures.embeddings, class_CD, label_N, np.arange(classes))
    row_P, class_P = best_answers(pictures.embeddings, class_CD)
    some, first_P = np.unique(row_P, return_index=True)
    first_N = np.full(len(label_N), -1)
    first_N[some] = class_P[first_P]
    predicted = pa.array(first_N, mask=first_N < 0)
    columns = {"key": pictures.keys, "label": label_N, "predicted": predicted}
    columns |= stored("rank", ranks)
    metrics = classification(ranks, label_N, classes)
    metric = task.listed.metric if task.listed else None
    if metric == "F1-macro_all":
        metrics[metric] = macro_f1(class_P, label_N, classes, row_P)
    if None not in pictures.groups:
        group_N = np.array(pictures.groups)
        k = 5 if metric == "acc_top5_wg" else 1
        by = task.listed.by if task.listed else None
        ignored = by.ignored if by else ()
        name = metric if by and metric else "acc_wg"
        hit_N = ranks.hits(k)
        metrics[name] = worst_group(hit_N, group_N, k / classes, ignored)
        if ignored:
            metrics[f"{name}_of_all"] = worst_group(hit_N, group_N, k / classes)
        columns["group"] = group_N
    return metrics, pa.table(columns)


def score_multilabel(
    task: TaskFolder, pictures: Pictures, model: ImageTextModel
) -> tuple[Metrics, pa.Table]:
    """Returns the mean average precision, and by picture its classes with their ranks."""
    picture_P = np.repeat(np.arange(len(pictures.keys)), list(map(len, pictures.several)))
    class_P = np.array([label for labels in pictures.several for label in labels], np.int64)
    metric, rank_P, tied_P = mean_average_precision(
        pictures.embeddings, class_vectors(task, model), picture_P, class_P
    )
    ends = np.cumsum([0, *map(len, pictures.several)], dtype=np.int32)
    lists = {"labels": class_P, "ranks": pa.array(rank_P, mask=rank_P == NEVER)}
    if (tied_P > 1).any():
        lists["ranks_tied"] = tied_P - 1
    columns = {n: pa.ListArray.from_arrays(ends, pa.array(v)) for n, v in lists.items()}
    return {MEAN_AP: metric}, pa.table({"key": pictures.keys, **columns})


def stored(name: str, ranks: Ranks) -> dict[str, Any]:
    """Returns the columns of ranks; null if no right answer has a rank.

    If any rank has ties, also the numbers of tied wrong and right answers.
    """
    never_N = ranks.better_N == NEVER
    columns = {name: pa.array(ranks.better_N, mask=never_N)}
    if np.any(ranks.wrong_N):
        tied = {f"{name}_tied": ranks.wrong_N, f"{name}_tied_right": ranks.right_N}
        columns |= {name: pa.array(count_N, mask=never_N) for name, count_N in tied.items()}
    return columns


def class_vectors(task: TaskFolder, model: ImageTextModel) -> NDArray[np.floating]:
    """Returns (C, D) unit rows: the mean of the unit vectors of each class's prompts, normalised.

    They are cached for tasks of equal classes and templates, such as ImageNet and its shifts.
    """
    # The network's name counts: ViT-B-32 and ViT-B-32-quickgelu differ with the same weights.
    known = [model.sha256, getattr(model, "network", None)]
    key = digest([*known, task.classnames, task.templates]) if model.sha256 else ""
    if key not in CLASSES:
        prompts = [text.format(c=name) for name in task.classnames for text in task.templates]
        prompt_CTD = embedded(prompts, model).reshape(len(task.classnames), -1, model.width)
        while len(CLASSES) >= KEPT:
            del CLASSES[next(iter(CLASSES))]
        CLASSES[key] = unit_rows(prompt_CTD.astype(np.float64).mean(axis=1))
    return CLASSES[key] if key else CLASSES.pop(key)


def embedded(texts: list[str], model: ImageTextModel) -> NDArray[np.float32]:
    """Embeds texts to (N, D) unit rows, NaN for bad ones; with little padding if the model can."""
    of_prompts = getattr(model, "embed_prompts", model.embed_texts)
    vectors: NDArray[np.float32] = of_prompts(texts)
    return vectors


def score_retrieval(
    task: TaskFolder, pictures: Pictures, model: ImageTextModel
) -> tuple[Metrics, pa.Table]:
    """Retrieves texts by pictures and pictures by texts; returns metrics, and a row a picture.

    Any caption of a picture is a hit. A picture without captions has a null rank, a miss.
    """
    count_N = np.array([len(captions) for captions in pictures.captions])
    text_KD = embedded([text for captions in pictures.captions for text in captions], model)
    picture_N = np.arange(len(count_N))
    picture_K = np.repeat(picture_N, count_N)
    text_ranks = best_ranks(pictures.embeddings, text_KD, picture_N, picture_K)
    image_ranks = best_ranks(text_KD, pictures.embeddings, picture_K, picture_N)
    ends = np.cumsum([0, *count_N], dtype=np.int32)
    columns = {"key": pictures.keys, **stored("text_rank", text_ranks)}
    for name, values in stored("image_ranks", image_ranks).items():
        columns[name] = pa.ListArray.from_arrays(ends, values)
    return retrieval(text_ranks, image_ranks, count_N), pa.table(columns)


def score_associations(
    task: TaskFolder, pictures: Pictures, model: ImageTextModel
) -> tuple[Metrics, pa.Table]:
    """Ranks each instance's candidates by cosine with its cue; returns metrics, and a row each.

    A rank is the number of better candidates; ties share it. Null without a score.
    """
    instance_N = np.array(pictures.groups)
    # Instances are numbered as they come: sorted by them, each begins where it did before.
    _, first_I, index_N = np.unique(instance_N, return_index=True, return_inverse=True)
    cue_ID = embedded([pictures.captions[first][0] for first in first_I], model)
    fit_N = np.vecdot(pictures.embeddings.astype(np.float64), cue_ID.astype(np.float64)[index_N])
    order_N = np.lexsort((-fit_N, index_N))
    ahead = np.diff(fit_N[order_N], prepend=np.nan) != 0
    ahead |= np.diff(index_N[order_N], prepend=-1) != 0
    place_N = np.arange(len(order_N))
    rank_N = np.empty(len(order_N), np.int64)
    rank_N[order_N] = np.maximum.accumulate(np.where(ahead, place_N, 0)) - first_I[index_N]
    rank_N[np.isnan(fit_N)] = NEVER
    right_N = pictures.labels == 1
    columns = {"key": pictures.keys, "instance": instance_N, "is_right": right_N}
    columns |= stored("rank", Ranks(rank_N))
    return association(rank_N, right_N, instance_N), pa.table(columns)


def score_pairs(
    task: TaskFolder, pictures: Pictures, model: ImageTextModel
) -> tuple[Metrics, pa.Table]:
    """Lets each caption of a pair choose between its two pictures; returns metrics, and a row each.

    A rank is 0 for its own picture, else 1; null without a score.
    """
    text_ND = embedded([captions[0] for captions in pictures.captions], model).astype(np.float64)
    image_ND = pictures.embeddings.astype(np.float64)
    own_N = np.vecdot(text_ND, image_ND)
    other_N = np.nan_to_num(np.vecdot(text_ND, image_ND[np.arange(len(own_N)) ^ 1]), nan=-np.inf)
    better_N = np.where(np.isnan(own_N), NEVER, other_N > own_N)
    ranks = Ranks(better_N, (other_N == own_N).astype(np.int64), np.ones(len(own_N), np.int64))
    columns = {"key": pictures.keys, "pattern": pictures.patterns, **stored("rank", ranks)}
    return pairs(ranks, pictures.patterns), pa.table(columns)


SCORE: dict[str, Callable[[TaskFolder, Pictures, ImageTextModel], tuple[Metrics, pa.Table]]] = {
    "classification": score_classification,
    "multilabel": score_multilabel,
    "retrieval": score_retrieval,
    "association": score_associations,
    "pairs": score_pairs,
}
