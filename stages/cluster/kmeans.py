"""Clusters of embeddings by direction, over the whole pool."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from metadata.schema import (
    CENTROID_COSINE,
    CLUSTER_ID,
    IDENTITY,
    IMAGE_EMBEDDING,
    POSITION,
    REASON,
    REASON_TYPE,
    SHARD,
    UID,
    Column,
)
from metadata.uid import coin_hash, halves, uniform
from pipeline.dataset import Context, Inputs, State, Task
from pipeline.stage import DatasetStage, NonEmpty, OneUp, Share
from stages.ops.vectors import (
    as_matrix,
    blocks,
    from_matrix,
    nearest,
    nearest_centre,
    unit_rows,
)

# Shapes: N rows, D width of a vector, K centres (fewer than `clusters` in a small pool), R rounds.

FIXED = 2.0**30  # a sum over 2^33 rows still fits into 64 bits
CENTROIDS, ROUNDS = "centroids.parquet", "rounds.parquet"
NO_ROUNDS = np.empty((0, 2))
TILT = 2.0**-10  # how far the halves of a split cluster start apart, as in faiss


@dataclass(frozen=True, kw_only=True)
class KMeans(DatasetStage):
    """Nearest of `clusters` directions and the cosine to it, in [-1, 1]; null without a direction.

    out/centroids.parquet has a row a cluster: its centroid at length 1, its rows, and their inertia
    (sum of squared distances of unit vectors to it); out/rounds.parquet has rows and inertia of
    the training rows at the begin of each round. Another stage takes both by
    `centroids: "stage:NAME"`.
    Source: spherical k-means (Dhillon & Modha 2001), as SemDeDup takes it. Departs: starts from the
    rows whose uids hash lowest; an empty cluster takes half of the largest one (as faiss does), so
    with fewer distinct vectors than clusters some stay empty.
    Error: sums are in fixed point, 2^-31 a value, so no order of rows or shards changes a bit.
    Example: {clusters: 100}
    """

    clusters: OneUp  # how many
    rounds: OneUp = 20  # at most; fewer when no centre moves any more
    column: NonEmpty = IMAGE_EMBEDDING.name  # the embeddings that are clustered
    # share of the rows, by hash, that the centres are found on; all rows get their cluster in any
    # case
    train_fraction: Share = 1.0

    version = 1
    determinism = "exact"
    gives = ("rows", "centroids")
    writes = (CLUSTER_ID, CENTROID_COSINE)
    artifacts = (("centroids", CENTROIDS),)
    reasons = ("no_embedding", "zero_or_nan_embedding")

    @property
    def reads(self) -> tuple[Column, ...]:
        return (replace(IMAGE_EMBEDDING, name=self.column),)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        coins = partial(coin_hash, seed=ctx.worker.seed, stage=ctx.worker.stage, purpose="train")
        rows = ctx.map_shards(partial(directions, self.column, coins), inputs.rows)
        ctx.say("drawing the first centres")
        lowest = ctx.reduce(
            partial(lowest_coins, self.clusters),
            rows,
            partial(merge_lowest, self.clusters),
        )
        start = {
            "centre_KD": lowest["unit_KD"],
            "moved": np.array(len(lowest["unit_KD"])),
        }

        def step(state: State, number: int) -> State:
            centre_KD = state["centre_KD"]
            cells = partial(cell_sums, centre_KD, self.train_fraction)
            sums = ctx.reduce(cells, rows, merge_sums)
            now = sums["count_K"].sum(), inertia(centre_KD, sums).sum()
            before_R2 = state.get("round_R2", NO_ROUNDS)  # none in a journal of older versions
            rounds = {"round_R2": np.vstack([before_R2, now])}
            return moved_centres(centre_KD, sums) | rounds

        ctx.say("moving the centres")
        end = ctx.iterate(start, step, self.rounds, until=lambda state: not state["moved"])
        ctx.say("")
        sums = ctx.reduce(partial(cell_sums, end["centre_KD"], 1.0), rows, merge_sums)
        tables = {
            CENTROIDS: centroids(end["centre_KD"], sums),
            ROUNDS: rounds(end.get("round_R2", NO_ROUNDS)),
        }
        ctx.map(partial(put_table, tables), list(tables))
        ctx.restore(ctx.map_shards(partial(assigned, self.column, end["centre_KD"]), inputs.rows))


def directions(column: str, coins: Callable, shard: pa.Table) -> pa.Table:
    """The rows that have a direction: who they are, their coin, and the unit vector."""
    unit_ND = unit_rows(as_matrix(shard[column]))
    rows = shard.select(IDENTITY)
    rows = rows.append_column("coin", pa.array(coins(shard[UID.name])))
    rows = rows.append_column("unit", from_matrix(unit_ND))
    return rows.filter(pc.is_valid(rows["unit"]))


def lowest_coins(clusters: int, rows: pa.Table) -> State:
    """The rows with the lowest coins, as many as there are clusters, and lowest first."""
    identity = {
        "coin_K": rows["coin"].to_numpy(),
        "uid_K2": halves(rows[UID.name]),
        "shard_K": rows[SHARD.name].to_numpy(),
        "position_K": rows[POSITION.name].to_numpy(),
    }
    return _lowest(clusters, {**identity, "unit_KD": as_matrix(rows["unit"])})


def merge_lowest(clusters: int, a: State, b: State) -> State:
    return _lowest(clusters, {name: np.concatenate([a[name], b[name]]) for name in a})


def _lowest(clusters: int, rows: State) -> State:
    uid_K2 = rows["uid_K2"]  # decides among equal coins; then the row's place, if uids repeat
    keys = (
        rows["position_K"],
        rows["shard_K"],
        uid_K2[:, 1],
        uid_K2[:, 0],
        rows["coin_K"],
    )
    first_K = np.lexsort(keys)[:clusters]
    return {name: values[first_K] for name, values in rows.items()}


def cell_sums(centre_KD: NDArray, train_fraction: float, rows: pa.Table) -> State:
    """For each centre, the sum of its rows' vectors in fixed point, and their number."""
    import torch  # whose index_add_ is many times NumPy's sum by group

    unit_ND = as_matrix(rows["unit"])
    if train_fraction < 1:
        unit_ND = unit_ND[uniform(rows["coin"].to_numpy()) < train_fraction]
    index_N = nearest_centre(unit_ND, centre_KD)
    # Whole numbers, of which float64 sums 2^23 rows of a shard without rounding.
    sum_KD = torch.zeros(centre_KD.shape, dtype=torch.float64)
    for part in blocks(len(unit_ND)):
        fixed_BD = torch.from_numpy(np.rint(unit_ND[part].astype(np.float64) * FIXED))
        sum_KD.index_add_(0, torch.from_numpy(index_N[part]), fixed_BD)
    count_K = np.bincount(index_N, minlength=len(centre_KD))
    return {"sum_KD": sum_KD.numpy().astype(np.int64), "count_K": count_K}


