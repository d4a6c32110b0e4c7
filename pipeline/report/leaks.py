"""What the stages that compare with evaluation sets found: by task how many rows, and which.

By column names: `eval_task` and `eval_key` name the nearest sample, the stage's other column says
how near it is; its out/leaks.json counts rows within some limits of each task.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.near import Cut, cut_of, spread, whole
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
SHOWN = 10  # of each


def leaks(state: RunState) -> list[dict[str, Any]]:
    """Of every finished stage that names evaluation samples: rows by task, and some of them."""
    found = []
    for name, stage in state.stages.items():
        written = {column.name for column in stage.planned.stage.writes}
        if {TASK, KEY} <= written and stage.complete and stage.shards:
            told = stage.folder.read_if_there("out/leaks.json")
            found += [_leaked(state, name, json.loads(told))] if told else []
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
    """Rows of each task: those it is the nearest of, and those within limits, to the first one past
    the cut."""
    order = sorted(told["at"], reverse=">" in cut.sign)  # the strictest first
    past_L = ~cut.reached(pa.chunked_array([order]))
    shown = order[: int(past_L.argmax()) + 1 if past_L.any() else None][-LIMITS:]
    tasks = [
        {
            "task": task,
            "samples": of["samples"],
            "nearest": nearest.get(task, 0),
            "within": [of["rows"][told["at"].index(limit)] for limit in shown],
        }
        for task, of in told["tasks"].items()
    ]
    return {"at": shown, "tasks": sorted(tasks, key=lambda task: -max(task["within"], default=0))}
