"""Which stage stores the pictures of a root's rows: its own, or those of the pools of a union."""

from collections.abc import Iterator, Sequence
from typing import Any

from clipmill.metadata.schema import IMAGE
from clipmill.pipeline.ledger.stored import Place, rows_at
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState

Pictured = tuple[str, Place]  # a stage, and the row's place in it


def last_that_stores(state: RunState, root: str, column: str) -> Binding | None:
    """The last stage over a root that stores such a column of some rows."""
    found = None
    for name, stage in state.stages.items():
        if stage.planned.root == root and stage.shards:
            virtual = {it.name for it in getattr(stage.planned.stage, "virtual", ())}
            if column in {it.name for it in stage.planned.stage.writes} - virtual:
                found = name, column
    return found


def image_stages(state: RunState, root: str) -> Iterator[str]:
    """The stages whose pictures the rows of a root have; none where nothing stores any."""
    if own := last_that_stores(state, root, IMAGE.name):
        yield own[0]
        return
    for parent in _joined(state, root):
        yield from image_stages(state, parent)


def pictured(state: RunState, root: str, places: Sequence[Place]) -> list[Pictured | None]:
    """The stage that stores the picture of each row, and its place there; None where none does."""
    images: dict[str, Binding | None] = {}
    found: list[Pictured | None] = []
    for shard, position in places:
        at: str | None = root
        while at is not None:
            if at not in images:
                images[at] = last_that_stores(state, at, IMAGE.name)
            if images[at] is not None:
                break
            at, shard = _taken_from(state, at, shard)
        own = images[at] if at is not None else None
        found.append((own[0], (shard, position)) if own else None)
    return found


def pictures_at(
    state: RunState, root: str, places: Sequence[Place], columns: Sequence[str]
) -> list[dict[str, Any]]:
    """These columns of the stage that stores each row's picture; empty where none does, or has not
    come to its shard."""
    by_stage: dict[str, dict[int, Place]] = {}
    for index, it in enumerate(pictured(state, root, places)):
        if it and it[1][0] in state.stages[it[0]].shards:
            by_stage.setdefault(it[0], {})[index] = it[1]
    found: list[dict[str, Any]] = [{} for _ in places]
    for stage, here in by_stage.items():
        bound = {name: (stage, name) for name in columns}
        rows = rows_at(state, bound, list(here.values()))
        for index, row in zip(here, rows, strict=True):
            found[index] = row
    return found


def _joined(state: RunState, root: str) -> list[str]:
    """The roots of a union's parents, in the order of `from`; none of another root."""
    planned = state.plan.stages[root]
    is_union = getattr(planned.stage, "joins_roots", False)
    return [state.plan.stages[parent].root for parent in planned.parents] if is_union else []


def _taken_from(state: RunState, root: str, shard: int) -> tuple[str | None, int]:
    """The root and shard whose rows, in their order, are those of a union's shard."""
    index = (state.stages[root].shards[shard].source or {}).get("shard", shard)
    for parent in _joined(state, root):
        shards = state.stages[parent].total or 0
        if index < shards:
            return parent, index
        index -= shards
    return None, shard
