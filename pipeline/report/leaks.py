"""What the stages that compare with evaluation sets found: by task how many rows, and which.

By column names: `eval_task` and `eval_key` name the nearest sample, the stage's other column says
how near it is; its out/leaks.json counts rows within some limits of each task.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metadata.outputs import Outputs
from pipeline.ledger.near import Cut, cut_of, spread, whole
from pipeline.report.samples import strips_of
from pipeline.state import RunState

TASK, KEY = "eval_task", "eval_key"
# Where no select has one.
CUTS = {
    cut.column: cut
    for cut in (
        Cut("eval_distance", "<=", "2"),
        Cut("eval_cosine", ">=", "0.9"),
        Cut("eval_overlap", ">=", "1"),
    )
}
LIMITS = 7  # at which rows are counted
TASKS = 6  # of which rows are shown
LEAKS = "leaks.json"
SHOWN = 10  # of each


def leaks(state: RunState) -> list[dict[str, Any]]:
    """Of every finished stage that names evaluation samples: rows by task, and some of them."""
    found = []
    for name, stage in state.stages.items():
        written = {column.name for column in stage.planned.stage.writes}
        if {TASK, KEY} <= written and stage.complete and stage.shards:
            outputs = Outputs(stage.folder)
            if LEAKS in outputs.names:
                found.append(_leaked(state, name, json.loads(outputs.read(LEAKS))))
    return found


def _leaked(state: RunState, name: str, told: dict[str, Any]) -> dict[str, Any]:
    planned, near = state.plan.stages[name], told["column"]
    assert planned.root is not None
    pool = whole(state, planned.root, {"near": (name, near), "task": (name, TASK)})
    value, task = pool.table["near"], pool.table["task"]
    cut = cut_of(state, name, near) or CUTS[near]
    reached_N = cut.reached(value)
    counted = pc.value_counts(task.filter(pa.array(reached_N))).to_pylist()
    rows = {count["values"]: count["counts"] for count in counted}
    largest = sorted(rows, key=lambda task: (-rows[task], task))[:TASKS]
    shown = [
        spread(np.flatnonzero(reached_N & pc.equal(task, one).fill_null(False)), value, SHOWN)
        for one in largest
    ]
    strips = strips_of(state, name, [pool.places(few.tolist()) for few in shown], [near, KEY])
    return {
        "stage": name,
        "uses": planned.uses,
        "rows": len(reached_N),
        "cut": cut,
        "reached": int(reached_N.sum()),
        **limits(told, cut, rows),
        "strips": [
            {"task": one, "rows": rows[one], "more": rows[one] - len(strip), "samples": strip}
            for one, strip in zip(largest, strips, strict=True)
        ],
    }


def limits(told: dict[str, Any], cut: Cut, nearest: dict[str, int]) -> dict[str, Any]:
    """Rows of each task: those it is the nearest of, and those within each limit that tells more.

    From the strictest to the first past the cut that adds rows, or the loosest where none does.
    Limits that add none to the one before are left out, but for the last at the cut: distances of
    pHashes are nearly all even.
    """
    order = sorted(told["at"], reverse=">" in cut.sign)  # the strictest first
    columns = [told["at"].index(limit) for limit in order]
    rows_TL = np.array([of["rows"] for of in told["tasks"].values()])[:, columns]
    adds_L = np.append(True, np.diff(rows_TL).any(axis=0))
    reached_L = cut.reached(pa.chunked_array([order]))
    adds_L[[*np.flatnonzero(reached_L)[-1:], -1]] = True
    past = np.flatnonzero(adds_L & ~reached_L)[:1]
    shown = np.append(np.flatnonzero(adds_L & reached_L), past)[-LIMITS:]
    tasks = [
        {
            "task": task,
            "samples": of["samples"],
            "too_short": of.get("too_short", 0),
            "nearest": nearest.get(task, 0),
            "within": within,
        }
        for (task, of), within in zip(
            told["tasks"].items(), rows_TL[:, shown].tolist(), strict=True
        )
    ]
    return {
        "at": [order[at] for at in shown.tolist()],
        "tasks": sorted(tasks, key=lambda task: -max(task["within"])),
    }
