"""Measures how far a model's confidence is right, and whether other pictures share it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.evaluated import prefix_of
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.stats import auc, wilson
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty
from clipmill.stages.ops.tables.rows import put_json
from clipmill.stages.ops.vectors.matrices import as_matrix, unusable

# Shapes: N pictures, C classes, D width of the embedding.

Floats = NDArray[np.float64]
RESULTS, CONFIDENCE = "results.json", "confidence.json"
BINS = 15
SCALE = 100.0  # of a model that states none: most CLIPs end there
PASSING = 95  # percent of a task's own pictures that pass the cut of fpr95


@dataclass(frozen=True, kw_only=True)
class Confidence(DatasetStage):
    """confidence.json: calibration error of each task with classes; AUROC and FPR95 of pairs.

    It reads what `evaluate.zero_shot` stored with `embeddings: true`. Confidence is the largest
    softmax of a picture's cosines with the classes, by the model's own scale (100 if it states
    none). `ece`, 0 to 1, is the mean distance of confidence and accuracy over 15 equal bins of
    confidence, by their pictures. `pairs: {flags: [food]}` asks whether pictures of `food` are told
    from those of `flags` by the largest softmax over the classes of `flags`, at scale 1: `auroc` is
    the chance that a picture of `flags` has the larger one, ties half; `fpr95` the share of `food`
    above the cut that 95 % of `flags` pass. Pictures without a vector are left out; a value without
    pictures is null.

    Source: expected calibration error (Guo et al. 2017); maximum concept matching, temperature 1
    (Ming et al. 2022). Departs: its code cuts as low as the recall nearest to 95 % allows, by which
    `fpr95` is greater: by 0.02 of 100 own pictures, 0.001 of 2,000.
    Error: ece is above 0 for a calibrated model, too: the more, the fewer pictures.
    Example: {after: [evaluate.zero_shot]}
    """

    # a task, and tasks unlike it
    pairs: Mapping[NonEmpty, tuple[NonEmpty, ...]] = field(default_factory=dict)

    version = 1
    determinism = "exact"
    takes = ("data",)
    gives = ()  # no stage reads it
    artifacts = (("notes", CONFIDENCE),)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        stage = f"stage '{ctx.worker.stage}', key"
        try:
            evaluated = json.loads(Outputs(Storage(inputs.data)).read(RESULTS))["models"]
        except FileNotFoundError:
            do = "name a stage of evaluate.zero_shot"
            raise StageError(f"no {RESULTS}", f"{stage} `data`: {inputs.data}", do) from None
        tasks = evaluated[0]["tasks"]
        known = [name for name, task in tasks.items() if task["kind"] == "classification"]
        if not known:
            do = "name an evaluation with tasks that have classes"
            raise StageError("no task with classes", f"{stage} `data`: {inputs.data}", do)
        for name in [*self.pairs, *sum(self.pairs.values(), ())]:
            if name not in known:
                do = f"name tasks with classes: {', '.join(known)}"
                raise StageError(f"no classification task '{name}'", f"{stage} `pairs`", do)
        items = [
            {"prefix": prefix_of(model.get("card") or ""), "task": name}
            for model in evaluated
            for name in known
        ]
        ctx.say("comparing")
        found = iter(ctx.map(partial(measured, inputs.data, self.pairs), items))
        models = [
            {key: model.get(key) for key in ("card", "model", "seed")}
            | {"tasks": {name: next(found) for name in known}}
            for model in evaluated
        ]
        results = {"models": models, "notes": [*notes(models[0]["tasks"])]}
        ctx.map(partial(put_json, CONFIDENCE), [results])


def notes(tasks: Mapping[str, Any]) -> Iterator[str]:
    """Yields the figures of a run's first model, as its end shows them."""
    for name, metrics in tasks.items():
        if metrics["ece"] is not None:
            yield f"{name}: ECE {metrics['ece']:.3f}"
        for other, pair in metrics["pairs"].items():
            if pair:
                auroc, fpr95 = pair["auroc"]["value"], pair["fpr95"]["value"]
                yield f"{name} beside {other}: AUROC {auroc:.3f}, FPR95 {fpr95:.3f}"


def measured(
    data: str, pairs: Mapping[str, tuple[str, ...]], item: dict[str, Any], task: Task
) -> dict[str, Any]:
    """Returns the metrics of one model on one task, and on its pairs."""
    outputs = Outputs(Storage(data))

    def read(name: str, column: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
        file = f"{item['prefix']}{name}.parquet"
        try:
            with outputs.parquet(file) as source:
                table = source.read(columns=["embedding", column])
            vector_ND = as_matrix(table["embedding"])
        except (FileNotFoundError, KeyError):
            do = "write `embeddings: true` in that stage of evaluate.zero_shot"
            raise StageError(f"{file} without embeddings", data, do) from None
        return vector_ND, table[column].to_numpy()

    class_CD, scale_C = read(f"{item['task']}.classes", "scale")

    def cosines(name: str) -> tuple[Floats, NDArray[Any]]:
        vector_ND, label_N = read(name, "label")
        good_N = ~unusable(vector_ND) & (~unusable(class_CD)).any()  # else no confidence at all
        cosine_NC = vector_ND[good_N].astype(np.float64) @ class_CD.T.astype(np.float64)
        return np.where(np.isnan(cosine_NC), -np.inf, cosine_NC), label_N[good_N]

    cosine_NC, label_N = cosines(item["task"])
    scale = SCALE if np.isnan(scale_C[0]) else float(scale_C[0])
    others = {name: cosines(name)[0] for name in pairs.get(item["task"], ())}
    return {
        "pictures": len(label_N),
        "scale": scale,
        "ece": calibration_error(scale * cosine_NC, label_N) if len(label_N) else None,
        "pairs": {name: separated(cosine_NC, other) for name, other in others.items()},
    }


def confidences(logit_NC: Floats) -> Floats:
    """Returns (N,) the largest softmax."""
    with np.errstate(under="ignore"):
        return np.asarray(1 / np.exp(logit_NC - logit_NC.max(1, keepdims=True)).sum(1))


def calibration_error(logit_NC: Floats, label_N: NDArray[np.integer]) -> float:
    """Returns the mean distance of confidence and accuracy over bins, by their pictures.

    Classes that tie share a hit.
    """
    best_NC = logit_NC == logit_NC.max(1, keepdims=True)
    hit_N = best_NC[np.arange(len(label_N)), label_N] / best_NC.sum(1)
    confidence_N = confidences(logit_NC)
    bin_N = np.maximum(np.ceil(confidence_N * BINS).astype(np.int64) - 1, 0)
    return float(np.abs(np.bincount(bin_N, confidence_N - hit_N)).sum() / len(label_N))


def separated(own_NC: Floats, other_NC: Floats) -> dict[str, Any] | None:
    """Returns how well confidence tells own pictures from others; None without some of both."""
    if not len(own_NC) or not len(other_NC):
        return None
    own_N, other_N = confidences(own_NC), confidences(other_NC)
    cut = np.sort(own_N)[::-1][-(-PASSING * len(own_N) // 100) - 1]
    passing = float((other_N >= cut).mean())
    low, high = wilson(passing, len(other_N))
    return {
        "auroc": asdict(auc(own_N, other_N)),
        "fpr95": {"value": passing, "low": low, "high": high},
        "pictures": len(other_N),
    }
