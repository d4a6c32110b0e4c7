"""Scores how much better a caption fits its image than drawn partners do (negCLIPLoss)."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    IDENTITY,
    IMAGE_EMBEDDING,
    KEEP,
    REASON,
    TEXT_EMBEDDING,
    UID,
    Column,
)
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs, State
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import DatasetStage, Gigabytes, OneUp, location
from clipmill.stages.ops.tables.rows import DROPPED, added, dropped_before, in_order, with_reason
from clipmill.stages.ops.vectors.matrices import (
    as_matrix,
    refuse_widths,
    row_dot,
    unit_rows,
    unusable,
)

# Shapes: N rows, B rows of a group, C of a block of them, D width of a vector.
# A partition divides all rows into groups; a row's partners are the rows of its group.

BLOCK = 128  # rows compared with their group at a time: 32 MB in float64
NEGCLIP_SCORE = Column(
    "negclip_score", pa.float32(), "cosine", "Cosine, less what partners reach.", better="high"
)


@dataclass(frozen=True, kw_only=True)
class NegClip(DatasetStage):
    """Cosine of a pair less tau / 2 * (a + b), the mean over random partitions of the rows into
    groups; null without a vector.

    a is the log-sum-exp of cosine / tau of its image and each caption of its group, b that of its
    caption and each image. The group is a hash of seed, partition and uid, so shards and workers
    change nothing; it has `batch` rows on average, and none that an earlier select dropped.

    Source: negCLIPLoss (Wang et al. 2024), and its released code. Departs: its groups are batches
    of a shard, so that its scores depend on the pool's order; its float32 overflows where tau is
    0.01 and a partner's cosine above 0.88, and gives such a row minus infinity.
    Error: max 4e-7 against float64 over groups of 256 and 8,192 rows, D = 24 and 512, at tau
    0.01 and 0.07.
    Example: {after: [ingest.image_folder, embed.clip], batch: 8, partitions: 2}
    """

    batch: Annotated[int, Meta(ge=2)] = 32_768  # rows that are compared, on average
    partitions: OneUp = 10  # times that the rows are partitioned; gains end at 5
    tau: Annotated[float, Meta(ge=0.002)] = 0.01  # temperature of the model; DFN's: 0.07
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 1
    determinism = "exact"
    reads = (IMAGE_EMBEDDING, TEXT_EMBEDDING)
    optional_reads = (KEEP,)
    writes = (NEGCLIP_SCORE,)
    reasons = (DROPPED, "no_image_embedding", "no_text_embedding", "zero_or_nan_embedding")

    @property
    def least_rows(self) -> tuple[str, int]:
        return "batch", self.batch

    def run(self, inputs: Inputs, ctx: Context) -> None:
        rows = ctx.map_shards(started, inputs.rows)
        scored = int(ctx.reduce(usable, rows, added)["rows"]) if len(rows) else 0
        if 0 < scored < self.batch:
            raise StageError(
                found=f"groups of {self.batch:,} rows, and {scored:,} have both embeddings",
                where=f"stage '{ctx.worker.stage}', key `batch`",
                do="lower `batch`, or give more rows",
            )
        place = partial(
            placed, ctx.worker.seed, ctx.worker.stage, max(1, round(scored / self.batch))
        )
        met = []
        for number in range(self.partitions):
            ctx.say(f"partition {number + 1} of {self.partitions}")
            met.append(ctx.shuffle(ctx.map_shards(partial(place, number), rows), "group"))
            if number:
                ctx.drop(met[-2])  # the shuffle above has stored its sums
            rows = ctx.map_shards(self.compared, met[-1])
        ctx.restore(ctx.map_shards(self.scores, rows))

    def compared(self, rows: pa.Table) -> pa.Table:
        """Adds this partition's score to the sum of each row; `rows` has each group whole."""
        order = in_order(rows, rows["group"].to_numpy())  # so sums round alike whatever the shards
        order = order[rows[REASON.name].is_null().to_numpy()[order]]
        sum_N = rows["sum"].to_numpy().copy()
        ends = np.flatnonzero(np.diff(rows["group"].to_numpy()[order])) + 1
        for group in np.split(order, ends) if len(order) else []:
            members = rows.take(pa.array(group))
            image, text = (unit_rows(as_matrix(members[c.name])) for c in self.reads)
            refuse_widths(image, text, "score.negclip")
            sum_N[group] += contrast(image, text, self.tau)
        return rows.drop_columns(["group", "sum"]).append_column("sum", pa.array(sum_N))

    def scores(self, rows: pa.Table) -> pa.Table:
        """Returns the mean over the partitions, and the reason."""
        mean_N = rows["sum"].to_numpy() / self.partitions
        score = pa.array(mean_N.astype(np.float32), mask=rows[REASON.name].is_valid().to_numpy())
        return with_reason(rows, {NEGCLIP_SCORE.name: score}, rows[REASON.name])


def started(rows: pa.Table) -> pa.Table:
    """Returns identity, both vectors, the reason to have no score, and a sum of 0."""
    vectors = [rows[column.name] for column in NegClip.reads]
    bad_N = np.logical_or.reduce([unusable(as_matrix(vector)) for vector in vectors])
    masks = [dropped_before(rows), *(v.is_null() for v in vectors), pa.array(bad_N)]
    reason = pc.case_when(pc.make_struct(*masks), *NegClip.reasons)
    out = rows.select([*IDENTITY, *(column.name for column in NegClip.reads)])
    out = out.append_column(REASON.name, reason)
    return out.append_column("sum", pa.array(np.zeros(len(rows))))


def usable(rows: pa.Table) -> State:
    return {"rows": np.array(rows[REASON.name].null_count)}


def placed(seed: int, stage: str, groups: int, number: int, rows: pa.Table) -> pa.Table:
    """Adds each row's group in partition `number`, one of `groups` groups."""
    bits_N = coin_hash(rows[UID.name], seed=seed, stage=stage, purpose=f"partition {number}")
    return rows.append_column("group", pa.array((bits_N % np.uint64(groups)).astype(np.int64)))


def contrast(
    image_BD: NDArray[np.float32], text_BD: NDArray[np.float32], tau: float
) -> NDArray[np.float64]:
    """Returns (B,) the cosine of each pair less tau / 2 * (both log-sum-exp of s / tau)."""
    by_image_B, by_text_B = np.zeros((2, len(image_BD)))
    for start in range(0, len(image_BD), BLOCK):
        block = slice(start, start + BLOCK)
        exp_CB = (image_BD[block] @ text_BD.T).astype(np.float64)
        exp_CB /= tau
        np.exp(exp_CB, out=exp_CB)  # e^500 at most: no maximum need be taken off
        by_image_B[block] = exp_CB.sum(axis=1)
        by_text_B += exp_CB.sum(axis=0)
    return row_dot(image_BD, text_BD) - tau / 2 * (np.log(by_image_B) + np.log(by_text_B))
