"""A network that learns from trusted pairs and a pool's own which captions fit their image."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill.metadata.schema import IMAGE_FEATURES, KEEP, TEXT, TEXT_FEATURES, UID
from clipmill.metadata.uid import coin_hash, halves
from clipmill.pipeline.dataset import Context, Inputs, Rank, Shards, Task
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import DatasetStage, OneUp, Resources
from clipmill.stages.ops.vectors import as_matrix, refuse_column, unusable
from clipmill.stages.train import _trusted

# Shapes: N usable rows, I and T widths of image and text features.

READ = (IMAGE_FEATURES.name, TEXT_FEATURES.name, TEXT.name)
CARD = "model.json"


@dataclass(frozen=True, kw_only=True)
class TrainedFilterNetwork(DatasetStage):
    """Linear heads that bring image features and captions into one space, from the rows kept.

    `from` may name stages of several pools, whose rows count alike: trusted pairs, and the pool
    that is to be scored. Its faults cost less than its styles are worth:
    docs/measured/filter-network.md has figures. Rows without caption or features, or whose features
    are zero or not finite, are left out; `notes` of `out/model.json` says what
    the others will not teach.
    Source: Data Filtering Networks (Fang et al. 2023), with heads on frozen features and hashed
    words for its CLIP, by canonical correlation, and from the noisy pool too.
    Error: other processors round other sums.
    """

    width: OneUp = 256  # numbers of an embedding
    most_rows: OneUp = 100_000  # to learn from; of more, so many by hash

    version = 5
    determinism = "exact"
    gives = ("model",)
    artifacts = (("notes", CARD),)
    reads_roots = True
    reads = (IMAGE_FEATURES, TEXT_FEATURES, TEXT)
    optional_reads = (KEEP,)
    resources = Resources(cpus=1, memory_gb=4)  # 7 KB a row, 20 KB at the peak

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.say("training")
        ctx.launch(partial(train, inputs.rows, self), workers=1)


def train(rows: Shards, settings: TrainedFilterNetwork, rank: Rank, task: Task) -> dict[str, Any]:
    """Stores the model; how many rows it learnt from."""
    import torch

    from clipmill.stages.models import filter_network as fn
    from clipmill.stages.models.saved import put_model

    seed, stage = task.worker.seed, task.worker.stage
    place = f"stage '{stage}' (train.filter_network)"
    table = usable(rows, settings.most_rows, seed=seed, stage=stage)
    if len(table) < 2:
        raise StageError(
            found=f"{len(table):,} rows with an image, a caption and their features",
            where=place,
            do=f"give {_trusted.FEW} trusted rows or more: fewer teach little better than a coin"
            " toss; see why those there are have no features",
        )
    torch.set_num_threads(1)  # one order of every sum
    torch.use_deterministic_algorithms(True)
    image_NI, text_NT = (as_matrix(table[it.name]) for it in (IMAGE_FEATURES, TEXT_FEATURES))
    try:
        network = fn.fitted(image_NI, text_NT, table[TEXT.name], settings.width)
    except ValueError as error:
        raise StageError(
            found=f"{error}, {len(table):,} of them",
            where=place,
            do="give rows with different images and captions",
        ) from None
    card = {
        "image_width": image_NI.shape[1],
        "text_width": text_NT.shape[1],
        "words": fn.WORDS,
        "trained_rows": len(table),
        "notes": _trusted.notes(table),
        **asdict(settings),
    }
    put_model(task.put_file, task.worker.scratch, fn.KIND, card, network.state_dict())
    return {"rows": len(table)}


def usable(rows: Shards, most: int, *, seed: int, stage: str) -> pa.Table:
    """The rows to learn from, by uid: whatever shards they lie in."""
    table = None
    for part in _usable_parts(rows):
        table = part if table is None else pa.concat_tables([table, part])
        if len(table) > 2 * most:
            table = _drawn(table, most, seed, stage)
    if table is None:
        return pa.table({name: pa.nulls(0) for name in (UID.name, *READ)})
    table = _drawn(table, most, seed, stage)
    high_N, low_N = halves(table[UID.name]).T
    return table.take(pa.array(np.lexsort((low_N, high_N))))


def _usable_parts(rows: Shards) -> Iterator[pa.Table]:
    for shard in range(len(rows)):
        table = rows.table(shard)
        good = table[TEXT.name].is_valid().to_numpy()
        if KEEP.name in table.column_names:
            good &= table[KEEP.name].fill_null(False).to_numpy()
        for column in (IMAGE_FEATURES, TEXT_FEATURES):
            bad_N = unusable(as_matrix(table[column.name]))
            refuse_column(np.asarray(table[column.name].is_null()), bad_N, column.name, None)
            good &= ~bad_N
        yield table.filter(pa.array(good)).select([UID.name, *READ])


def _drawn(table: pa.Table, most: int, seed: int, stage: str) -> pa.Table:
    """The rows with the least hashes, if there are more than `most`."""
    if len(table) <= most:
        return table
    hash_N = coin_hash(table[UID.name], seed=seed, stage=stage, purpose="rows")
    return table.take(pa.array(np.argsort(hash_N, kind="stable")[:most]))
