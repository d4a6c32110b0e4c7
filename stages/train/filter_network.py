"""A network that learns from trusted pairs which captions fit their image."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from metadata.schema import IMAGE_FEATURES, KEEP, TEXT, TEXT_FEATURES, UID
from metadata.uid import coin_hash, halves
from pipeline.dataset import Context, Inputs, Rank, Shards, Task
from pipeline.errors import StageError
from pipeline.stage import DatasetStage, Decay, OneUp, Rate, Resources
from stages.ops.vectors import as_matrix
from stages.train import _trusted

# Shapes: N usable rows, I and T widths of image and text features.

READ = (IMAGE_FEATURES.name, TEXT_FEATURES.name, TEXT.name)
LOG, CARD = "log.parquet", "model.json"


@dataclass(frozen=True, kw_only=True)
class TrainedFilterNetwork(DatasetStage):
    """Two linear heads that bring image and text features into one space, from the rows kept.

    Rows without caption or features are left out; `out/log.parquet` has each step's loss and scale,
    `notes` of `out/model.json` what these rows will not teach.
    Source: Data Filtering Networks (Fang et al. 2023), with heads on frozen features for its CLIP.
    Error: other processors round other sums, and 100 steps carry that on.
    """

    width: OneUp = 256  # numbers of an embedding
    # 25 passes over 2,000 rows by default: pairs held out rank worse from 200 on
    train_steps: OneUp = 100
    train_batch: OneUp = 512  # rows of a step
    learning_rate: Rate = 1e-3  # of AdamW
    weight_decay: Decay = 0.1  # of AdamW

    version = 1
    determinism = "exact"
    gives = ("model",)
    artifacts = (("loss", LOG), ("notes", CARD))
    reads = (IMAGE_FEATURES, TEXT_FEATURES, TEXT)
    optional_reads = (KEEP,)
    resources = Resources(cpus=1, memory_gb=4)  # 7 KB a row: 300,000 trusted rows

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.say("training")
        ctx.launch(partial(train, inputs.rows, self), workers=1)


def train(rows: Shards, settings: TrainedFilterNetwork, rank: Rank, task: Task) -> dict[str, Any]:
    """Stores the model and its log; the last loss."""
    import torch

    from stages.models import filter_network as fn
    from stages.models.saved import put_model

    seed, stage = task.worker.seed, task.worker.stage
    place = f"stage '{stage}' (train.filter_network)"
    table = usable(rows)
    if len(table) < settings.train_batch:
        raise StageError(
            found=f"{len(table):,} rows with an image, a caption and their features, "
            f"and a batch takes {settings.train_batch:,}",
            where=place,
            do=f"give {_trusted.FEW} trusted rows or more: fewer teach little better than a coin"
            " toss; or lower `train_batch` below the rows there are",
        )
    torch.set_num_threads(1)  # one order of every sum
    torch.use_deterministic_algorithms(True)
    image_NI = torch.tensor(as_matrix(table[IMAGE_FEATURES.name]))
    text_NT = torch.tensor(as_matrix(table[TEXT_FEATURES.name]))
    caption_N = torch.from_numpy(
        table[TEXT.name].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    )
    sizes = {
        "image_width": image_NI.shape[1],
        "text_width": text_NT.shape[1],
        "width": settings.width,
    }
    coins = partial(step_seed, seed=seed, stage=stage)
    torch.manual_seed(coins("init", 0))
    network = fn.FilterNetwork(**sizes)
    log: list[tuple[float, float]] = []
    for loss, scale in fn.steps(
        network,
        image_NI,
        text_NT,
        caption_N,
        itertools.islice(
            batches(table[UID.name], settings.train_batch, seed=seed, stage=stage),
            settings.train_steps,
        ),
        (coins("dropout", step) for step in range(settings.train_steps)),
        settings.learning_rate,
        settings.weight_decay,
    ):
        log.append((loss, scale))
        task.worker.tell(len(log), settings.train_steps, "steps", loss=loss)
        if not np.isfinite(loss):
            raise StageError(
                found=f"the loss is {loss} at step {len(log)} of {settings.train_steps}",
                where=place,
                do="lower `learning_rate`; see the features for values that are far off",
            )
    put_log(task, log)
    told = {"trained_rows": len(table), "notes": _trusted.notes(table)}
    settings_now = {**sizes, **told, **asdict(settings)}
    weights = network.state_dict()
    put_model(task.put_file, task.worker.scratch, fn.KIND, settings_now, weights)
    return {"rows": len(table), "loss": log[-1][0]}


def usable(rows: Shards) -> pa.Table:
    """The rows to learn from, by uid: whatever shards they lie in."""
    parts = []
    for shard in range(len(rows)):
        table = rows.table(shard)
        good = table[TEXT.name].is_valid().to_numpy()
        if KEEP.name in table.column_names:
            good &= table[KEEP.name].fill_null(False).to_numpy()
        for column in (IMAGE_FEATURES, TEXT_FEATURES):  # NaN where null
            good &= np.isfinite(as_matrix(table[column.name])).all(axis=1)
        parts.append(table.filter(pa.array(good)).select([UID.name, *READ]))
    table = pa.concat_tables(parts)
    high_N, low_N = halves(table[UID.name]).T
    return table.take(pa.array(np.lexsort((low_N, high_N))))


def batches(uid: pa.ChunkedArray, rows: int, *, seed: int, stage: str) -> Iterator[NDArray]:
    """Row numbers of step 0, 1, ...: passes over all rows, each in an order of its own by hash.

    What a pass leaves, less than a batch, waits for the next one.
    """
    for number in itertools.count():
        hash_N = coin_hash(uid, seed=seed, stage=stage, purpose=f"pass {number}")
        order_N = np.argsort(hash_N, kind="stable")
        for start in range(0, len(order_N) - rows + 1, rows):
            yield order_N[start : start + rows]


def step_seed(purpose: str, step: int, *, seed: int, stage: str) -> int:
    """63 uniform bits for one purpose at one step."""
    key = "\x1f".join((str(seed), stage, purpose, str(step)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1


def put_log(task: Task, log: list[tuple[float, float]]) -> None:
    """`out/log.parquet`: loss and scale of each step."""
    loss, scale = (pa.array(values, pa.float32()) for values in zip(*log, strict=True))
    step = pa.array(range(len(log)), pa.int32())
    path = task.worker.scratch / LOG
    pq.write_table(pa.table({"step": step, "loss": loss, "scale": scale}), path)
    task.put_file(path.name, path)
