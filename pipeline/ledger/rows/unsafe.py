"""Says which rows have a picture that is shown blurred: a stage scored it as unsafe."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clipmill.pipeline.ledger.rows.stored import Place, joined, rows_at, taken_from
from clipmill.pipeline.run_folder.state import RunState


def unsafe_at(state: RunState, root: str, places: Sequence[Place]) -> list[bool]:
    """Returns whether a column calls each row's picture unsafe; False if they are asked for.

    Rows of a union are unsafe if they were before it. Rows that are not scored yet count as safe.
    """
    is_unsafe_N = np.zeros(len(places), bool)
    columns = [
        (name, column)
        for name, stage in state.stages.items()
        if stage.planned.root == root and not state.show_unsafe
        for column in stage.planned.stage.writes
        if (column.unsafe_above, column.safe) != (None, None)
    ]
    for stage, column in columns:
        shards = state.stages[stage].shards
        scored = [n for n, (shard, _) in enumerate(places) if shard in shards]
        rows = rows_at(state, {"value": (stage, column.name)}, [places[n] for n in scored])
        values = pa.array([row["value"] for row in rows], column.dtype)
        is_unsafe_N[scored] |= column.unsafe(values)
    by_parent: dict[str, dict[int, Place]] = {}
    for n, (shard, position) in enumerate(places if joined(state, root) else ()):
        parent, index = taken_from(state, root, shard)
        if parent is not None:
            by_parent.setdefault(parent, {})[n] = index, position
    for parent, there in by_parent.items():
        is_unsafe_N[[*there]] |= unsafe_at(state, parent, [*there.values()])
    return is_unsafe_N.tolist()
