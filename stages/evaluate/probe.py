"""Fits classifiers to a model's frozen embeddings; scores them on pictures left out of the fit."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.evaluated import NEVER, Ranks, prefix_of
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import DatasetStage
from clipmill.stages.evaluate._metrics import (
    RETRIEVAL_KS,
    Metrics,
    any_of,
    best_ranks,
    classification,
    proportion,
)
from clipmill.stages.ops.tables.rows import put_table, put_text
from clipmill.stages.ops.vectors.matrices import as_matrix, unusable

# Shapes: N pictures, T of them to be classified, C classes, D width of the embedding.

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]
Probing = Callable[[Floats, Classes, int, Floats], Floats]
RESULTS, EMBEDDING = "results.json", "embedding"  # of evaluate.zero_shot
FOLDS = 5
RIDGE = 1.0  # added to each direction's sum of squares
NEAREST = 10  # pictures that vote
SHRINKAGE = 0.5  # share of the covariance that is taken alike in all directions
BLOCK = 1024  # pictures compared with all others at a time


@dataclass(frozen=True, kw_only=True)
class Probe(DatasetStage):
    """results.json: accuracy of classifiers of a model's frozen embeddings, 0 to 1, by task.

    It reads what `evaluate.zero_shot` stored with `embeddings: true`, of tasks whose pictures have
    a class each. A picture is classified by a fit to the four fifths of the task without it.
    `ridge` is least squares with a ridge of 1; `neighbours` are votes of the 10 nearest by cosine;
    `discriminant` is linear, with half of its covariance the same in all directions. `images` fits
    nothing: image_recall@K is the share of pictures with another of their class among the K nearest
    by cosine. A task `flags` has the results `flags_ridge`, and so on. Classes of one picture are
    left out; `notes` in results.json names them, and tasks of which no two classes are left.

    Source: ridge regression (Hoerl and Kennard 1970); a discriminant with shrunk covariance
    (Friedman 1989); both and the votes as scikit-learn computes them; Recall@K of metric learning
    (Oh Song et al. 2016).
    Error: scores differ from scikit-learn's by 1e-6 at most.
    Example: {after: [evaluate.zero_shot]}
    """

    # classifiers to fit; images: retrieval of images by images
    probes: Annotated[
        tuple[Literal["ridge", "neighbours", "discriminant", "images"], ...], Meta(min_length=1)
    ] = ("ridge", "neighbours", "discriminant")

    version = 1
    determinism = "exact"
    takes = ("data",)
    gives = ()  # no stage reads it
    artifacts = (("results", RESULTS), ("notes", RESULTS))

    def run(self, inputs: Inputs, ctx: Context) -> None:
        where = f"stage '{ctx.worker.stage}', key `data`: {inputs.data}"
        try:
            evaluated = json.loads(Outputs(Storage(inputs.data)).read(RESULTS))["models"]
        except FileNotFoundError:
            do = "name a stage of evaluate.zero_shot"
            raise StageError(f"no {RESULTS}", where, do) from None
        items = [
            {"model": number, "task": name, "sha256": task["sha256"]}
            | {"prefix": prefix_of(model.get("card") or "")}
            for number, model in enumerate(evaluated)
            for name, task in model["tasks"].items()
            if task["kind"] == "classification"
        ]
        ctx.say("fitting")
        found = ctx.map(partial(probed, inputs.data, self.probes, where), items)
        models = [
            {key: model.get(key) for key in ("card", "model", "seed", "rules")} | {"tasks": {}}
            for model in evaluated
        ]
        notes: dict[str, None] = {}
        for item, results in zip(items, found, strict=True):
            models[item["model"]]["tasks"] |= results["tasks"]
            notes |= dict.fromkeys(results["notes"])
        ctx.map(put_results, [{"models": models, "notes": [*notes]}])


def probed(
    data: str, probes: tuple[str, ...], where: str, item: dict[str, Any], task: Task
) -> dict[str, Any]:
    """Fits the probes of one model and task: stores their ranks, and returns results and notes."""
    name, prefix = item["task"], item["prefix"]
    with Outputs(Storage(data)).parquet(f"{prefix}{name}.parquet") as file:
        if EMBEDDING not in file.schema_arrow.names:
            do = "write `embeddings: true` in that stage of evaluate.zero_shot"
            raise StageError(f"{name}.parquet without embeddings", where, do)
        table = file.read(columns=["key", "label", EMBEDDING])
    label_N, good_N = table["label"].to_numpy(), ~unusable(as_matrix(table[EMBEDDING]))
    known, count_C = np.unique(label_N[good_N], return_counts=True)
    lone = np.setdiff1d(label_N, known[count_C > 1]).tolist()
    notes = [f"{name}: no probe is asked for classes of one picture: {shown(lone)}"] if lone else []
    if (count_C > 1).sum() < 2:
        return {"tasks": {}, "notes": [f"{name}: no two classes have two pictures or more"]}
    table = table.filter(pa.array(~np.isin(label_N, lone)))
    classes, class_N = np.unique(table["label"].to_numpy(), return_inverse=True)
    image_ND = as_matrix(table[EMBEDDING]).astype(np.float64)
    fold_N = folds_of(table["key"].to_pylist(), class_N, ~unusable(image_ND))
    tasks = {}
    for probe in probes:
        if probe == "images":
            unit_ND = unit(image_ND)
            found = best_ranks(unit_ND, unit_ND, class_N, class_N, is_own=True)
            metrics = recall(found, class_N)
        else:
            found = left_out(PROBES[probe], image_ND, class_N, fold_N)
            metrics = classification(found, class_N, len(classes))
        columns = {"rank_tied": found.wrong_N, "rank_tied_right": found.right_N}
        columns |= {"rank": pa.array(found.better_N, mask=found.better_N == NEVER)}
        ranks = table.select(["key", "label"])
        for column, values in columns.items():
            ranks = ranks.append_column(column, pa.array(values))
        put_table(f"{prefix}{name}_{probe}.parquet", ranks, task)
        tasks[f"{name}_{probe}"] = {
            **{"kind": "probe", "metric": next(iter(metrics)), "classes": len(classes)},
            **{"pictures": len(table), "metrics": metrics, "sha256": item["sha256"]},
        }
    return {"tasks": tasks, "notes": notes}


def left_out(fit: Probing, image_ND: Floats, class_N: Classes, fold_N: Classes) -> Ranks:
    """Returns (N,) ranks of each picture's class, by what was fitted to the other folds."""
    score_NC = np.full((len(image_ND), class_N.max() + 1), np.nan)
    for fold in range(FOLDS):
        fit_N, left_N = (fold_N >= 0) & (fold_N != fold), fold_N == fold
        learnt = image_ND[fit_N], class_N[fit_N], score_NC.shape[1]
        score_NC[left_N] = fit(*learnt, image_ND[left_N])
    own_N1 = np.take_along_axis(score_NC, class_N[:, None], 1)
    better_N = np.where(fold_N < 0, NEVER, (score_NC > own_N1).sum(1))
    tied_N = np.maximum((score_NC == own_N1).sum(1) - 1, 0)
    return Ranks(better_N, tied_N, np.ones(len(tied_N), np.int64))


