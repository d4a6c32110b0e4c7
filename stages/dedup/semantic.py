"""Finds semantic duplicates: images near each other in embedding space, inside one cluster."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import (
    CENTROID_COSINE,
    CLUSTER_ID,
    IMAGE_EMBEDDING,
    REASON,
    UID,
    Column,
)
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import Gigabytes, NonEmpty, location
from clipmill.stages.ops.tables.keeper import (
    PREFERENCE,
    Keep,
    KeepsBest,
    Order,
    best_first,
    preference,
)
from clipmill.stages.ops.tables.rows import DROPPED, dropped_before, with_reason
from clipmill.stages.ops.vectors.matrices import as_matrix, refuse_column, unusable

if TYPE_CHECKING:
    from clipmill.stages.dedup._earlier import Precision

# Shapes: N rows of a partition, D width of a vector.

EARLIER_COSINE = Column(
    "earlier_cosine",
    pa.float32(),
    "cosine",
    "To the most similar row before it in its cluster; -1 for the first of a cluster.",
    better="low",
    alike=0.95,
)
EARLIER_UID = Column(
    "earlier_uid", pa.binary(16), "uid", "That row; null for the first.", names="neighbour"
)
HARD = Keep(column=CENTROID_COSINE.name, order="asc")  # SemDeDup's default; desc is its `easy`


@dataclass(frozen=True, kw_only=True)
class SemanticDuplicate(KeepsBest):
    """Cosine to the most similar earlier row of its cluster, -1 to 1; null without a direction.

    A row is a duplicate at epsilon exactly when earlier_cosine >= 1 - epsilon, for every epsilon:
    `earlier_cosine < 0.95` keeps what SemDeDup keeps at 0.05, the first row of a cluster always.
    Rows are ordered by `keep`, then by uid. All earlier rows count, even duplicates: of a chain a,
    b, c of near pairs only a stays. The row of earlier_uid need not stay.

    Source: SemDeDup (Abbas et al. 2023), whose `hard` is the default: least like the centroid
    first. Departs: at 1 - epsilon a row is a duplicate, too; a cosine below 0 is stored as it is.
    Error: cosines of all pairs in float64, rounded to float32, whatever `precision`; of equal ones
    earlier_uid is the first row. Copies in two clusters do not meet.
    Example: {after: [ingest.image_folder, embed.clip, cluster.kmeans]}
    """

    # column of the embeddings to compare, the one that was clustered
    column: NonEmpty = IMAGE_EMBEDDING.name
    # order of the rows of a cluster, the one that stays first; the default is SemDeDup's
    keep: Order = HARD
    # precision of the first, fast comparison; bfloat16 is faster if the processor multiplies it
    precision: Literal["float32", "bfloat16"] = location("float32")
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 2
    writes = (EARLIER_COSINE, EARLIER_UID)
    reasons = (DROPPED, "no_embedding", "zero_or_nan_embedding", "no_cluster")

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return replace(IMAGE_EMBEDDING, name=self.column), CLUSTER_ID, *self.deciding

    def run(self, inputs: Inputs, ctx: Context) -> None:
        model = inputs.model_of.get(self.column)
        rows = ctx.map_shards(partial(with_order, self.column, self.keep, model), inputs.rows)
        ctx.say("comparing embeddings")
        clusters = ctx.shuffle(rows, CLUSTER_ID.name)
        ctx.restore(ctx.map_shards(partial(compared, self.precision), clusters))


def with_order(column: str, order: Order, model: str | None, shard: pa.Table) -> pa.Table:
    """Returns identity, preference, cluster and vector of the rows, or a reason.

    StageError if more than a tenth of the vectors that `model` made are zero or not finite.
    """
    bad_N, dropped = unusable(as_matrix(shard[column])), dropped_before(shard)
    missing_N = np.asarray(dropped) | np.asarray(shard[column].is_null())
    refuse_column(missing_N, bad_N, column, model)
    cluster = shard[CLUSTER_ID.name]
    undefined = pc.make_struct(dropped, shard[column].is_null(), pa.array(bad_N), cluster.is_null())
    reason = pc.case_when(undefined, *SemanticDuplicate.reasons)
    made = {
        PREFERENCE.name: preference(order, shard),
        CLUSTER_ID.name: pc.if_else(reason.is_null(), cluster, None),
        "vector": shard[column],
    }
    return with_reason(shard, made, reason)


def compared(precision: "Precision", partition: pa.Table) -> pa.Table:
    """Returns earlier_cosine and earlier_uid of every row; each cluster is in one partition."""
    # Compiled: not while a recipe is planned.
    from clipmill.stages.dedup._earlier import most_similar_earlier

    cosine_N = np.full(len(partition), np.nan, np.float32)
    earlier_N = np.full(len(partition), -1)
    vector_ND = as_matrix(partition["vector"])
    cluster_N = partition[CLUSTER_ID.name].fill_null(0).to_numpy()
    order_N = best_first(partition)
    order_N = order_N[partition[CLUSTER_ID.name].is_valid().to_numpy()[order_N]]
    order_N = order_N[np.argsort(cluster_N[order_N], kind="stable")]
    starts = np.flatnonzero(np.diff(cluster_N[order_N])) + 1
    for rows in filter(len, np.split(order_N, starts)):
        cosine_N[rows], place = most_similar_earlier(vector_ND[rows], precision)
        earlier_N[rows] = np.where(place < 0, -1, rows[place])
    uid = partition[UID.name].combine_chunks().take(pa.array(earlier_N, mask=earlier_N < 0))
    made = {EARLIER_COSINE.name: pa.array(cosine_N, mask=np.isnan(cosine_N)), EARLIER_UID.name: uid}
    return with_reason(partition, made, partition[REASON.name])
