"""Which rows stay: those least like the prototype of their cluster, and some of every cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from clipmill.metadata.schema import CENTROID_COSINE, CLUSTER_ID, IMAGE_BYTES, KEEP
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import (
    DatasetStage,
    Gigabytes,
    OneUp,
    Parts,
    Resources,
    Share,
    Threshold,
    Verdicts,
    location,
)
from clipmill.stages.select._clustered import (
    CLUSTER_QUOTA,
    CLUSTER_RANK,
    REASONS,
    Balance,
    explained,
    first_by_rank,
    first_of_parts,
    one_size,
    size_threshold,
    wanted,
)
from clipmill.stages.select._prototypes import (
    PROTOTYPE_RANK,
    Ranking,
    Sign,
    binned,
    counted,
    counts_merged,
    grouped,
    groups,
    histogram,
    judged,
    merged,
    put_tables,
)


@dataclass(frozen=True, kw_only=True)
class Prototypes(DatasetStage):
    """Whether a row stays, and `prototype_rank`: the size from which it does; null without cluster.

    Rows come by their cosine to the centroid of their cluster, the least first (`hard`), ties to
    the smaller uid. Of N rows, each cluster has its first balance * N / clusters at least, rounded
    down: one row in 1 / balance is a turn of the clusters, one after the other. Ranks are 1, 2, 3
    and so on: `prototype_rank <= N` keeps N rows, and they are among those of every larger N.
    `rows` and `fraction` (of the ranked rows, rounded down) do that. Ranked are rows with a cluster
    that no earlier select dropped and whose image did not fail. out/prototypes.parquet has a row a
    cluster, out/prototypes.json the sizes.

    Source: self-supervised prototypes (Sorscher et al. 2022): keep what is hard where data are
    plentiful, what is easy where they are scarce; the balance is that of their class balance.
    Error: none; cosines are compared as stored, in float32.
    Example: {after: [ingest.image_folder, embed.clip, cluster.kmeans], fraction: 0.3}
    """

    rows: OneUp | None = None  # how many rows to keep
    fraction: Share | None = None  # or: which share of those that are ranked
    # which rows come first: those far from their centroid (hard), or near it
    order: Literal["hard", "easy"] = "hard"
    # of an even share of the rows, what each cluster keeps at least; 0: no least share
    balance: Balance = 0.5
    memory_gb: Gigabytes = location(2)  # memory of one worker, in GB

    version = 1
    determinism = "exact"
    reads = (CLUSTER_ID, CENTROID_COSINE)
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, PROTOTYPE_RANK, CLUSTER_RANK, CLUSTER_QUOTA)
    reasons = REASONS

    def __post_init__(self) -> None:
        one_size(self.rows, self.fraction)

    @property
    def resources(self) -> Resources:  # the cosines of a partition's clusters
        return Resources(memory_gb=self.memory_gb)

    def thresholds(self) -> tuple[Threshold, ...]:
        """`rows` or `fraction`."""
        return (size_threshold(self.rows, self.fraction, PROTOTYPE_RANK.name),)

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        """The rows of the least ranks, as many as each value says."""
        return first_by_rank(threshold, values, rows, made)

    def surveyed(
        self, threshold: Threshold, values: Sequence[Decimal], parts: Parts
    ) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
        """The same, of rows that are not all at hand."""
        return first_of_parts(threshold, values, parts)

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Rank and quota, of a row that was ranked; its cluster is shown beside."""
        return explained(reason, made, PROTOTYPE_RANK.name)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        sign: Sign = 1 if self.order == "hard" else -1
        rows = ctx.map_shards(partial(binned, sign), inputs.rows)
        if not len(rows):
            ctx.restore(rows)
            return
        ctx.say("counting rows by cosine")
        seen = ctx.reduce(histogram, rows, merged)
        asked = wanted(self.rows, self.fraction, int(seen["rows_B"].sum()), ctx.worker.stage)
        group_B = groups(seen["rows_B"], int(seen["clusters"]))
        counts = ctx.reduce(partial(counted, group_B), rows, counts_merged)
        ranking = Ranking.of(counts, group_B, sign, self.balance)
        ctx.say("sorting rows by cosine")
        sorted_rows = ctx.shuffle(ctx.map_shards(partial(grouped, group_B), rows), "key")
        kept_K = ranking.kept(asked, sorted_rows, ctx)
        ctx.map(partial(put_tables, ranking, kept_K), [{"asked": asked}])
        ctx.say("")
        ctx.restore(ctx.map_shards(partial(judged, ranking, kept_K, asked), sorted_rows))
