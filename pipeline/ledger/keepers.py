"""The rows that stages name for a sample, and how many rows name the sample."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import KEEP, TEXT, Column
from clipmill.pipeline.ledger.at_row import Keeper, StageRow, shown
from clipmill.pipeline.ledger.find import places_of
from clipmill.pipeline.ledger.near import naming
from clipmill.pipeline.ledger.stored import Place, binding, rows_at
from clipmill.pipeline.run_folder.state import RunState


def with_keepers(
    state: RunState, rows: Sequence[StageRow], uid: bytes, own: Mapping[str, Place]
) -> list[StageRow]:
    """The rows of a sample, each with its `keeper`, or with its `keeper_of`."""
    named: dict[str, Column] = {}
    uids: dict[str, set[bytes]] = {}  # by root
    for row in rows:
        planned = state.plan.stages[row.stage]
        if column := naming(planned.stage, "keeper", "neighbour"):
            named[row.stage] = column
            if uid_hex := row.values[column.name]:
                uids.setdefault(planned.root, set()).add(bytes.fromhex(uid_hex))
    places = {root: places_of(state, root, wanted, own[root]) for root, wanted in uids.items()}
    selects = [row.stage for row in rows if state.plan.stages[row.stage].is_select]
    return [
        _with_keeper(state, row, named[row.stage], uid, places, selects)
        if row.stage in named
        else row
        for row in rows
    ]


def _with_keeper(
    state: RunState,
    row: StageRow,
    column: Column,
    uid: bytes,
    places: Mapping[str, Mapping[bytes, Place]],
    selects: Sequence[str],
) -> StageRow:
    keeper = row.values[column.name]
    if not keeper:
        if column.names == "neighbour":
            return row
        return replace(row, keeper_of=_naming(state, row.stage, column.name, uid))
    root = state.plan.stages[row.stage].root
    place = places[root][bytes.fromhex(keeper)]
    text = binding(state, row.stage, TEXT.name)
    (seen,) = rows_at(state, {"text": text} if text else {}, [place])
    dropped_by = [
        select
        for select in selects
        if state.plan.stages[select].root == root
        and not state.cell(select, *place, [KEEP.name])[KEEP.name]
    ]
    shard, position = place
    return replace(
        row,
        keeper=Keeper(
            column=column.name,
            uid=keeper,
            shard=shard,
            position=position,
            text=shown(seen.get("text")),
            dropped_by=tuple(dropped_by),
        ),
    )


def _naming(state: RunState, stage: str, column: str, uid: bytes) -> int:
    """Rows of a stage that name the uid in a column."""
    part, rows = state.stored[stage], 0
    for shard in state.stages[stage].shards.values():
        for table in part.read(shard, [column], 1 << 20):
            named = pc.equal(table[column].cast(pa.binary()), pa.scalar(uid, pa.binary()))
            rows += pc.sum(named).as_py() or 0
    return rows
