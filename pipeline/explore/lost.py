"""The first cause of every row under a select stage, as `funnel` counts it."""

import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore.columns import Columns
from clipmill.pipeline.ledger.selection.causes import (
    KEPT,
    Cause,
    causes,
    failed_later,
    later_stages,
)
from clipmill.pipeline.ledger.selection.funnel import in_order, is_end
from clipmill.pipeline.ledger.selection.reasons import ShardReasons
from clipmill.pipeline.run_folder.state import RunState


@dataclass(frozen=True)
class Lost:
    """(N,) the place of each row's cause among `causes`, of which the first is that it stays."""

    code: NDArray[np.int32]
    causes: list[Cause]

    @property
    def nbytes(self) -> int:
        return self.code.nbytes


def ends_of(state: RunState, root: str) -> list[str]:
    """The complete select stages over a root, the ends first and of those the last first.

    Of an end and of the selects that it builds on every row has one cause.
    """
    done = [stage.planned for stage in state.stages.values() if stage.complete]
    selects = [planned for planned in done if planned.is_select and planned.root == root]
    selects.reverse()
    return [p.name for p in sorted(selects, key=lambda planned: not is_end(planned, done))]


def lost(columns: Columns, end: str) -> Lost:
    """The cause of every row; RecipeError where the stage does not decide, or is not complete."""
    state = columns.state
    if end not in ends_of(state, columns.root):
        raise RecipeError(
            f"'{end}' is no complete select stage of '{columns.root}'",
            "the question",
            f"ask of one of: {', '.join(ends_of(state, columns.root)) or 'none is complete yet'}",
        )
    done = [stage.planned for stage in state.stages.values() if stage.complete]
    later = later_stages(end, [planned for planned in done if planned.gives_rows])
    code_N = np.zeros(len(columns), np.int32)
    place: dict[Cause, int] = {KEPT: 0}
    rows_of: dict[int, Counter[Cause]] = {}  # by shard, which are done in any order
    lock = threading.Lock()

    def work(shard: int, rows: slice) -> None:
        reasons = ShardReasons(state, columns.root, shard)
        if reasons.counts(end).keys() <= {""} and not later:
            return
        here, mine = code_N[rows], Counter[Cause]()
        for stage, code, mask in (*causes(reasons, end), *failed_later(reasons, end, later)):
            with lock:
                number = place.setdefault((stage, code), len(place))
            mine[stage, code] += pc.sum(mask).as_py() or 0
            here[mask.to_numpy(zero_copy_only=False)] = number
        rows_of[shard] = mine

    columns.each_shard(work)
    rows_by_cause: Counter[Cause] = Counter()
    for shard in sorted(rows_of):  # as `funnel` meets them, which settles ties
        rows_by_cause.update(rows_of[shard])
    ranked = [KEPT, *in_order(state, rows_by_cause)]
    order = np.array([ranked.index(cause) for cause in place], np.int32)
    return Lost(order[code_N], ranked)