def recall(ranks: Ranks, class_N: NDArray[np.integer]) -> Metrics:
    """Computes the share of pictures with another of their class among the k nearest others.

    Source: Recall@K of metric learning (Oh Song et al. 2016).
    """
    others_N = np.bincount(class_N)[class_N] - 1
    every = len(class_N) - 1
    return {
        f"image_recall@{k}": proportion(ranks.hits(k), float(any_of(others_N, every, k).mean()))
        for k in RETRIEVAL_KS
    }


def unit(image_ND: Floats) -> Floats:
    """Returns vectors of length 1; NaN where there is none."""
    with np.errstate(invalid="ignore"):
        return np.asarray(image_ND / np.linalg.norm(image_ND, axis=1, keepdims=True))


def shown(labels: list[int]) -> str:
    more = f" and {len(labels) - 9:,} more" if len(labels) > 9 else ""
    return ", ".join(map(str, labels[:9])) + more


def folds_of(keys: list[str], class_N: Classes, good_N: NDArray[np.bool_]) -> Classes:
    """Returns (N,) folds by hash of the key, in turn within a class; -1 for pictures not fitted."""
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    hash_N = np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64)
    order = np.lexsort((hash_N, class_N))
    order = order[good_N[order]]
    sorted_N = class_N[order]
    place_N = np.arange(len(order)) - np.searchsorted(sorted_N, sorted_N)
    fold_N = np.full(len(class_N), -1)
    fold_N[order] = (place_N + sorted_N) % FOLDS
    return fold_N


