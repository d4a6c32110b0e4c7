"""Reads stored columns of a run: their sources, all rows shard by shard, and chosen rows."""

import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.parquet_file import read_at
from clipmill.metadata.passes import read_stage, taken
from clipmill.metadata.record import ShardState
from clipmill.metadata.schema import KEEP, REASON, UID
from clipmill.pipeline.ledger.rows.ahead import ahead
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.run_folder.rows import WHOLE, PoolShards, StoredColumns
from clipmill.pipeline.run_folder.shards import StatesByShard
from clipmill.pipeline.run_folder.state import RunState, StageState
from clipmill.pipeline.stage import Artifact

# Shapes: N rows.

SHOWN = 12  # example rows of each kind
Place = tuple[int, int]  # shard and position: a row's identity


def binding(state: RunState, stage: str, column: str) -> Binding | None:
    """Returns where a stage reads the column; else the last complete stage over the same rows that
    stores it; else None."""
    planned = state.plan.stages[stage]
    # A union's bindings are of its parents' rows.
    own = planned.bindings[0] if planned.bindings and not planned.is_root else {}
    if column in own:
        return own[column]
    for name, other in reversed(state.plan.stages.items()):
        stores = column in {written.name for written in other.stage.writes}
        if stores and other.root == planned.root and state.stages[name].complete:
            return name, column
    return None


def selects_up_to(state: RunState, end: str) -> Iterator[PlannedStage]:
    """Yields a select stage and all selects whose `keep` it builds on, each once."""
    left = [end]
    for name in left:
        planned = state.plan.stages[name]
        if planned.is_select:
            yield planned
            bound = dict.fromkeys(planned.bindings[0].values()) if planned.bindings else ()
            left += [stage for stage, column in bound if column == KEEP.name and stage not in left]


def stored(state: RunState, root: str, bound: Mapping[str, Binding]) -> PoolShards:
    """Returns a root's shards with the bound columns, under the names given here."""
    used = dict.fromkeys([root, *(stage for stage, _ in bound.values())])
    return PoolShards(
        stored={stage: state.stored[stage] for stage in used},
        states=StatesByShard(
            {stage: state.stages[stage].shards for stage in used}, tuple(state.stages[root].shards)
        ),
        bindings=dict(bound),
        root=root,
    )


def tables(
    state: RunState, root: str, bound: Mapping[str, Binding], part: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """Yields the bound columns of each shard of a root, or of those in `part`; reads ahead."""
    shards = stored(state, root, bound)
    return ahead(state.run, shards.table, range(len(shards)) if part is None else part)


def joined(state: RunState, root: str) -> list[str]:
    """Returns the roots of a union's parents, in the order of `from`; none for other roots."""
    planned = state.plan.stages[root]
    is_union = getattr(planned.stage, "joins_roots", False)
    return [state.plan.stages[parent].root for parent in planned.parents] if is_union else []


def taken_from(state: RunState, root: str, shard: int) -> tuple[str | None, int]:
    """Returns the root and shard that a union's shard was taken from, row by row."""
    index = (state.stages[root].shards[shard].source or {}).get("shard", shard)
    for parent in joined(state, root):
        shards = state.stages[parent].total or 0
        if index < shards:
            return parent, index
        index -= shards
    return None, shard


def artifacts(stage: StageState, kind: Artifact) -> dict[str, str]:
    """Returns the files in a complete stage's out/ of the declared kind, by their prefix."""
    names = [name for declared, name in stage.planned.stage.artifacts if declared == kind]
    if not names or not stage.complete:
        return {}
    files = Outputs(stage.folder).names
    return {
        file.removesuffix(name.removeprefix("*")): file
        for name in names
        for file in fnmatch.filter(files, name)
    }


def json_artifacts(stage: StageState, kind: Artifact) -> list[dict[str, Any]]:
    """Returns the parsed JSON files of this kind; DamagedError if one has changed."""
    return [
        json.loads(Outputs(stage.folder).read(file)) for file in artifacts(stage, kind).values()
    ]


def least(
    bits_N: NDArray[np.uint64], rows_N: NDArray[np.bool_], most: int = SHOWN
) -> NDArray[np.int64]:
    """Returns the indices of the rows marked true with the least hashes, in that order."""
    index = np.flatnonzero(rows_N)
    if len(index) > most:
        index = index[np.argpartition(bits_N[index], most)[:most]]
    return index[np.argsort(bits_N[index], kind="stable")]


def rows_at(
    state: RunState, bound: Mapping[str, Binding], places: Sequence[Place]
) -> list[dict[str, Any]]:
    """Returns the bound columns at each place; None for virtual columns, which are not stored."""
    rows: list[dict[str, Any]] = [dict.fromkeys(bound) for _ in places]
    columns_of: dict[str, dict[str, str]] = {}
    for name, (stage, column) in bound.items():
        written = {column.name for column in state.plan.stages[stage].stage.writes}
        if column in {UID.name, REASON.name, *written}:
            columns_of.setdefault(stage, {})[name] = column
    by_shard: dict[int, list[int]] = {}
    for index, (shard, _) in enumerate(places):
        by_shard.setdefault(shard, []).append(index)

    def read(pair: tuple[str, int]) -> list[dict[str, Any]]:
        stage, shard = pair
        position = np.array([places[index][1] for index in by_shard[shard]])
        unique, index_of = np.unique(position, return_inverse=True)
        columns = list(dict.fromkeys(columns_of[stage].values()))
        part, shard_state = state.stored[stage], state.stages[stage].shards[shard]
        table = columns_at(part, shard_state, columns, unique)
        return list(table.take(pa.array(index_of)).to_pylist())

    tasks = list(product(columns_of, sorted(by_shard)))
    for (stage, shard), rows_read in zip(tasks, ahead(state.run, read, tasks), strict=True):
        for index, row in zip(by_shard[shard], rows_read, strict=True):
            rows[index].update({name: row[column] for name, column in columns_of[stage].items()})
    return rows


def columns_at(
    part: StoredColumns, shard: ShardState, columns: list[str], position: NDArray[np.int64]
) -> pa.Table:
    """Returns columns at ascending positions; of a single file only their row groups are read."""
    if len(shard.files) > 1 or shard.listed:
        tables, start = [], 0
        for table in part.read(shard, columns, 4096):
            offsets = position[(position >= start) & (position < start + len(table))] - start
            tables.append(table.take(pa.array(offsets, pa.int64())))
            start += len(table)
        return pa.concat_tables(tables)
    table = read_at(part.folder, shard.files[0], columns, position)
    if shard.mask is None or part.mask_folder is None:
        return table
    (mask,) = read_stage(part.mask_folder, shard.mask, [KEEP.name], WHOLE)
    selected = mask[KEEP.name].fill_null(False).to_numpy()[position]
    return taken(table, np.arange(len(table)), ~selected)
