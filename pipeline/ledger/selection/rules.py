"""Evaluates the rules by which a select stage and those before it decide, each over every row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import UID
from clipmill.pipeline.ledger.rows.stored import selects_up_to
from clipmill.pipeline.ledger.selection.scores import ScoreColumn, ScoreCut
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Conditions
from clipmill.pipeline.verdicts import Condition as Asked

# Shapes: N rows of a shard.

MOST_RULES = 64  # rules that are counted together


@dataclass(frozen=True)
class Condition:
    """A condition that a stage states on its own."""

    stage: str
    text: str
    asked: Asked
    reads: Mapping[str, Binding]

    def broken(self, table: pa.Table, values: Sequence[pa.ChunkedArray]) -> NDArray[np.bool_]:
        """Returns (N,) whether each row breaks it; false without a value. `table` has the columns
        of `columns_of`, `values` the columns of numbers."""
        columns = pa.table({name: table[_named(where)] for name, where in self.reads.items()})
        return self.asked.broken(columns)


@dataclass(frozen=True)
class Cut:
    """A threshold on the numbers at `place`."""

    stage: str
    text: str
    cut: ScoreCut
    place: int

    def broken(self, table: pa.Table, values: Sequence[pa.ChunkedArray]) -> NDArray[np.bool_]:
        """Returns (N,) whether each row breaks it, as a condition does."""
        return self.cut.beyond(values[self.place])


Rule = Condition | Cut


def rules(state: RunState, end: str, columns: Sequence[ScoreColumn]) -> list[Rule]:
    """Returns the first `MOST_RULES` in deciding order: of stages that state conditions, these and
    the thresholds on sizes; of all others, every threshold.

    Conditions on lists, vectors and bytes are left out, as they take long to read.
    """
    chosen: list[Rule] = []
    for planned in reversed(list(selects_up_to(state, end))):
        if has_conditions := isinstance(planned.stage, Conditions):
            chosen += _conditions(state, planned, planned.stage.conjuncts)
        chosen += [
            Cut(planned.name, cut.text, cut, place)
            for place, column in enumerate(columns)
            for cut in column.cuts
            if cut.stage == planned.name and (cut.is_size or not has_conditions)
        ]
    return chosen[:MOST_RULES]


def _conditions(
    state: RunState, planned: PlannedStage, conjuncts: Sequence[Asked]
) -> Iterator[Condition]:
    for conjunct in conjuncts:
        if UID.name in conjunct.columns:  # bytes, which no stage binds
            continue
        reads = {name: planned.bindings[0][name] for name in conjunct.columns}
        if reads and not any(is_long(state.plan.schema(*where)) for where in reads.values()):
            yield Condition(planned.name, conjunct.text, conjunct, reads)


def columns_of(chosen: Sequence[Rule]) -> dict[str, Binding]:
    """Returns the columns that the rules read, by the names in their table."""
    conditions = [rule for rule in chosen if isinstance(rule, Condition)]
    return {_named(where): where for rule in conditions for where in rule.reads.values()}


def is_long(dtype: pa.DataType) -> bool:
    """Returns whether values of the type are many or large."""
    return bool(pa.types.is_nested(dtype) or pa.types.is_binary(dtype))


def _named(where: Binding) -> str:
    return f"rule {'.'.join(where)}"
