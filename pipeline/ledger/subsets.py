"""What stages read of an export where `rows` names a select: how much of it, and what it lacks."""

from dataclasses import dataclass

import numpy as np

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import is_places, read_places
from clipmill.pipeline.run_folder.masks import SelectMask
from clipmill.pipeline.run_folder.state import RunState


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Rows of a pool that a select keeps = rows `read` of an export + those that it lacks."""

    stage: str  # the reader
    data: str
    select: str
    kept: int
    read: int
    lacking: int


def subsets(state: RunState) -> tuple[Subset, ...]:
    """Every complete stage that reads an export under a select, in the recipe's order."""
    answers = []
    for name, stage in state.stages.items():
        mask = state.mask(stage.planned) if stage.complete else None
        if mask:
            kept, lacking = _counts(mask)
            planned = stage.planned
            answers.append(
                Subset(
                    stage=name,
                    data=planned.data or "",
                    select=planned.kept_by or "",
                    kept=kept,
                    read=kept - lacking,
                    lacking=lacking,
                )
            )
    return tuple(answers)


def _counts(mask: SelectMask) -> tuple[int, int]:
    """Rows that the select keeps, and how many of them the export lacks."""
    pool = mask.verdicts
    is_there = [np.zeros(pool.rows(shard), bool) for shard in range(len(pool))]
    outputs = Outputs(mask.export)
    for name in filter(is_places, outputs.names):
        place_N2 = read_places(outputs, name)
        for shard in np.unique(place_N2[:, 0]):
            is_there[shard][place_N2[place_N2[:, 0] == shard, 1]] = True
    kept = lacking = 0
    for shard, is_there_N in enumerate(is_there):
        is_kept_N = mask.times_in_pool(shard) > 0
        kept += int(np.count_nonzero(is_kept_N))
        lacking += int(np.count_nonzero(is_kept_N & ~is_there_N))
    return kept, lacking
