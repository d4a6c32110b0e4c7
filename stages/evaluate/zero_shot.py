"""Evaluates a model zero-shot: classification, retrieval, associations."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from math import hypot
from typing import Any

import pyarrow.parquet as pq

from clipmill.metadata.evaluated import prefix_of
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.outputs import OUT
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Put, Task
from clipmill.pipeline.stage import DatasetStage, Gigabytes, Gpus, NonEmpty, later, location
from clipmill.stages.evaluate._scoring import scored_task
from clipmill.stages.models.checkpoint import load as load_trained
from clipmill.stages.models.image_text import load, look_for, width_of
from clipmill.stages.models.watched import WatchedModel
from clipmill.stages.ops.tasks.check import proof
from clipmill.stages.ops.tasks.folders import (
    content_digest,
    describe,
    listing_digest,
    look_at,
    names,
    need_some,
    refuse,
)
from clipmill.stages.ops.tasks.listed import is_scored, listed_tasks, rules

RESULTS = "results.json"
STORED = "checkpoint:"


@dataclass(frozen=True, kw_only=True)
class ZeroShot(DatasetStage):
    """results.json: every metric of each task, 0 to 1, and the averages over DataComp's 38.

    Each metric has a 95 % interval over the task's pictures and the value of guessing, for each
    model (one a seed). `metric` names the main one. TASK.parquet (seed-3.TASK.parquet) has the rank
    of the right answer for every picture, from which all metrics are computed.

    Source: CLIP_benchmark's metrics, names and folder layout; DataComp's list and WILDS' metrics
    for its other tasks. Values equal their code except for ties, where a hit is its probability,
    and for FMoW, whose region "Other" of 4 pictures is left out (docs/evaluating.md).
    Error: Wilson intervals, without the training's noise; classes of uneven size, and captions of
    one picture, count as fewer trials.
    Example: {model: "checkpoint:model", tasks: eval}
    """

    model: NonEmpty  # stage:NAME, or any model of embed.clip
    tasks: NonEmpty  # folder of tasks, each a subfolder
    gpus: Gpus = location(0)  # GPUs of one worker; at 0.5 two workers share one
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB
    embeddings: bool = later(False)  # store them, for evaluate.probe and evaluate.confidence

    version = 6
    determinism = "exact"
    proofs = (("tasks", proof),)
    takes = ("model",)
    gives = ("data",)
    artifacts = (("results", RESULTS),)

    def __post_init__(self) -> None:
        width_of(self.model)  # an unknown scheme stops the plan, not the run

    def look(self) -> None:
        look_for(self.model)
        look_at(Storage(self.tasks), self.names("key `tasks`"))

    def outside(self) -> str:
        """Returns a digest of the tasks' files, by name, size and time, and of a stored model's."""
        listed = listing_digest(Storage(self.tasks))
        if not self.model.startswith(STORED):
            return listed
        model = Storage(self.model.removeprefix(STORED))
        entries = (sorted(map(astuple, model.entries(place))) for place in ("", OUT))
        return digest([listed, *entries])

    def run(self, inputs: Inputs, ctx: Context) -> None:
        tasks = self.names(f"stage '{ctx.worker.stage}', key `tasks`")
        trained = inputs.model
        if trained is None and self.model.startswith(STORED):
            trained = self.model.removeprefix(STORED)
        models = self.models(trained)
        digests = self.task_digests()
        # A changed task or model is a new item, and only new items are evaluated again.
        more = {"embeddings": True} if self.embeddings else {}
        items = [
            {"task": n, "sha256": digests[n], **model, **more} for model in models for n in tasks
        ]
        ctx.say("evaluating")
        scored = iter(ctx.map(partial(evaluate, self.model, trained, self.tasks), items))
        results = []
        for model in models:
            done = {name: next(scored) for name in tasks}
            results.append({**model, "rules": rules(), "tasks": done, "averages": averages(done)})
        ctx.map(put_results, [{"models": results}])

    def names(self, where: str) -> list[str]:
        """Returns the names of the tasks to score; raises StageError if there is none."""
        folder = Storage(self.tasks)
        return need_some([name for name in names(folder) if is_scored(name)], folder, where)

    def task_digests(self) -> dict[str, str]:
        """Returns a digest of each task's files, by name: one that has changed is scored anew."""
        folder = Storage(self.tasks)
        return {name: content_digest(folder, name) for name in names(folder) if is_scored(name)}

    def models(self, folder: str | None) -> list[dict[str, Any]]:
        """Returns card, seed and weights' digest of each model in a folder, or else the setting."""
        if folder is None:
            return [{"model": self.model, "seed": 0}]
        from clipmill.stages.models.saved import cards, read_card  # torch: not for a plan

        known = [(name, read_card(Storage(folder), name)) for name in cards(folder)]
        return [
            {"card": name, "model": card.get("sha256"), "seed": card.get("seed", 0)}
            for name, card in known
        ]


