"""Joins the rows of two sides: by place if both have the same rows, else by uid.

By uid, the rows of both are written to scratch, partitioned by bits of the uid, and joined one
partition at a time: memory is that of a partition. For a repeated uid the first row of one side
meets the first of the other, and so on.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import CLUSTER_ID, UID
from clipmill.metadata.scratch import scratch_folder
from clipmill.metadata.uid import halves
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.rows.stored import binding, stored
from clipmill.pipeline.ledger.selection.groups import group_of, groupings
from clipmill.pipeline.ledger.selection.sides import Side
from clipmill.pipeline.planning.planned import Binding

# Shapes: N rows.

ABSENT = -1  # outcome, shard and position of a row that is not in the side's pool
PART_ROWS = 100_000
MOST_PARTS = 128  # files per side


@dataclass(frozen=True)
class Joined:
    """Rows of both sides. Places are shard and position, -1 if the row is absent.

    `groups` are those of the second side; of the first if the second has none.
    """

    uid: pa.ChunkedArray
    outcome_AN: tuple[NDArray[np.int32], NDArray[np.int32]]
    place_AN2: tuple[NDArray[np.int64], NDArray[np.int64]]
    groups: dict[str, pa.ChunkedArray]


Seen = Callable[[int, int, NDArray[np.int32]], None]  # side, shard, and its rows' outcomes


def same_rows(first: Side, second: Side) -> bool:
    """Returns whether both roots hold the same rows in the same order, by their records."""
    return bool(_digests(first).equals(_digests(second)))


def _digests(side: Side) -> pa.Table:
    return side.state.stages[side.root].shards.first.select(["rows", "uid_sha256"])


def joined(sides: tuple[Side, Side], seen: Seen) -> Iterator[Joined]:
    """Yields all rows of both in pieces; calls `seen` once for every shard of every side.

    RecipeError if the sides are of different pools.
    """
    yield from (_by_place if same_rows(*sides) else _by_uid)(sides, seen)


def grouped_by(side: Side) -> dict[str, Binding]:
    """Returns the columns for grouping rows: language, source, domain, size, cluster."""
    cluster = binding(side.state, side.stage, CLUSTER_ID.name)
    return groupings(side.state, side.stage) | ({"cluster": cluster} if cluster else {})


def _by_place(sides: tuple[Side, Side], seen: Seen) -> Iterator[Joined]:
    bound = [grouped_by(side) for side in sides]
    bound[0] = {name: where for name, where in bound[0].items() if name not in bound[1]}
    shards = [stored(side.state, side.root, b) for side, b in zip(sides, bound, strict=True)]
    for index, shard in enumerate(sides[0].shards):
        tables = [source.table(index) for source in shards]
        outcomes = sides[0].outcome(shard), sides[1].outcome(shard)
        for which, outcome_N in enumerate(outcomes):
            seen(which, index, outcome_N)
        rows = len(tables[0])
        place_N2 = np.stack([np.full(rows, shard, np.int64), np.arange(rows)], axis=1)
        groups = {
            name: group_of(name, table[name])
            for source, table in zip(bound, tables, strict=True)
            for name in source
        }
        yield Joined(tables[0][UID.name], outcomes, (place_N2, place_N2), _in_order(groups))


def _by_uid(sides: tuple[Side, Side], seen: Seen) -> Iterator[Joined]:
    rows = [sum(side.state.stages[side.root].shards[s].rows for s in side.shards) for side in sides]
    parts = max(1, min(MOST_PARTS, -(-max(rows) // PART_ROWS)))
    names = [list(grouped_by(side)) for side in sides]
    folder = Path(tempfile.mkdtemp(dir=scratch_folder()))
    try:
        for which, side in enumerate(sides):
            _write(side, which, parts, folder, seen)
        common = _common(folder, parts)
        if 2 * common < min(rows) or not common:
            raise RecipeError(
                f"two pools: of {rows[0]:,} and {rows[1]:,} rows they have {common:,} in common",
                " and ".join(f"'{side.root}' of {side.state.run}" for side in sides),
                "name two runs of one pool, whose uids are the same",
            )
        for part in range(parts):
            first, second = (_read(folder, which, part) for which in (0, 1))
            yield _joined(first, second, names)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(side: Side, which: int, parts: int, folder: Path, seen: Seen) -> None:
    """Writes the rows of one side to a file per part, each in the order of the pool."""
    bound = grouped_by(side)
    shards = stored(side.state, side.root, bound)
    schema = pa.schema(
        [
            *(("uid", pa.binary(16)), ("outcome", pa.int32())),
            *(("shard", pa.int64()), ("position", pa.int64())),
            *((f"group {name}", pa.string()) for name in bound),
        ]
    )
    with contextlib.ExitStack() as stack:
        sinks = [
            stack.enter_context(pa.ipc.new_stream(str(_part(folder, which, part)), schema))
            for part in range(parts)
        ]
        for index, shard in enumerate(side.shards):
            table = shards.table(index)
            outcome_N = side.outcome(shard)
            seen(which, index, outcome_N)
            groups = [group_of(name, table[name]).cast(pa.string()) for name in bound]
            shard_N = np.full(len(table), shard, np.int64)
            columns = [table[UID.name], outcome_N, shard_N, np.arange(len(table)), *groups]
            rows = pa.table(columns, schema=schema)
            part_N = (halves(table[UID.name])[:, 0] % np.uint64(parts)).astype(np.int64)
            for part in np.unique(part_N).tolist():
                sinks[part].write_table(rows.filter(pa.array(part_N == part)))


def _part(folder: Path, which: int, part: int) -> Path:
    return folder / f"{which}-{part}.arrows"


def _read(folder: Path, which: int, part: int) -> pl.DataFrame:
    """Reads one side's rows of a part, each numbered among the rows of its uid."""
    with pa.OSFile(str(_part(folder, which, part))) as file:
        table = pa.ipc.open_stream(file).read_all()
    frame = pl.DataFrame(pl.from_arrow(table.set_column(0, "uid", table["uid"].cast(pa.binary()))))
    return frame.with_columns(nth=pl.int_range(pl.len()).over("uid"), there=pl.lit(True))


