"""What select stages answer about their thresholds, of the run of every stage."""

from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pyarrow as pa

from clipmill.metadata.schema import KEEP, POSITION, SHARD, UID
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.selects import thresholds_of
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Surveys, Threshold

Tables = list[tuple[pa.Table, pa.Table]]
SIZES = {"fraction": ["0.05", "0.3", "1"], "rows": ["1", "7", "12"], "at_most": ["1", "3"]}


def asked(state: RunState) -> Iterator[tuple[PlannedStage, Threshold]]:
    for name, planned in state.plan.stages.items():
        if state.stages[name].complete:
            yield from ((planned, threshold) for threshold in thresholds_of(planned))


def tables(state: RunState, planned: PlannedStage, threshold: Threshold) -> Tables:
    """What verdicts are made of, shard by shard."""
    given = planned.bindings[0]
    reads = {f"read {name}": given[name] for name in threshold.reads if name in given}
    made = {f"made {it}": (planned.name, it) for it in (KEEP.name, *threshold.made)}
    shards = stored(state, planned.root, reads | made)

    def columns(table: pa.Table, kind: str) -> dict[str, pa.ChunkedArray]:
        names = [name for name in table.column_names if name.startswith(kind)]
        return {name.removeprefix(kind): table[name] for name in names}

    found = []
    for index in range(len(shards)):
        table = shards.table(index)
        place = {name: table[name] for name in (UID.name, SHARD.name, POSITION.name)}
        read, made = columns(table, "read "), columns(table, "made ")
        found.append((pa.table(place | read), pa.table(made)))
    return found


def values_of(threshold: Threshold) -> list[Decimal]:
    name = threshold.name.removeprefix("top.")
    if name in SIZES:
        return [Decimal(value) for value in SIZES[name]]
    near = Decimal(str(threshold.value))
    return [near / 2, near, near + 1] if near > 0 else [Decimal(0), Decimal(1)]


def test_verdicts_by_part_are_those_on_all_rows(every_stage):
    """`by_row` ones of a part alone; others after a survey of all parts."""
    tried, state = set(), every_stage.state
    for planned, threshold in asked(state):
        parts, values = tables(state, planned, threshold), values_of(threshold)
        small = [
            tuple(table.slice(start, 25) for table in part)
            for part in parts
            for start in range(0, len(part[0]), 25)
        ]
        whole = [pa.concat_tables(it).unify_dictionaries() for it in zip(*parts, strict=True)]
        stage = planned.stage
        known = list(stage.verdicts(threshold, values, *whole))
        if threshold.by_row:
            by_part = [list(stage.verdicts(threshold, values, *part)) for part in small]
        else:
            assert isinstance(stage, Surveys), planned.uses
            ask = stage.surveyed(threshold, values, lambda small=small: iter(small))
            by_part = [list(ask(*part)) for part in small]
        for at, verdicts in enumerate(known):
            found = np.concatenate([part[at].keep for part in by_part])
            np.testing.assert_array_equal(found, verdicts.keep, f"{planned.name}: {verdicts.rule}")
            assert {(part[at].rule, part[at].value) for part in by_part} == {
                (verdicts.rule, verdicts.value)
            }
        tried.add((planned.uses, threshold.by_row))
    assert tried == {
        *(("select.where", False), ("select.image_based", True), ("select.balanced_tree", False)),
        *(("select.balance", True), ("select.density", False), ("select.prototypes", False)),
        *(("select.sample", True), ("select.sample", False)),
        *(("select.soft_cap", True), ("select.hard_cap", True)),
    }