def evaluate(
    scheme: str, trained: str | None, tasks: str, item: dict[str, Any], task: Task
) -> dict[str, Any]:
    """Evaluates one model on one task: stores the ranks, and returns the metrics.

    A model that this run has scored on the same bytes is not scored again. A trained one is
    identified by its weights, others by their name too, as weights may fit several networks.
    """
    folder = Storage(tasks)
    described, findings = describe(folder, item["task"])
    refuse([finding for finding in findings if finding.is_fatal], task.worker.stage, folder)
    place = task.worker.device, task.worker.threads
    loaded = load(scheme, *place) if trained is None else None
    weights = loaded.sha256 if loaded else item["model"]
    named, has_vectors = f"{scheme} {item.get('card', '')}".strip(), "embeddings" in item
    if weights and scheme.partition(":")[0] != "stage":
        task.worker.pin(named, weights)

    def score(put: Put) -> dict[str, Any]:
        model = loaded or WatchedModel(load_trained(trained or "", *place, item["card"]), named)
        result, tables = scored_task(folder, described, model, task.worker.stage, has_vectors)
        for suffix, table in tables.items():
            path = task.worker.scratch / f"{described.name}{suffix}.parquet"
            pq.write_table(table, path)
            put(path.name, path)
        return {**result, "sha256": item["sha256"]}

    of_seed = prefix_of(item.get("card", ""))
    if weights is None:  # no digest identifies the model (`reference`): scored every time
        return score(lambda name, path: task.put_file(of_seed + name, path))
    device = task.worker.device.partition(":")[0]
    facts = [rules(), ZeroShot.version, device, weights, described.name, item["sha256"]]
    facts += [*([scheme] if loaded else []), *(["embeddings"] if has_vectors else [])]
    return task.once(digest(facts), score, of_seed)


def put_results(results: dict[str, Any], task: Task) -> dict[str, Any]:
    """Stores the results of all tasks."""
    path = task.worker.scratch / RESULTS
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    task.put_file(RESULTS, path)
    return {"models": len(results["models"])}


ALL, LANGUAGE = "average", "language_"
# At the end of a task's name; XM3600's two of three letters, as `.val` is no language.
TONGUE = re.compile(r"\.((?:[a-z]{2}|fil|quz)(?:-[A-Za-z]{2,4})?)$")


def averages(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Computes the mean main metric of the 38, of the shifts, VTAB and retrieval: 0 to 1.

    Each has a 95 % interval. If tasks are missing, its name is `partial_average_of_12`; if all are,
    it is left out. `results` are one model's, by folder. A task counts if it has DataComp's classes
    and number of pictures; of two folders of one task the first counts. `language_de` is the mean
    over all tasks whose folder ends in `.de`.

    Source: DataComp's aggregate_scores: unweighted means.
    Error: the intervals take tasks as independent; they are too narrow if tasks share pictures.
    """
    counted: dict[str, dict[str, float]] = {}
    for result in results.values():
        if is_whole(result) and result["metrics"][result["metric"]] is not None:
            counted.setdefault(result["listed"], result["metrics"][result["metric"]])
    means = {}
    scored = [task for task in listed_tasks() if task.metric]
    for name in (ALL, *dict.fromkeys(task.group for task in scored if task.group)):
        expected = [task.name for task in scored if name in (ALL, task.group)]
        missing = [task for task in expected if task not in counted]
        if values := [counted[task] for task in expected if task in counted]:
            title = f"partial_{name}_of_{len(values)}" if missing else name
            means[title] = _mean(values, missing)
    spoken: dict[str, list[dict[str, float]]] = {}
    for name, result in results.items():
        if (tongue := TONGUE.search(name)) and (value := result["metrics"][result["metric"]]):
            spoken.setdefault(f"{LANGUAGE}{tongue[1]}", []).append(value)
    return means | {name: _mean(spoken[name], []) for name in sorted(spoken)}


def is_whole(result: Mapping[str, Any]) -> bool:
    """Returns whether a result is of a listed task, with DataComp's number of pictures."""
    size = next((task.size for task in listed_tasks() if task.name == result.get("listed")), None)
    return size is not None and size == (result.get("instances") or result["pictures"])


def _mean(values: Sequence[Mapping[str, float]], missing: list[str]) -> dict[str, Any]:
    n = len(values)
    mean = sum(metric["value"] for metric in values) / n
    below = hypot(*(metric["value"] - metric["low"] for metric in values)) / n
    above = hypot(*(metric["high"] - metric["value"] for metric in values)) / n
    return {
        "value": mean,
        "low": mean - below,
        "high": mean + above,
        "chance": sum(metric["chance"] for metric in values) / n,
        "tasks": n,
        "missing": missing,
        "complete": not missing,
    }
