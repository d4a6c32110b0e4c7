"""Finds rows that are copies of evaluation samples: images by look, captions by words."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import IMAGE_EMBEDDING, PHASH, TEXT, UID, Column
from clipmill.pipeline.dataset import Context, Inputs, State, Task
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import (
    DatasetStage,
    Gigabytes,
    Gpus,
    NonEmpty,
    OneUp,
    Worker,
    later,
    location,
)
from clipmill.stages.models import image_text, images
from clipmill.stages.ops.outside import need_folder
from clipmill.stages.ops.tables.rows import added, put_json, with_reason
from clipmill.stages.ops.vectors.matrices import as_matrix

if TYPE_CHECKING:
    from clipmill.stages.ops.tasks.evaluation import Measure

# Shapes: N rows, T tasks, D width of a vector, L limits that rows are counted at.

LEAKS = "leaks.json"
BY_TASK = "by_task"  # nearness to each task; dropped once leaks are counted


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to compare: columns read and written, reasons, thresholds at which leaks count."""

    reads: Column
    writes: Column
    reasons: tuple[str, ...]
    limits: tuple[float, ...]
    is_distance: bool = False


@dataclass(frozen=True, kw_only=True)
class AgainstEvaluation(DatasetStage):
    """Nearness to the nearest evaluation sample: bits, cosine, or the share of its caption.

    `compare: phash` gives eval_distance, `embedding` eval_cosine, `caption` eval_overlap: the
    greatest share of an evaluation caption's runs of `size` words that the row's caption has, 0
    (and no eval_task) without any. Evaluation captions of fewer words are left out: too many
    captions contain them. A row leaks at a threshold if it is as near or nearer; out/leaks.json
    counts leaks by task, and the samples compared and left out. Among equally near samples the
    first is named.

    Source: DataComp (Gadre et al. 2023) for the embedding: with ISC21's descriptors in the pool and
    in Parquet files of `tasks`, `eval_cosine < 0.604169` is its rule. Overlap of n-grams as in
    GPT-3 (Brown et al. 2020), for captions, of which the pool's side may be longer.
    Error: none, all pairs are compared; cosines are float32's of float64 sums.
    Example: {after: [ingest.image_folder, annotate.phash], tasks: eval}
    """

    tasks: NonEmpty  # folder of tasks: in CLIP_benchmark's layout, one Parquet file each, or both
    # images by fingerprint or by embedding, or captions by runs of words
    compare: Literal["phash", "embedding", "caption"] = "phash"
    column: NonEmpty | None = None  # column to compare; null: phash, image_embedding or text
    # model of the pool's embeddings, or `features`, for evaluation images; `compare: embedding`
    model: NonEmpty | None = None
    # background: as embed.image has it, and evaluation images turned by 8 degrees either way, too
    mask: Literal["background"] | None = later(None)
    # unit of a caption's runs; character for scripts without spaces
    unit: Literal["word", "character"] = "word"
    size: OneUp = 5  # words or characters of a run
    gpus: Gpus = location(0)  # GPUs of one worker; 0.5 shares one between two
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 2
    determinism = "exact"
    takes = ("rows", "model")
    artifacts = (("leaks", LEAKS),)

    def __post_init__(self) -> None:
        if self.model is not None and self.compare != "embedding":
            raise RecipeError(
                f"`model` embeds images, which `compare: {self.compare}` does not ask for",
                "key `model`",
                "leave it out, or write compare: embedding",
            )
        if self.mask and not self.model:
            do = "name the `model` of the embeddings, which embeds evaluation images too"
            raise RecipeError("`mask`, and no model", "key `mask`", do)
        if self.model is not None:
            images.width(self.model)  # an unknown scheme stops the plan, not the run

    @property
    def way(self) -> Way:
        return WAYS[self.compare]

    @property
    def compared(self) -> Column:
        return replace(self.way.reads, name=self.column or self.way.reads.name)

    @property
    def reads(self) -> tuple[Column, ...]:
        return (self.compared,)

    @property
    def writes(self) -> tuple[Column, ...]:
        return self.way.writes, EVAL_TASK, EVAL_KEY

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.way.reasons

    def look(self) -> None:
        need_folder(self.tasks, "tasks", "give a folder of tasks in CLIP_benchmark's layout")
        if self.model is not None:
            image_text.look_for(self.model)

    def outside(self) -> str:
        """Returns a digest of names, sizes and times of the tasks' files."""
        from clipmill.stages.ops.tasks.evaluation import listing_digest

        return listing_digest(self.tasks)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        from clipmill.stages.ops.tasks.evaluation import tasks_at

        ctx.say("comparing with the evaluation samples")
        items = tasks_at(self.tasks, ctx.worker.stage)
        counts = ctx.map(partial(prepared, self, inputs.model), items)
        numbers = {item["task"]: count for item, count in zip(items, counts, strict=True)}
        names = [name for name, count in numbers.items() if count["samples"]]
        if not names:
            raise self.nothing(f"stage '{ctx.worker.stage}', key `tasks`", numbers)
        sha256 = tuple(item["sha256"] for item in items)
        nearest = partial(nearest_of_all, self, ctx.folder, tuple(names), sha256)
        # Stored, so that rows are compared once: leaks are counted, then rows are un-shuffled.
        rows = ctx.shuffle(ctx.map_shards(nearest, inputs.rows), UID.name)
        if len(inputs.rows):
            leaks = ctx.reduce(partial(counted, self.way, len(names)), rows, added)
            # A task without samples has no row within any limit.
            within = dict.fromkeys(numbers, [0] * len(self.way.limits))
            within |= dict(zip(names, leaks["rows_TL"].tolist(), strict=True))
            tasks = {name: {**count, "rows": within[name]} for name, count in numbers.items()}
            content = {"column": self.way.writes.name, "at": self.way.limits, "tasks": tasks}
            ctx.map(partial(put_json, LEAKS), [content])
        ctx.restore(rows)

    def nothing(self, where: str, numbers: dict[str, dict[str, int]]) -> StageError:
        """Returns the error for tasks without a sample to compare with."""
        found = "no sample to compare with"
        do = "give tasks with pictures; with captions, for `compare: caption`"
        if short := sum(count.get("too_short", 0) for count in numbers.values()):
            found += f": all captions ({short}) have fewer than {self.size} {self.unit}s"
            do = "lower `size`, or set `unit: character` for scripts without spaces"
        return StageError(found, f"{where}: {redacted(self.tasks)}", do)