def _common(folder: Path, parts: int) -> int:
    """Counts the rows that both sides have."""
    common = 0
    for part in range(parts):
        first, second = (_read(folder, which, part).select("uid", "nth") for which in (0, 1))
        common += len(first.join(second, on=["uid", "nth"], how="semi"))
    return common


def _joined(first: pl.DataFrame, second: pl.DataFrame, names: list[list[str]]) -> Joined:
    both = first.join(second, on=["uid", "nth"], how="full", coalesce=True, suffix=" b")
    both = both.sort("uid", "nth")
    groups = {}
    for name in dict.fromkeys([*names[0], *names[1]]):
        column = f"group {name}"
        if name in names[0] and name in names[1]:
            chosen = pl.when(pl.col("there b")).then(f"{column} b").otherwise(column)
        else:
            chosen = pl.col(column)
        strings = both.select(chosen).to_series().to_arrow().cast(pa.string())
        groups[name] = pa.chunked_array([strings]).dictionary_encode()

    def numbers(name: str) -> NDArray[np.int64]:
        return both[name].fill_null(ABSENT).to_numpy()

    outcomes = tuple(numbers(f"outcome{end}").astype(np.int32) for end in ("", " b"))
    places = tuple(
        np.stack([numbers(f"shard{end}"), numbers(f"position{end}")], axis=1) for end in ("", " b")
    )
    uid = pa.chunked_array([both["uid"].to_arrow().cast(pa.binary()).cast(pa.binary(16))])
    return Joined(uid, (outcomes[0], outcomes[1]), (places[0], places[1]), _in_order(groups))


def _in_order(groups: dict[str, pa.ChunkedArray]) -> dict[str, pa.ChunkedArray]:
    order = ("language", "source", "domain", "size", "cluster")
    return {name: groups[name] for name in order if name in groups}
