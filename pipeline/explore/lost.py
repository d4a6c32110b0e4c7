"""Computes the first cause of every row under a select stage, as `funnel` counts it."""

import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore.columns import Columns
from clipmill.pipeline.ledger.selection.causes import KEPT, Cause, is_end, later_stages, losses
from clipmill.pipeline.ledger.selection.funnel import in_order
from clipmill.pipeline.ledger.selection.reasons import ShardReasons
from clipmill.pipeline.run_folder.state import RunState


@dataclass(frozen=True)
class Lost:
    """(N,) the index of each row's cause in `causes`, whose first is KEPT."""

    code: NDArray[np.int32]
    causes: list[Cause]

    @property
    def nbytes(self) -> int:
        return self.code.nbytes


def ends_of(state: RunState, root: str) -> list[str]:
    """Returns the complete select stages over a root: final ones first, later ones first.

    Each row has one cause for a final select and the selects that it builds on.
    """
    done = state.row_stages
    selects = [planned for planned in done if planned.is_select and planned.root == root]
    selects.reverse()
    return [p.name for p in sorted(selects, key=lambda planned: not is_end(planned, done))]


def lost(columns: Columns, end: str) -> Lost:
    """Returns the cause of every row; RecipeError if the stage is no complete select."""
    state = columns.state
    if end not in ends_of(state, columns.root):
        raise RecipeError(
            f"'{end}' is no complete select stage of '{columns.root}'",
            "the question",
            f"ask of one of: {', '.join(ends_of(state, columns.root)) or 'none is complete yet'}",
        )
    later = later_stages(state, end)
    code_N = np.zeros(len(columns), np.int32)
    place: dict[Cause, int] = {KEPT: 0}
    rows_of: dict[int, Counter[Cause]] = {}  # by shard, as shards finish in any order
    lock = threading.Lock()

    def work(shard: int, rows: slice) -> None:
        reasons = ShardReasons(state, columns.root, shard)
        if reasons.counts(end).keys() <= {""} and not later:
            return
        shard_codes, shard_causes = code_N[rows], Counter[Cause]()
        for stage, code, mask in losses(reasons, end, later):
            with lock:
                number = place.setdefault((stage, code), len(place))
            shard_causes[stage, code] += pc.sum(mask).as_py() or 0
            shard_codes[mask.to_numpy(zero_copy_only=False)] = number
        rows_of[shard] = shard_causes

    columns.each_shard(work)
    rows_by_cause: Counter[Cause] = Counter()
    for shard in sorted(rows_of):  # in the funnel's order, which decides ties
        rows_by_cause.update(rows_of[shard])
    ranked = [KEPT, *in_order(state, rows_by_cause)]
    order = np.array([ranked.index(cause) for cause in place], np.int32)
    return Lost(order[code_N], ranked)