def ridge(image_ND: Floats, class_N: Classes, classes: int, other_TD: Floats) -> Floats:
    """Returns (T, C) regressions on 1 for the class and -1 for others, with an intercept."""
    target_NC = 2.0 * (class_N[:, None] == np.arange(classes)) - 1
    mean_D, mean_C = image_ND.mean(0), target_NC.mean(0)
    centred_ND = image_ND - mean_D
    square_DD = centred_ND.T @ centred_ND + RIDGE * np.eye(len(mean_D))
    weight_DC = np.linalg.solve(square_DD, centred_ND.T @ (target_NC - mean_C))
    return np.asarray((other_TD - mean_D) @ weight_DC + mean_C)


def neighbours(image_ND: Floats, class_N: Classes, classes: int, other_TD: Floats) -> Floats:
    """Returns (T, C) the share of each class among the nearest pictures by cosine."""
    unit_ND, unit_TD = unit(image_ND), unit(other_TD)
    votes = min(NEAREST, len(unit_ND))
    share_TC = np.empty((len(unit_TD), classes))
    for start in range(0, len(unit_TD), BLOCK):
        cosine_BN = unit_TD[start : start + BLOCK] @ unit_ND.T
        near_BK = np.argpartition(-cosine_BN, votes - 1, axis=1)[:, :votes]
        cell_BK = class_N[near_BK] + classes * np.arange(len(near_BK))[:, None]
        count = np.bincount(cell_BK.ravel(), minlength=classes * len(near_BK))
        share_TC[start : start + BLOCK] = count.reshape(-1, classes) / votes
    return share_TC


def discriminant(image_ND: Floats, class_N: Classes, classes: int, other_TD: Floats) -> Floats:
    """Returns (T, C) log densities of normal classes with one shrunk covariance, up to a shift."""
    is_of_NC = (class_N[:, None] == np.arange(classes)).astype(np.float64)
    count_C = is_of_NC.sum(0)
    mean_CD = is_of_NC.T @ image_ND / count_C[:, None]
    within_ND = image_ND - mean_CD[class_N]
    covariance_DD = within_ND.T @ within_ND / len(within_ND)
    alike = SHRINKAGE * covariance_DD.trace() / len(covariance_DD)
    covariance_DD = (1 - SHRINKAGE) * covariance_DD + alike * np.eye(len(covariance_DD))
    weight_DC = np.linalg.lstsq(covariance_DD, mean_CD.T)[0]  # all alike in a class: no inverse
    shift_C = np.log(count_C / len(class_N)) - (mean_CD * weight_DC.T).sum(1) / 2
    return np.asarray(other_TD @ weight_DC + shift_C)


PROBES: dict[str, Probing] = {
    "ridge": ridge,
    "neighbours": neighbours,
    "discriminant": discriminant,
}


def put_results(results: dict[str, Any], task: Task) -> dict[str, Any]:
    """Stores the results of all models."""
    put_text(RESULTS, json.dumps(results, indent=1, sort_keys=True) + "\n", task)
    return {"models": len(results["models"])}