def prepared(
    stage: AgainstEvaluation, trained: str | None, item: dict[str, Any], task: Task
) -> dict[str, Any]:
    """Stores out/TASK.parquet, key and value of each sample to compare with.

    Returns the number of `samples`, and of captions `too_short` to compare.
    """
    from clipmill.stages.dedup._copies import are_long
    from clipmill.stages.dedup._plain import plain
    from clipmill.stages.ops.tasks.evaluation import Request, put_samples

    def are_comparable(captions: pa.ChunkedArray) -> pa.Array:
        return are_long(plain(captions), stage.unit, stage.size)

    is_caption = stage.compare == "caption"
    request = Request(
        column=pa.field(stage.compared.name, stage.compared.dtype),
        measure=None if is_caption else measure_of(stage, trained, task.worker),
        fits=are_comparable if is_caption else None,
        views=images.VIEWS if stage.mask else 1,
    )
    counts = put_samples(stage.tasks, item["task"], request, task)
    short = {"too_short": counts["read"] - counts["stored"]} if is_caption else {}
    return {"samples": counts["stored"] // request.views, **short}


def measure_of(stage: AgainstEvaluation, trained: str | None, worker: Worker) -> "Measure":
    """Returns the function that computes a value for each picture."""
    if stage.compared.name == PHASH.name:
        from clipmill.stages.ops.images.perceptual import phash

        return phash
    embed = images.embedder_of(stage.model, trained, worker)
    if embed and stage.mask:
        return lambda pictures: embed([view for rgb in pictures for view in images.views(rgb)])
    return embed or partial(unmeasured, stage.compared.name)


def unmeasured(column: str, pictures: list) -> NDArray[np.float32]:
    raise StageError(
        found=f"evaluation images, and nothing that makes a '{column}' of them",
        where="keys `column` and `model`",
        do="name the model of the pool's embeddings, or give Parquet files with that column",
    )


def nearest_of_all(
    stage: AgainstEvaluation,
    folder: str,
    names: tuple[str, ...],
    sha256: tuple[str, ...],
    shard: pa.Table,
) -> pa.Table:
    """Returns the stage's columns of every row, and how near it is to each task."""
    from clipmill.stages.dedup._copies import opened

    pieces, where = (stage.unit, stage.size), redacted(stage.tasks)
    tasks = opened(folder, names, sha256, stage.compare, pieces, where)
    column = shard[stage.compared.name]
    defined_N, values = tasks[0][1].values(column)
    rows = np.flatnonzero(defined_N)
    near_TN = np.full((len(names), len(shard)), np.nan, np.float32)
    which_TN = np.full((len(names), len(shard)), -1)
    for number, (_, samples) in enumerate(tasks):
        near_TN[number, rows], which_TN[number, rows] = samples.nearest(values)
    task_N = np.zeros(len(shard), np.int64)
    best = np.argmin if stage.way.is_distance else np.argmax  # the first of equally near tasks
    task_N[rows] = best(near_TN[:, rows], axis=0)
    row_N = np.arange(len(shard))
    which_N = which_TN[task_N, row_N]
    keys = pa.chunked_array([chunk for keys, _ in tasks for chunk in keys.chunks], pa.string())
    first_T = np.cumsum([0, *(len(keys) for keys, _ in tasks)])
    has_none_N = which_N < 0
    undefined = pc.make_struct(column.is_null(), pa.array(~defined_N))
    reason = pc.case_when(undefined, stage.reasons[0], stage.reasons[-1])
    value = pa.array(near_TN[task_N, row_N], mask=~defined_N)
    by_task = pa.FixedSizeListArray.from_arrays(pa.array(near_TN.T.reshape(-1)), len(names))
    columns = {
        stage.way.writes.name: value.cast(stage.way.writes.dtype),
        EVAL_TASK.name: pa.array(names).take(pa.array(task_N, mask=has_none_N)),
        EVAL_KEY.name: keys.take(pa.array(first_T[task_N] + which_N, mask=has_none_N)),
        BY_TASK: by_task,
    }
    return with_reason(shard, columns, reason)


def counted(way: Way, tasks: int, rows: pa.Table) -> State:
    """Returns (T, L) the number of rows within each limit of each task."""
    near_NT = as_matrix(rows[BY_TASK]).reshape(len(rows), tasks)
    sign = -1 if way.is_distance else 1
    limits = np.array(way.limits, np.float32)
    within = [np.count_nonzero(sign * near_NT >= sign * limit, axis=0) for limit in limits]
    return {"rows_TL": np.stack(within, axis=1)}


NEAREST = "To the nearest evaluation image."
EVAL_DISTANCE = Column("eval_distance", pa.int32(), "bits", NEAREST, better="high", alike=2)
EVAL_COSINE = Column("eval_cosine", pa.float32(), "cosine", NEAREST, better="low", alike=0.9)
EVAL_OVERLAP = Column(
    "eval_overlap",
    pa.float32(),
    "0 to 1",
    "Share of an evaluation caption that the row has.",
    better="low",
    alike=1,
)
EVAL_TASK = Column(
    "eval_task", pa.string(), "name", "The task of that sample; of several, one.", names="task"
)
EVAL_KEY = Column(
    "eval_key", pa.string(), "key", "That sample, as its task names it.", names="sample"
)
ISC_COSINE = 0.604169  # where DataComp cuts, with descriptors of ISC21's winner

WAYS = {
    "phash": Way(
        reads=PHASH,
        writes=EVAL_DISTANCE,
        reasons=("no_hash",),
        limits=tuple(range(17)),
        is_distance=True,
    ),
    "embedding": Way(
        reads=IMAGE_EMBEDDING,
        writes=EVAL_COSINE,
        reasons=("no_embedding", "zero_or_nan_embedding"),
        limits=(0.5, ISC_COSINE, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0),
    ),
    "caption": Way(
        reads=TEXT,
        writes=EVAL_OVERLAP,
        reasons=("no_text", "empty_text"),
        limits=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    ),
}
