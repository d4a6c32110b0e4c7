"""Reads the reasons that stages gave for the rows of one shard, and which values they left out."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, REASON
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.run_folder.state import RunState


class ShardReasons(Mapping[str, pa.Array]):
    """The reason of each row of one shard, by stage; null if the stage is fine with the row.

    Covers the complete stages of a root. A stage's file is opened when its reasons are needed,
    unless its record says that every row is fine.
    """

    def __init__(self, state: RunState, root: str, shard: int) -> None:
        self.state = state
        self.shard = shard
        self._columns: dict[str, pa.Array | None] = dict.fromkeys(stages_of(state, root))
        self._missing: dict[tuple[str, ...], pa.Array] = {}

    def __getitem__(self, stage: str) -> pa.Array:
        column = self._columns[stage]
        if column is None:
            column = self._columns[stage] = self._read(stage)
        return column

    def __contains__(self, stage: object) -> bool:
        return stage in self._columns  # opens no file, as Mapping's own would

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def counts(self, stage: str) -> Mapping[str, int]:
        """Returns rows by reason, "" for fine ones: from the record if it has them, or counted."""
        recorded = self.state.stages[stage].recorded(self.shard)
        if recorded is not None:
            return recorded
        counted = pc.value_counts(pc.fill_null(self[stage], "")).to_pylist()
        return {count["values"]: count["counts"] for count in counted}

    def missing(self, stage: str, columns: set[str]) -> pa.Array | None:
        """Returns a mask of rows that lack one of the columns; None if `checked_columns` is."""
        names = checked_columns(self.state.plan, stage, columns)
        if names is None:
            return None
        if (stage, *names) not in self._missing:
            shard = self.state.stages[stage].shards[self.shard]
            table = pa.concat_tables(self.state.stored[stage].read(shard, names, 65_536))
            nulls = [pc.is_null(table[name]).combine_chunks() for name in names]
            self._missing[stage, *names] = reduce(pc.or_, nulls)
        return self._missing[stage, *names]

    def _read(self, stage: str) -> pa.Array:
        shard = self.state.stages[stage].shards[self.shard]
        recorded = self.state.stages[stage].recorded(self.shard)
        if recorded is not None and recorded.keys() <= {""}:
            return pa.nulls(shard.rows, pa.string())
        tables = self.state.stored[stage].read(shard, [REASON.name], 65_536)
        return pa.concat_tables(tables)[REASON.name].cast(pa.string()).combine_chunks()


def counts_of(state: RunState, stage: str) -> Counter[str]:
    """Counts a stage's rows by reason, "" for fine ones: from its records if they have them."""
    recorded, others = state.stages[stage].all_recorded()
    counts = Counter(recorded)
    for shard in others:
        counts.update(state.counts(stage, shard))
    return counts


def stages_of(state: RunState, root: str) -> list[str]:
    """Returns the complete stages over a root's rows, itself included, in the recipe's order."""
    return [
        name
        for name, stage in state.stages.items()
        if stage.planned.root == root and stage.planned.gives_rows and stage.complete
    ]


def checked_columns(plan: Plan, stage: str, columns: set[str]) -> list[str] | None:
    """Returns columns that show what a stage left out; None if they are too large to be read.

    For an image its size is read. A vector is assumed missing if the stage has a reason.
    """
    types = {column.name: column.dtype for column in plan.stages[stage].stage.writes}
    proxy = {IMAGE.name: IMAGE_BYTES.name} if IMAGE_BYTES.name in types else {}
    names = sorted({proxy.get(name, name) for name in columns})
    cheap = all(
        name in types and not pa.types.is_nested(types[name]) and name != IMAGE.name
        for name in names
    )
    return names if cheap else None
