"""Keeps rows whose image falls into the cluster of a target image."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import IMAGE_BYTES, IMAGE_EMBEDDING, KEEP, UID, Column
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, State, Task
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import (
    DatasetStage,
    Gigabytes,
    Gpus,
    NonEmpty,
    OneUp,
    Threshold,
    Verdicts,
    location,
)
from clipmill.stages.models import image_text, images
from clipmill.stages.ops.outside import STAGE, listing_digest, named, need_either
from clipmill.stages.ops.tables.rows import DROPPED, added, put_json
from clipmill.stages.ops.vectors.centroids import file_or_folder, look_for
from clipmill.stages.ops.vectors.matrices import as_matrix, unusable
from clipmill.stages.select._judged import NO_IMAGE, first_of, judged_rows, left_out

if TYPE_CHECKING:
    from clipmill.stages.select._targets import Targets

# Shapes: N rows, K centroids, T tasks.

SUMMARY = "targets.json"
NEAREST_CENTROID = Column("nearest_centroid", pa.int32(), "0 up", "The centroid nearest to it.")
TARGETS_NEAR = Column(
    "targets_near", pa.int32(), "0 up", "Targets with the same nearest centroid.", better="high"
)


@dataclass(frozen=True, kw_only=True)
class ImageBased(DatasetStage):
    """Rows whose nearest centroid is also that of a target; columns null without an embedding.

    Targets are the pictures of evaluation tasks, embedded by `model`; or vectors in Parquet files,
    in a column named as `column`, whose schema gives its model as `clipmill.model`; or, with
    `targets: "stage:x"`, that column of an export. Embeddings of another model or width are
    refused. `targets_near` counts the targets of the row's centroid, so another `at_least` is a
    query. out/targets.json has by task its targets, their centroids, and the rows that these keep;
    out/targets-*.parquet have the targets of each centroid.

    Source: DataComp (Gadre et al. 2023), image-based filtering, whose centroids are means of unit
    vectors (`metric: euclidean` of cluster.kmeans) and are compared as they are, unnormalised.
    Error: products are compared in float64, equal ones go to the smaller centroid; the published
    code compares in float32.
    Example: {after: [ingest.image_folder, embed.clip],
      targets: eval, centroids: centroids.parquet, model: reference}
    """

    targets: NonEmpty  # a folder of tasks, a Parquet of embeddings, or stage:NAME of an export
    centroids: NonEmpty  # stage:NAME of clusters, or a Parquet of centroids
    # model of the pool's embeddings, to embed the pictures of `targets`; vectors need none
    model: NonEmpty | None = None
    column: NonEmpty = IMAGE_EMBEDDING.name  # column of the embeddings to compare
    # compare by inner product with the centroids as they are, or by the cosine
    nearest: Literal["inner_product", "cosine"] = "inner_product"
    at_least: OneUp = 1  # least targets that share the row's nearest centroid; DataComp: 1
    gpus: Gpus = location(0)  # GPUs of one worker; 0.5 shares one between two
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 1
    determinism = "exact"
    takes = ("rows", "model", "centroids", "targets")
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, TARGETS_NEAR, NEAREST_CENTROID)

    def __post_init__(self) -> None:
        if self.model is not None:
            images.width(self.model)  # an unknown scheme stops the plan, not the run
        if self.model is not None and self.targets.startswith(STAGE):
            do = "leave it out, or name a folder of tasks in `targets`"
            found = "`model` embeds pictures, and an export has embeddings"
            raise RecipeError(found, "key `model`", do)

    @property
    def reads(self) -> tuple[Column, ...]:
        return (replace(IMAGE_EMBEDDING, name=self.column),)

    @property
    def reasons(self) -> tuple[str, ...]:
        return DROPPED, NO_IMAGE, f"undefined:{self.column}", "too_few_targets"

    def look(self) -> None:
        if named(self.targets):
            need_either(self.targets, "targets", "name a folder of tasks, or a Parquet")
            folder, file = file_or_folder(self.targets, "key `targets`")
            if file is None:
                refuse_pictures(folder, self.column, self.model)
        look_for(self.centroids)
        if self.model is not None:
            image_text.look_for(self.model)

    def outside(self) -> str:
        """Returns a digest of names, sizes and times of the files of targets and centroids."""
        from clipmill.stages.ops.tasks import evaluation

        listings = [listing_digest(self.centroids)] if named(self.centroids) else []
        if named(self.targets):
            _, file = file_or_folder(self.targets, "key `targets`")
            listed = listing_digest if file else evaluation.listing_digest
            listings.insert(0, listed(self.targets))
        return digest(listings)

    def thresholds(self) -> tuple[Threshold, ...]:
        text = f"{TARGETS_NEAR.name} >= {self.at_least}"
        return (Threshold.own("at_least", TARGETS_NEAR.name, ">=", self.at_least, text),)

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        near_N = made[TARGETS_NEAR.name].fill_null(-1).to_numpy()
        for value in values:
            if value < 0:
                raise ValueError(f"at_least is {value}; it is 0 or more")
            rule = f"{TARGETS_NEAR.name} >= {value}"
            yield Verdicts(float(value), rule, near_N >= float(value))

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Returns the centroid that decided, and its number of targets."""
        if reason != self.reasons[-1]:
            return ""
        number, near = made[NEAREST_CENTROID.name], made[TARGETS_NEAR.name]
        return f"its nearest centroid, {number}, is the nearest of {near} targets"

    def run(self, inputs: Inputs, ctx: Context) -> None:
        from clipmill.stages.select._targets import Targets, count_targets

        targets = Targets(
            targets=self.targets,
            centroids=self.centroids,
            column=self.column,
            nearest=self.nearest,
            model=self.model,
            stage=ctx.worker.stage,
            folder=ctx.folder,
            target_folder=inputs.targets,
            centroid_folder=inputs.centroids,
            model_folder=inputs.model,
        )
        centroids, items = targets.read_centroids(), targets.items()
        model = targets.model_of(items, centroids.model, inputs)
        sha256 = hashlib.sha256(centroids.vector.tobytes()).hexdigest()
        targets = replace(targets, sha256=sha256, digest=digest(items))
        ctx.say("looking for the targets' centroids")
        counts = ctx.map(partial(count_targets, targets), items)
        targets_of = dict.fromkeys((item["task"] for item in items), 0)
        for item, result in zip(items, counts, strict=True):
            targets_of[item["task"]] += result["targets"]
        for task, count in targets_of.items() or {"the export": 0}.items():
            if not count:
                do = "give pictures or embeddings, or leave it out"
                raise StageError(f"no target in '{task}'", targets.where("targets"), do)
        ctx.say("")
        numbers = {task: index for index, task in enumerate(targets_of)}
        targets = replace(targets, tasks=tuple(numbers[item["task"]] for item in items))
        # Stored, so that centroids are compared once: rows are then counted, and un-shuffled.
        rows = ctx.shuffle(ctx.map_shards(partial(judged, self, targets), inputs.rows), UID.name)
        if len(inputs.rows):
            sums = ctx.reduce(partial(counted, targets), rows, added)
            about = {"column": self.column, "model": model or None, "nearest": self.nearest}
            about |= {name: value.tolist() for name, value in sums.items()}
            ctx.map(partial(put_summary, targets, self.at_least), [{**about, "tasks": targets_of}])
        ctx.restore(rows)


