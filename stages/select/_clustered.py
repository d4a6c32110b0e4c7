"""Shared parts of selects by cluster: their base class, the ranked rows, and sizes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import CENTROID_COSINE, CLUSTER_ID, IDENTITY, POSITION, REASON, Column
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import (
    DatasetStage,
    Gigabytes,
    OneUp,
    Parts,
    Share,
    Threshold,
    Verdicts,
    location,
)
from clipmill.stages.ops.tables.rows import DROPPED
from clipmill.stages.select._judged import NO_IMAGE, first_of, left_out, the_size

# Shapes: N rows.

CLUSTER_RANK = Column("cluster_rank", pa.int32(), "1 up", "Its place in the order of its cluster.")
CLUSTER_QUOTA = Column("cluster_quota", pa.int32(), "rows, 0 up", "How many its cluster keeps.")
Balance = Annotated[float, Meta(ge=0, le=1)]  # a fraction of an even share
UNDEFINED = tuple(f"undefined:{c.name}" for c in (CLUSTER_ID, CENTROID_COSINE))
PRUNED = "pruned"
REASONS = (DROPPED, NO_IMAGE, *UNDEFINED, PRUNED)
UNIT = 2.0**44  # probabilities are multiples of 1 / UNIT: their sums are exact


@dataclass(frozen=True, kw_only=True)
class SizedSelect(DatasetStage):
    """A select of a given number of rows, by a rank: the least size at which the row stays."""

    rows: OneUp | None = None  # number of rows to keep
    fraction: Share | None = None  # or: share of the ranked rows to keep
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    determinism = "exact"
    learns = ""
    rank: ClassVar[str]  # the column

    def __post_init__(self) -> None:
        self.wanted()

    def wanted(self) -> tuple[str, float]:
        """Returns name and value of `rows` or `fraction`; RecipeError unless one is given."""
        do = "give one of the two: fraction: 0.3, or rows: 1000"
        return the_size(self, ("rows", "fraction"), do)

    @property
    def least_rows(self) -> tuple[str, int] | None:
        return ("rows", self.rows) if self.rows else None

    def thresholds(self) -> tuple[Threshold, ...]:
        """Returns `rows` or `fraction`; the stored ranks answer for any value."""
        name, value = self.wanted()
        return (
            Threshold.own(name, self.rank, "=", float(value), f"{name} = {value}", is_size=True),
        )

    def rows_to_keep(self, ranked: int, stage: str) -> int:
        """Returns the number of rows to keep; StageError if there are fewer."""
        if self.rows is not None and self.rows > ranked:
            raise StageError(
                found=f"{self.rows:,} rows wanted, and {ranked:,} are ranked",
                where=f"stage '{stage}', key `rows`",
                do=f"want {ranked:,} at most" if ranked else "see why none is: clipmill funnel",
            )
        return int(ranked * (self.fraction or 0)) if self.rows is None else self.rows

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        """Yields the verdicts at each size; ValueError for a size out of range."""
        return self.surveyed(threshold, values, lambda: iter([(rows, made)]))(rows, made)

    def surveyed(
        self, threshold: Threshold, values: Sequence[Decimal], parts: Parts
    ) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
        """Returns a function that yields a part's verdicts at each size, for the rows of all."""
        name = threshold.column
        ranked = sum(len(made) - made[name].null_count for _, made in parts())
        sizes = [size_of(threshold.name, value, ranked) for value in values]

        def verdicts(rows: pa.Table, made: pa.Table) -> Iterator[Verdicts]:
            for value, size in zip(values, sizes, strict=True):
                keep_N = pc.less_equal(made[name], size).fill_null(False).to_numpy()
                yield Verdicts(float(value), f"{threshold.name} = {value:f}", keep_N)

        return verdicts

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Returns a row's rank in its cluster, the cluster's quota, and the size it stays from."""
        if reason not in ("", PRUNED):
            return ""
        return (
            f"it is row {made[CLUSTER_RANK.name]:,} there, and {made[CLUSTER_QUOTA.name]:,} stay;"
            f" it stays from {made[self.rank]:,.10g} rows on"
        )


def population(shard: pa.Table) -> pa.Table:
    """Returns identity, cluster and cosine; null, with a reason, for rows that are not ranked."""
    cosine = shard[CENTROID_COSINE.name].combine_chunks()
    masks = {
        **left_out(shard),
        UNDEFINED[0]: shard[CLUSTER_ID.name].is_null(),
        UNDEFINED[1]: pc.fill_null(pc.is_nan(cosine), True),
    }
    reason = first_of(masks)
    made = {CENTROID_COSINE.name: pc.if_else(reason.is_null(), cosine, None)}
    return keyed_by_cluster(shard, reason, made)


def keyed_by_cluster(shard: pa.Table, reason: pa.Array, made: Mapping[str, Any]) -> pa.Table:
    """Returns identity, cluster (null with a reason), columns, reason, and the key to shuffle by.

    Rows without a cluster are spread by position: together they would fill one partition.
    """
    cluster = pc.if_else(reason.is_null(), shard[CLUSTER_ID.name], None)
    elsewhere = pc.subtract(-1, shard[POSITION.name].cast(pa.int64()))
    columns = {name: shard[name] for name in IDENTITY}
    columns["key"] = pc.coalesce(cluster.cast(pa.int64()), elsewhere)
    return pa.table({**columns, CLUSTER_ID.name: cluster, **made, REASON.name: reason})


def refuse_strangers(number_K: NDArray[np.integer], centroids: int, where: str) -> None:
    """Raises StageError if a row's cluster has no centroid."""
    strange = number_K[(number_K < 0) | (number_K >= centroids)]
    if len(strange):
        raise StageError(
            found=f"a row of cluster {strange[0]}, and {centroids:,} centroids, from 0",
            where=f"{where}, key `centroids`",
            do="name the stage that made `cluster_id`, or the centroids that it was given",
        )


def size_of(name: str, value: Decimal, ranked: int) -> int:
    """Returns the rows that a value of `rows` or `fraction` means; ValueError if out of range."""
    if name == "fraction":
        if not 0 < value <= 1:
            raise ValueError(f"fraction is {value}; it lies above 0, up to 1")
        return int(ranked * float(value))
    if not 1 <= value <= ranked or value != int(value):
        raise ValueError(f"rows is {value}; it is a whole number, 1 to {ranked:,}")
    return int(value)
