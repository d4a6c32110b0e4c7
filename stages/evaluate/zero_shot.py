"""What a model can do without having seen a task: classification, retrieval, associations."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from metadata.storage import Storage
from pipeline.dataset import Context, Inputs, Task
from pipeline.errors import StageError
from pipeline.stage import DatasetStage, Gigabytes, Gpus, NonEmpty, Resources, location
from stages.evaluate._averages import averages
from stages.evaluate._metrics import (
    NEVER,
    Metrics,
    association,
    best_ranks,
    classification,
    macro_f1,
    retrieval,
    worst_group,
)
from stages.models.checkpoint import load as load_trained
from stages.models.image_text import ImageTextModel, load, look_for, width_of
from stages.ops.listed_tasks import is_scored, rules
from stages.ops.tasks import (
    Finding,
    Sample,
    TaskFolder,
    content_digest,
    describe,
    listing_digest,
    names,
    none_at,
    refuse,
    samples,
)
from stages.ops.vectors import unit_rows

# Shapes: N pictures, K captions, C classes, T templates, D width of the embedding.

BATCH = 64  # decoded pictures held at a time
RESULTS = "results.json"
FEW = 12  # classes, of which 5 are no feat
EMPTY = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True, kw_only=True)
class ZeroShot(DatasetStage):
    """results.json: every metric of each task, 0 to 1, and the averages over DataComp's 38.

    Each with a 95 % interval over the task's pictures and its value by guessing, for each model
    that the stage trained: one a seed. `metric` names the one that counts. Beside it TASK.parquet
    (seed-3.TASK.parquet), the rank that the right answer had for every picture: what all the
    metrics are read off.

    Source: CLIP_benchmark's metrics, names and folder layout; DataComp's list and WILDS' metrics
    for its other tasks. Values equal their code but for ties, which go to the answer that stands
    first, and for FMoW, whose region "Other" of 4 pictures is left out (docs/evaluating.md).
    Error: Wilson intervals; those of mean recall and of image retrieval count classes of uneven
    size, and captions of one picture, as fewer trials. They say nothing about training's noise.
    Example: {model: "checkpoint:model", tasks: eval}
    """

    model: NonEmpty  # stage:NAME, or any model that embed.clip knows
    tasks: NonEmpty  # folder of tasks, each a subfolder
    gpus: Gpus = location(0)  # GPUs of one worker; 0.5 shares one between two
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 3
    determinism = "exact"
    takes = ("model",)
    gives = ("data",)
    artifacts = (("results", RESULTS),)

    def __post_init__(self) -> None:
        width_of(self.model)  # an unknown scheme stops the plan, not the run

    @property
    def resources(self) -> Resources:  # large models want a GPU
        return Resources(gpus=self.gpus, memory_gb=self.memory_gb)

    def look(self) -> None:
        look_for(self.model)
        self.names("key `tasks`")

    def outside(self) -> str:
        """Names, sizes and times of the tasks' files."""
        return listing_digest(Storage(self.tasks))

    def run(self, inputs: Inputs, ctx: Context) -> None:
        folder = Storage(self.tasks)
        found = self.names(f"stage '{ctx.worker.stage}', key `tasks`")
        models = self.models(inputs.model)
        digests = {name: content_digest(folder, name) for name in found}
        # A changed task or model is a new item, and only new items are evaluated again.
        items = [
            {"task": name, "sha256": digests[name], **model} for model in models for name in found
        ]
        ctx.say("evaluating")
        scored = iter(ctx.map(partial(evaluate, self.model, inputs.model, self.tasks), items))
        results = []
        for model in models:
            of_tasks = {name: next(scored) for name in found}
            of_model = {"rules": rules(), "tasks": of_tasks, "averages": averages(of_tasks)}
            results.append({**model, **of_model})
        ctx.map(put_results, [{"models": results}])

    def names(self, where: str) -> list[str]:
        """The tasks that are scored; StageError where the folder has none."""
        folder = Storage(self.tasks)
        found = [name for name in names(folder) if is_scored(name)]
        if not found:
            do = "give a folder whose subfolders are tasks in CLIP_benchmark's layout"
            raise StageError(none_at(folder), f"{where}: {folder}", do)
        return found

    def models(self, folder: str | None) -> list[dict[str, Any]]:
        """The card, seed and weights' digest of each model; without a stage, what is set."""
        if folder is None:
            return [{"model": self.model, "seed": 0}]
        from stages.models.saved import cards, read_card  # torch: not while a recipe is planned

        held = Storage(folder)
        known = [(name, read_card(held, name)) for name in cards(folder)]
        return [
            {"card": name, "model": card.get("sha256"), "seed": card.get("seed", 0)}
            for name, card in known
        ]


def evaluate(
    scheme: str, trained: str | None, tasks: str, item: dict[str, Any], task: Task
) -> dict[str, Any]:
    """The metrics of one task by one model; the ranks they are read off are stored."""
    folder = Storage(tasks)
    described, findings = describe(folder, item["task"])
    refuse([finding for finding in findings if finding.is_fatal], task.worker.stage, folder)
    at = task.worker.device, task.worker.threads
    if trained is None:
        loaded = load(scheme, *at)
        if loaded.sha256:
            task.worker.pin(scheme, loaded.sha256)
    else:
        loaded = load_trained(trained, *at, item["card"])
    pictures = embed_pictures(folder, described, loaded, task.worker.stage)
    metrics, ranks = SCORE[described.kind](described, pictures, loaded)
    path = task.worker.scratch / f"{described.name}.parquet"
    pq.write_table(ranks, path)
    of_seed = item.get("card", "").removeprefix("out/").removesuffix("model.json")
    task.put_file(of_seed + path.name, path)
    metric = main_metric(described, metrics)
    is_association = described.kind == "association"
    return {
        "kind": described.kind,
        "listed": described.listed.name if described.listed else None,
        "metric": metric,
        "chance": (metrics[metric] or {}).get("chance"),
        "pictures": len(pictures.keys),
        "classes": len(described.classnames) or None,
        "captions": sum(map(len, pictures.captions)) if described.is_retrieval else None,
        "instances": len(set(pictures.groups)) if is_association else None,
        "sha256": item["sha256"],
        "metrics": metrics,
    }


