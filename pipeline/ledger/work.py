"""Adds up what each stage of a run cost, from its records: no data file is opened."""

from dataclasses import dataclass

import pyarrow.compute as pc

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.record import Failure
from clipmill.metadata.records import rows_by_reason
from clipmill.pipeline.engine.budget import FOLDER, spent_in
from clipmill.pipeline.run_folder.state import RunState, StageState, summary


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """One stage: its good shards, the rows computed for them (inside its `only:`), and the cost.

    `seconds` sum over all workers, `rows_per_s` is that of one worker, null without rows. `bytes`
    are stored bytes. `retries` counts attempts past the first; `failures` holds failed shards.
    `spent` is the spending of a stage with a budget over all runs, by unit: `tokens`, `usd`.
    """

    stage: str
    uses: str
    done: str
    shards: int
    rows: int
    seconds: float
    rows_per_s: float | None
    bytes: int
    retries: int
    spent: dict[str, float]
    failures: tuple[Failure, ...]


def work(state: RunState) -> list[StageWork]:
    """Returns the cost of every stage, in the recipe's order."""
    return [_work(name, stage) for name, stage in state.stages.items()]


def _work(name: str, stage: StageState) -> StageWork:
    names = ("computed", "size_bytes", "attempts", "records")
    if stage.seal:
        sums = {name: getattr(stage.seal, name) for name in names}
    else:
        records = stage.columns
        sums = {name: pc.sum(records[name]).as_py() or 0 for name in names[:-1]}
        sums["records"] = len(records)
    is_recorded = stage.planned.stage.determinism == "recorded"
    counts = stage.seal.counts if stage.seal else rows_by_reason(stage.columns)
    rows = sums["computed"] - (counts or {}).get(NOT_SELECTED, 0)
    outputs = sum(size for _, size in stage.outputs)
    return StageWork(
        stage=name,
        uses=stage.planned.uses,
        done=summary(stage),
        shards=len(stage.shards),
        rows=rows,
        seconds=stage.seconds,
        rows_per_s=rows / stage.seconds if stage.seconds and rows else None,
        bytes=sums["size_bytes"] + outputs,
        retries=sums["attempts"] - sums["records"],
        spent=spent_in(stage.folder.child(FOLDER)) if is_recorded else {},
        failures=tuple(failure for failure in stage.failures.values() if failure is not None),
    )
