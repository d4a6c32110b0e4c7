"""The rules by which a select stage and those before it decide, each asked of every row."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.rows.stored import selects_up_to
from clipmill.pipeline.ledger.selection.scores import ScoreColumn, ScoreCut
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.settings import stage_class
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows of a shard.

MOST_RULES = 64  # whose rows are counted together
WHERE = "select.where"


class Rule(Protocol):
    """A rule of one stage, in its words."""

    @property
    def stage(self) -> str: ...
    @property
    def text(self) -> str: ...

    def broken(self, table: pa.Table, values: Sequence[pa.ChunkedArray]) -> NDArray[np.bool_]:
        """(N,) whether each row breaks it; a row without the value breaks none. `table` has what
        `columns_of` binds, `values` the columns of numbers."""
        ...


@dataclass(frozen=True)
class Condition:
    """A condition of a `select.where`, and what is asked: whether it is false."""

    stage: str
    text: str
    negated: Any
    reads: Mapping[str, Binding]

    def broken(self, table: pa.Table, values: Sequence[pa.ChunkedArray]) -> NDArray[np.bool_]:
        asked = pa.table({name: table[_named(where)] for name, where in self.reads.items()})
        return np.asarray(self.negated.meeting(asked))


@dataclass(frozen=True)
class Cut:
    """A threshold on the numbers at `place`."""

    stage: str
    text: str
    cut: ScoreCut
    place: int

    def broken(self, table: pa.Table, values: Sequence[pa.ChunkedArray]) -> NDArray[np.bool_]:
        return self.cut.beyond(values[self.place])


def rules(state: RunState, end: str, columns: Sequence[ScoreColumn]) -> list[Condition | Cut]:
    """The first `MOST_RULES`, in the order in which they decide: conditions of `select.where`, and
    thresholds of any. Conditions on lists, vectors and bytes are left out, which are long to read,
    and those too deep to be negated.
    """
    found: list[Condition | Cut] = []
    for planned in reversed(list(selects_up_to(state, end))):
        is_where = planned.uses == WHERE
        if is_where:
            found += _conditions(state, planned)
        found += [
            Cut(planned.name, cut.text, cut, place)
            for place, column in enumerate(columns)
            for cut in column.cuts
            if cut.stage == planned.name and (cut.is_size or not is_where)
        ]
    return found[:MOST_RULES]


def _conditions(state: RunState, planned: PlannedStage) -> list[Condition | Cut]:
    stage: Any = planned.stage
    asked: Any = stage_class(WHERE, planned.where)
    found: list[Condition | Cut] = []
    for conjunct in stage.conjuncts:
        reads = {name: planned.bindings[0][name] for name in conjunct.columns}
        if not reads or any(is_long(state.plan.schema(*where)) for where in reads.values()):
            continue
        with suppress(RecipeError):  # it may be as deep as one can be, and a NOT is deeper
            negated = asked(where=f"NOT ({conjunct.text})")
            found.append(Condition(planned.name, conjunct.text, negated, reads))
    return found


def columns_of(found: Sequence[Condition | Cut]) -> dict[str, Binding]:
    """What the rules read of a table, by the names that they ask for."""
    conditions = [rule for rule in found if isinstance(rule, Condition)]
    return {_named(where): where for rule in conditions for where in rule.reads.values()}


def is_long(dtype: pa.DataType) -> bool:
    """Whether values of the type are many or large."""
    return bool(pa.types.is_nested(dtype) or pa.types.is_binary(dtype))


def _named(where: Binding) -> str:
    return f"rule {'.'.join(where)}"
