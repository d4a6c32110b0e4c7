"""The rows that stages name for a sample, and how many rows name the sample."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from metadata.schema import DUPLICATE_OF, KEEP, TEXT, UID
from pipeline.ledger.at_row import Keeper, StageRow, shown
from pipeline.ledger.find import places_of
from pipeline.ledger.stored import Place, binding, rows_at
from pipeline.state import RunState

KEEPERS = {  # columns that name another row, and what that row is
    DUPLICATE_OF.name: "equal to it, and better,",
    "earlier_uid": "most like it, of the rows before it,",
}


def with_keepers(
    state: RunState, rows: Sequence[StageRow], uid: bytes, own: Mapping[str, Place]
) -> list[StageRow]:
    """The rows of a sample, each with its `keeper`, or with its `keeper_of`."""
    named = {row.stage: column for row in rows for column in _columns(state, row)}
    uids: dict[str, set[bytes]] = {}  # by root
    for row in rows:
        if row.stage in named and row.values[named[row.stage]]:
            root = state.plan.stages[row.stage].root or ""
            uids.setdefault(root, set()).add(bytes.fromhex(row.values[named[row.stage]]))
    places = {root: places_of(state, root, wanted, own[root]) for root, wanted in uids.items()}
    selects = [row.stage for row in rows if state.plan.stages[row.stage].is_select]
    return [
        _with_keeper(state, row, named[row.stage], uid, places, selects)
        if row.stage in named
        else row
        for row in rows
    ]


def _columns(state: RunState, row: StageRow) -> list[str]:
    """The columns in which a stage names rows by their uid."""
    names = KEEPERS.keys() & row.values.keys()
    return [name for name in names if state.plan.schema(row.stage, name) == UID.dtype]


def _with_keeper(
    state: RunState,
    row: StageRow,
    column: str,
    uid: bytes,
    places: Mapping[str, Mapping[bytes, Place]],
    selects: Sequence[str],
) -> StageRow:
    keeper = row.values[column]
    if not keeper:
        is_counted = column == DUPLICATE_OF.name
        return replace(row, keeper_of=_naming(state, row.stage, column, uid)) if is_counted else row
    root = state.plan.stages[row.stage].root or ""
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
            column=column,
            uid=keeper,
            shard=shard,
            position=position,
            text=shown(seen.get("text")),
            dropped_by=tuple(dropped_by),
        ),
    )


def _naming(state: RunState, stage: str, column: str, uid: bytes) -> int:
    """Rows of a stage that name the uid in a column."""
    part, rows = state.parts[stage], 0
    for shard in state.stages[stage].shards.values():
        for table in part.read(shard, [column], 1 << 20):
            named = pc.equal(table[column].cast(pa.binary()), pa.scalar(uid, pa.binary()))
            rows += pc.sum(named).as_py() or 0
    return rows
