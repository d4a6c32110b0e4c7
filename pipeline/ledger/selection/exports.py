"""Reports complete exports: rows and files of each, and subsets of one that a select chooses."""

import json
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from clipmill.metadata.datacard import SUMMARY
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import is_places, read_places
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.masks import SelectMask
from clipmill.pipeline.run_folder.state import RunState

# Shapes: S shards of a pool, N rows of it or of a shard, M rows of a file.


@dataclass(frozen=True, kw_only=True)
class Export:
    """The files of one complete stage; `rows` = `exported` + those left out, by reason.

    `rows` and `exported` are null for files without rows, such as a model's.
    """

    stage: str
    rows: int | None
    exported: int | None
    left: dict[str, int]
    folder: str
    files: int
    bytes: int


def exports(state: RunState) -> tuple[Export, ...]:
    """Returns complete stages that write files, in the recipe's order; StageError if the counts
    of an export do not add up."""
    return tuple(
        _export(state, name)
        for name, stage in state.stages.items()
        if stage.complete and stage.planned.gives_data
    )


def _export(state: RunState, name: str) -> Export:
    stage = state.stages[name]
    outputs = Outputs(stage.folder)
    summary = json.loads(outputs.read(SUMMARY)) if SUMMARY in outputs.names else {}
    counts = dict(summary.get("counts", {}))
    rows, exported = counts.pop("rows", None), counts.pop("exported", None)
    if rows is not None and rows != exported + sum(counts.values()):
        raise StageError(
            f"{exported} of {rows} rows exported, {counts}",
            f"stage '{name}'",
            "the export is damaged: delete its folder and run again",
        )
    return Export(
        stage=name,
        rows=rows,
        exported=exported,
        left={reason: count for reason, count in counts.items() if count},
        folder=f"{stage.folder}/out",
        files=len(stage.outputs),
        bytes=sum(size for _, size in stage.outputs),
    )


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The rows of a pool that a select keeps: `kept` = `read` from an export + `lacking` there."""

    stage: str  # the reader
    data: str
    select: str
    kept: int
    read: int
    lacking: int


def subsets(state: RunState) -> tuple[Subset, ...]:
    """Returns every complete stage that reads an export under a select, in the recipe's order."""
    masks = {
        name: mask
        for name, stage in state.stages.items()
        if stage.complete and (mask := state.mask(stage.planned))
    }
    return tuple(_subset(state.plan.stages[name], mask) for name, mask in masks.items())


def _subset(planned: PlannedStage, mask: SelectMask) -> Subset:
    """Counts the rows that the select keeps, and those of them that the export lacks."""
    pool = mask.verdicts
    start_S = np.cumsum([0, *(pool.rows(shard) for shard in range(len(pool)))])
    is_there_N = np.zeros(start_S[-1], bool)
    outputs = Outputs(mask.export)
    for name in filter(is_places, outputs.names):
        shard_M, position_M = read_places(outputs, name).T
        is_there_N[start_S[shard_M] + position_M] = True
    kept = lacking = 0
    for shard, (start, stop) in enumerate(pairwise(start_S.tolist())):
        is_kept_N = mask.times_in_pool(shard) > 0
        kept += int(np.count_nonzero(is_kept_N))
        lacking += int(np.count_nonzero(is_kept_N & ~is_there_N[start:stop]))
    return Subset(
        stage=planned.name,
        data=planned.data or "",
        select=planned.kept_by or "",
        kept=kept,
        read=kept - lacking,
        lacking=lacking,
    )
