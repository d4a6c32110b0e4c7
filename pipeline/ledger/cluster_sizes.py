"""How many rows of large and of small clusters a select keeps as its size changes."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import KEEP, POSITION, SHARD, UID
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.ahead import ahead
from clipmill.pipeline.ledger.stored import stored
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.selects import VARIED, thresholds_of, verdicts_at
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Threshold

# Shapes: N rows of the pool, K clusters, G groups of clusters of like size.

TENTHS = tuple(Decimal(tenth) / 10 for tenth in range(1, 11))


@dataclass(frozen=True, kw_only=True)
class AtSize:
    """The rows that a select keeps of each group with one value in the place of its size."""

    value: float
    rule: str
    is_today: bool
    kept: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class OverSize:
    """A select stage whose size varies: `name` is what `sweep --vary` calls it."""

    stage: str
    name: str
    points: tuple[AtSize, ...]


def over_size(
    state: RunState, planned: PlannedStage, cluster: Binding, group_K: NDArray[np.int8]
) -> OverSize | None:
    """The first size that decides in a select, at other values and at today's; None where none
    decides, or can be another.

    A size is a number or a share of rows, or any number that a column of the select's own is held
    against. Shares go by tenths, numbers of rows by tenths of all rows in a cluster, others are
    halved and doubled.

    `group_K` is the group of each cluster. The stage's own functions decide over its stored
    columns, which are held in memory for all rows at once.
    """
    own = {column.name for column in planned.stage.writes}
    sizes = [at for at in thresholds_of(planned) if at.is_size or at.column in own]
    if not sizes:
        return None
    rows, made, group_N = _read(state, planned, sizes[0], cluster, group_K)
    values = _values(sizes[0], len(group_N[group_N >= 0]))
    groups = int(group_K.max()) + 1

    def points(at: list[Decimal]) -> list[AtSize]:
        return [
            AtSize(
                value=verdicts.value,
                rule=verdicts.rule,
                is_today=verdicts.value == sizes[0].value,
                kept=tuple(
                    np.bincount(group_N[verdicts.keep & (group_N >= 0)], minlength=groups).tolist()
                ),
            )
            for verdicts in verdicts_at(planned, sizes[0], at, rows, made)
        ]

    found = _unless_refused(points, values)
    return OverSize(stage=planned.name, name=sizes[0].name, points=tuple(found)) if found else None


def _unless_refused(
    points: Callable[[list[Decimal]], list[AtSize]], values: list[Decimal]
) -> list[AtSize]:
    """The points at all values at once; where the stage refuses one, at each that it does not."""
    try:
        return points(values)
    except RecipeError as error:
        if error.args[1] != VARIED:  # the stage's own mistake
            raise
        few = [[value] for value in values] if len(values) > 1 else []
        return [point for some in few for point in _unless_refused(points, some)]


def _values(size: Threshold, rows: int) -> list[Decimal]:
    today = Decimal(str(size.value))
    if size.name.endswith("fraction"):
        return sorted({*TENTHS, today})
    if size.name.endswith("rows"):
        today = Decimal(int(size.value))
        return sorted({*(Decimal(max(1, int(rows * tenth))) for tenth in TENTHS), today})
    others = {today * Decimal(2) ** power for power in range(-3, 4)}
    if today == int(today):
        others = {max(Decimal(1), other.to_integral_value(ROUND_HALF_UP)) for other in others}
    return sorted({*others, today})


def _read(
    state: RunState,
    planned: PlannedStage,
    size: Threshold,
    cluster: Binding,
    group_K: NDArray[np.int8],
) -> tuple[pa.Table, pa.Table, NDArray[np.int8]]:
    """What verdicts are made of, and (N,) the group of each row's cluster; -1 without one."""
    given = planned.bindings[0]
    reads = [name for name in size.reads if name in given]
    bound = {
        **{f"read {name}": given[name] for name in reads},
        **{f"made {name}": (planned.name, name) for name in size.made},
        "kept": (planned.name, KEEP.name),
        "cluster": cluster,
    }
    shards = stored(state, planned.root, bound)
    groups, tables = [], []
    for table in ahead(state.run, shards.table, range(len(shards))):
        of = table["cluster"].fill_null(-1).to_numpy()
        groups.append(np.where(of >= 0, group_K[of], np.int8(-1)))
        tables.append(table.drop_columns("cluster"))
    whole = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    place = {name: whole[name] for name in (UID.name, SHARD.name, POSITION.name)}
    rows = pa.table(place | {name: whole[f"read {name}"] for name in reads})
    made = {KEEP.name: whole["kept"]} | {name: whole[f"made {name}"] for name in size.made}
    return rows, pa.table(made), np.concatenate(groups)