def merge_sums(a: State, b: State) -> State:
    return {name: np.add(a[name], b[name]) for name in a}


def moved_centres(centre_KD: NDArray, sums: State) -> State:
    """The mean direction of each centre's rows, and how many centres it moved."""
    mean_KD = unit_rows(sums["sum_KD"].astype(np.float64))
    undefined_K = np.isnan(mean_KD).any(axis=1)  # no rows, or rows that cancel out
    mean_KD[undefined_K] = centre_KD[undefined_K]
    count_K = sums["count_K"].copy()
    tilt_D = np.where(np.arange(centre_KD.shape[1]) % 2, TILT, -TILT).astype(np.float32)
    for empty in np.flatnonzero(count_K == 0):
        largest = count_K.argmax()
        mean_KD[[empty, largest]] = unit_rows(mean_KD[largest] * np.stack([1 + tilt_D, 1 - tilt_D]))
        count_K[empty] = count_K[largest] // 2
        count_K[largest] -= count_K[empty]
    return {
        "centre_KD": mean_KD,
        "moved": np.array((mean_KD != centre_KD).any(axis=1).sum()),
    }


def inertia(centre_KD: NDArray, sums: State) -> NDArray[np.float64]:
    """(K,) sum of the squared distances of each centre's rows to it, all at length 1."""
    cosine_K = (sums["sum_KD"].astype(np.float64) / FIXED * centre_KD).sum(axis=1)
    return 2 * (sums["count_K"] - cosine_K)


def centroids(centre_KD: NDArray, sums: State) -> pa.Table:
    """A row a cluster, by its number."""
    return pa.table(
        {
            CLUSTER_ID.name: pa.array(range(len(centre_KD)), CLUSTER_ID.dtype),
            "centroid": from_matrix(centre_KD),
            "rows": pa.array(sums["count_K"], pa.int64()),
            "inertia": pa.array(inertia(centre_KD, sums), pa.float64()),
        }
    )


def rounds(round_R2: NDArray) -> pa.Table:
    """A row a round, from 0."""
    rows_R, inertia_R = round_R2.T
    return pa.table(
        {
            "round": pa.array(range(len(round_R2)), pa.int32()),
            "rows": pa.array(rows_R.astype(np.int64)),
            "inertia": pa.array(inertia_R),
        }
    )


def put_table(tables: dict[str, pa.Table], name: str, task: Task) -> dict[str, int]:
    """Stores one of them as `out/<name>`."""
    path = task.worker.scratch / name
    pq.write_table(tables[name], path, write_page_checksum=task.page_checksums)
    task.put_file(name, path)
    return {"rows": len(tables[name])}


def assigned(column: str, centre_KD: NDArray, shard: pa.Table) -> pa.Table:
    """Nearest centre and cosine of every row, and a reason wherever there is none."""
    unit_ND = unit_rows(as_matrix(shard[column]))
    defined_N = ~np.isnan(unit_ND).any(axis=1)
    index_N, cosine_N = (
        np.zeros(len(unit_ND), np.int32),
        np.zeros(len(unit_ND), np.float32),
    )
    index_N[defined_N], cosine_N[defined_N] = nearest(unit_ND[defined_N], centre_KD)
    undefined = pc.make_struct(shard[column].is_null(), pa.array(~defined_N))
    return pa.table(
        {
            **{name: shard[name] for name in IDENTITY},
            CLUSTER_ID.name: pa.array(index_N, mask=~defined_N),
            CENTROID_COSINE.name: pa.array(np.clip(cosine_N, -1, 1), mask=~defined_N),
            REASON.name: pc.case_when(undefined, *KMeans.reasons).cast(REASON_TYPE),
        }
    )