def refuse_pictures(folder: Storage, column: str, model: str | None) -> None:
    """Raises RecipeError if a folder has no task, or tasks of pictures and no model for them."""
    tasks = [name for name in folder.folders() if not name.startswith(".")]
    if not tasks and not any(entry.name.endswith(".parquet") for entry in folder.entries()):
        do = "give a folder of tasks in CLIP_benchmark's layout, or of Parquet files"
        raise RecipeError(f"no task in '{redacted(folder.uri)}'", "key `targets`", do)
    if tasks and model is None:
        found = f"task '{tasks[0]}' has pictures, and nothing makes a '{column}' of them"
        do = "name the model of the pool's embeddings, or give Parquet files with that column"
        raise RecipeError(found, "key `model`", do)


def judged(stage: ImageBased, targets: "Targets", rows: pa.Table) -> pa.Table:
    """Returns keep, targets, nearest centroid and reason of every row."""
    from clipmill.stages.ops.vectors.targets import EMBED_BOTH
    from clipmill.stages.select._targets import opened, target_counts

    cells, row_ND = opened(targets), as_matrix(rows[stage.column])
    broken = {**left_out(rows), stage.reasons[2]: pa.array(unusable(row_ND))}
    undefined_N = first_of(broken).is_valid().to_numpy(zero_copy_only=False)
    defined = np.flatnonzero(~undefined_N)
    wide = cells.vector.shape[1]
    if len(defined) and row_ND.shape[1] != wide:
        found = f"embeddings {row_ND.shape[1]} wide, and the centroids are {wide} wide"
        raise StageError(found, targets.where("column"), EMBED_BOTH)
    number_N, near_N = np.zeros((2, len(rows)), np.int32)
    number_N[defined] = cells.nearest(row_ND[defined])
    near_N[defined] = target_counts(targets).count[number_N[defined]]
    broken[stage.reasons[3]] = pa.array(near_N < stage.at_least)
    made = {TARGETS_NEAR.name: near_N, NEAREST_CENTROID.name: number_N}
    made = {name: pa.array(value_N, mask=undefined_N) for name, value_N in made.items()}
    return judged_rows(rows, first_of(broken), made)


def counted(targets: "Targets", rows: pa.Table) -> State:
    """Counts rows with a nearest centroid, kept rows, and by task the kept ones near a target."""
    from clipmill.stages.select._targets import target_counts

    kept = rows.filter(rows[KEEP.name])[NEAREST_CENTROID.name].to_numpy()
    return {
        "rows": np.array(rows[NEAREST_CENTROID.name].is_valid().to_numpy().sum()),
        "kept": np.array(len(kept)),
        "kept_T": target_counts(targets).by_task[:, kept].sum(axis=1),
    }


def put_summary(
    targets: "Targets", at_least: int, about: dict[str, Any], task: Task
) -> dict[str, Any]:
    """Stores out/targets.json."""
    from clipmill.stages.select._targets import target_counts

    near = target_counts(targets)
    by_task = zip(about["tasks"].items(), near.by_task, about["kept_T"], strict=True)
    tasks = {
        name: {"targets": count, "centroids": int(near_K.sum()), "kept": kept}
        for (name, count), near_K, kept in by_task
    }
    whole = {name: value for name, value in about.items() if name not in ("tasks", "kept_T")}
    whole |= {"centroids": len(near.count), "near": int((near.count >= at_least).sum())}
    return put_json(SUMMARY, {**whole, "tasks": tasks}, task)
