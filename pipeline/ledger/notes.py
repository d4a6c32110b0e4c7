"""What a run's stages say of what they were given, and what their pools say of it besides."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from metadata.hosts import host_of
from metadata.schema import KEEP, SHA256, URL, Column
from pipeline.ledger.ahead import ahead
from pipeline.ledger.stored import binding, json_artifacts, stored
from pipeline.run_folder.state import RunState

MOST_ROWS = 500_000  # of a pool that is looked through: a second
OWN = r"^(localhost|127\..*|10\..*|192\.168\..*|\[::1\])$"  # where copies lie: nobody's name
HIGH = "expect these to score above nearly all others as good, and to be kept first"


def notes(state: RunState) -> dict[str, tuple[str, ...]]:
    """The sentences, by stage."""
    said = {}
    for name, stage in state.stages.items():
        held = json_artifacts(stage, "notes")  # of a model, what it learnt from
        own = [note for one in held for note in one.get("notes", ())]
        if found := [*own, *(_one_host(state, name) if held else ()), *_seen(state, name)]:
            said[name] = tuple(found)
    return said


def _one_host(state: RunState, name: str) -> Iterator[str]:
    """That all rows which a model learnt from have links to one host."""
    urls = _column(state, name, URL)
    hosts = pc.unique(host_of(urls)).to_pylist() if urls is not None else []
    if len(hosts) == 1 and hosts[0] and not pc.match_substring_regex(hosts[0], OWN).as_py():
        yield (
            f"all rows it learnt from are of one host, {hosts[0]}: where that is one maker's style,"
            " expect other pictures to be scored less well (AUC .59 to .66, its own .66 to .80)"
        )


def _seen(state: RunState, name: str) -> Iterator[str]:
    """That a stage scores rows which its model learnt from."""
    planned = state.plan.stages[name]
    trainer = state.plan.stages[planned.model] if planned.model else None
    if trainer is None or not trainer.root or not planned.root or not state.stages[name].complete:
        return
    if trainer.root == planned.root:
        if KEEP.name in trainer.bindings[0]:
            yield f"'{trainer.name}' learnt from some of these rows: {HIGH}"
        return
    learnt, scored = (_column(state, one, SHA256) for one in (trainer.name, name))
    if learnt is not None and scored is not None:
        again = pc.sum(pc.is_in(scored, value_set=pc.drop_null(learnt))).as_py()
        if again:
            yield (
                f"{again:,} of its rows have pictures that '{trainer.name}' learnt from: {HIGH};"
                f" take them out of '{planned.root}' or of '{trainer.root}'"
            )


def _column(state: RunState, name: str, column: Column) -> pa.ChunkedArray | None:
    """The column of a stage's pool; None where it has none or several, or the pool is large."""
    root, bound = state.plan.stages[name].root, binding(state, name, column.name)
    if bound is None or not root:
        return None
    if not all(state.stages[one].complete for one in (root, bound[0])):
        return None
    shards = state.stages[root].shards.values()
    if sum(shard.rows for shard in shards) > MOST_ROWS:
        return None
    rows = stored(state, root, {column.name: bound})
    parts = ahead(state.run, lambda shard: rows.table(shard)[column.name], range(len(rows)))
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], column.dtype)
