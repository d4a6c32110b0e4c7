"""Says which rows have a picture that pages blur: a stage scored it as unsafe."""

from collections.abc import Sequence

from clipmill.pipeline.ledger.rows.stored import Place, rows_at
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState


def unsafe_at(state: RunState, root: str, places: Sequence[Place]) -> list[bool]:
    """Returns whether a score of each row is above its column's `unsafe_above`; False if asked for.

    Rows that are not scored yet, and those of a union, count as safe.
    """
    limits: dict[Binding, float] = {
        (name, column.name): column.unsafe_above
        for name, stage in state.stages.items()
        if stage.planned.root == root and not state.show_unsafe
        for column in stage.planned.stage.writes
        if column.unsafe_above is not None
    }
    is_unsafe = [False] * len(places)
    for (stage, column), limit in limits.items():
        scored = [n for n, (shard, _) in enumerate(places) if shard in state.stages[stage].shards]
        rows = rows_at(state, {column: (stage, column)}, [places[n] for n in scored])
        for n, row in zip(scored, rows, strict=True):
            is_unsafe[n] |= (row[column] or 0) > limit
    return is_unsafe