def main_metric(task: TaskFolder, metrics: Metrics) -> str:
    """The metric that counts: DataComp's of a listed task, else the most telling one."""
    if task.listed and task.listed.metric:
        return task.listed.metric
    if task.is_retrieval:
        return "image_retrieval_recall@5"
    if task.kind == "association":
        hard = "jaccard_score_10-12"
        return hard if metrics[hard] else "avg_jaccard_score"
    return "acc5" if len(task.classnames) > FEW else "acc1"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A task's pictures, embedded."""

    keys: list[str]
    embeddings: NDArray[np.float32]  # (N, D)
    labels: NDArray[np.int64]  # (N,)
    captions: list[tuple[str, ...]]
    groups: list[int | None]


def embed_pictures(
    folder: Storage, task: TaskFolder, model: ImageTextModel, stage: str
) -> Pictures:
    """All of them, a batch decoded at a time; StageError at the first that is not as it should."""
    known: list[Sample] = []
    embedded = [np.empty((0, model.width), np.float32)]
    every = samples(folder, task)
    while batch := list(islice(every, BATCH)):
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
        captions=[sample.captions for sample in known],
        groups=[sample.group for sample in known],
    )


def score_classification(
    task: TaskFolder, pictures: Pictures, model: ImageTextModel
) -> tuple[Metrics, pa.Table]:
    """A class is the mean of its prompts' unit vectors, at length 1 again."""
    prompts = [template.format(c=name) for name in task.classnames for template in task.templates]
    prompt_CTD = model.embed_texts(prompts).reshape(len(task.classnames), -1, model.width)
    class_CD = unit_rows(prompt_CTD.astype(np.float64).mean(axis=1))
    label_N, classes = pictures.labels, len(class_CD)
    rank_N, first_N = best_ranks(pictures.embeddings, class_CD, label_N, np.arange(classes))
    columns = {"key": pictures.keys, "label": label_N, "predicted": first_N, "rank": rank_N}
    metrics = classification(rank_N, label_N, classes)
    metric = task.listed.metric if task.listed else None
    if metric == "F1-macro_all":
        metrics[metric] = macro_f1(first_N, label_N, classes)
    if None not in pictures.groups:
        group_N = np.array(pictures.groups)
        k = 5 if metric == "acc_top5_wg" else 1
        by = task.listed.by if task.listed else None
        ignored = by.ignored if by else ()
        name = metric if by and metric else "acc_wg"
        metrics[name] = worst_group(rank_N < k, group_N, k / classes, ignored)
        if ignored:
            metrics[f"{name}_of_all"] = worst_group(rank_N < k, group_N, k / classes)
        columns["group"] = group_N
    return metrics, pa.table(columns)


def score_retrieval(
    task: TaskFolder, pictures: Pictures, model: ImageTextModel
) -> tuple[Metrics, pa.Table]:
    """Both directions; a picture has found its text where any of its captions is found.

    One without captions has a null rank, and counts as a miss.
    """
    count_N = np.array([len(captions) for captions in pictures.captions])
    text_KD = model.embed_texts([text for captions in pictures.captions for text in captions])
    picture_N = np.arange(len(count_N))
    picture_K = np.repeat(picture_N, count_N)
    text_rank_N, _ = best_ranks(pictures.embeddings, text_KD, picture_N, picture_K)
    image_rank_K, _ = best_ranks(text_KD, pictures.embeddings, picture_K, picture_N)
    by_picture = pa.ListArray.from_arrays(np.cumsum([0, *count_N], dtype=np.int32), image_rank_K)
    text_rank = pa.array(text_rank_N, mask=text_rank_N == NEVER)
    columns = {"key": pictures.keys, "text_rank": text_rank, "image_ranks": by_picture}
    return retrieval(text_rank_N, image_rank_K, count_N), pa.table(columns)


def score_associations(
    task: TaskFolder, pictures: Pictures, model: ImageTextModel
) -> tuple[Metrics, pa.Table]:
    """Each candidate's rank among those of its instance, by how well its cue fits."""
    instance_N = np.array(pictures.groups)
    _, first_I, index_N = np.unique(instance_N, return_index=True, return_inverse=True)
    cue_ID = model.embed_texts([pictures.captions[first][0] for first in first_I])
    fit_N = np.vecdot(pictures.embeddings.astype(np.float64), cue_ID.astype(np.float64)[index_N])
    order_N = np.lexsort((-fit_N, index_N))  # stable: of equal ones the first stands first
    rank_N = np.empty(len(order_N), np.int64)
    rank_N[order_N] = np.arange(len(order_N)) - first_I[index_N]
    right_N = pictures.labels == 1
    columns = {"key": pictures.keys, "instance": instance_N, "is_right": right_N, "rank": rank_N}
    return association(rank_N, right_N, instance_N), pa.table(columns)


SCORE: dict[str, Callable[[TaskFolder, Pictures, ImageTextModel], tuple[Metrics, pa.Table]]] = {
    "classification": score_classification,
    "retrieval": score_retrieval,
    "association": score_associations,
}


def put_results(results: dict[str, Any], task: Task) -> dict[str, Any]:
    """Stores the results of all tasks."""
    path = task.worker.scratch / RESULTS
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    task.put_file(RESULTS, path)
    return {"models": len(results["models"])}
