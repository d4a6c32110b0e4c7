"""What the stages that compare with evaluation sets found: by task how many rows, and which.

By what columns name: a task and its sample, beside the column that says how near that is. The
stage's `leaks` artifact counts rows within some limits of each task.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metadata.outputs import Outputs
from metadata.schema import Column
from pipeline.ledger.near import Cut, cut_of, naming, nearness_of, spread, whole
from pipeline.ledger.stored import artifacts
from pipeline.report.samples import strips_of
from pipeline.state import RunState

LIMITS = 7  # at which rows are counted
TASKS = 6  # of which rows are shown
SHOWN = 10  # of each


def leaks(state: RunState) -> list[dict[str, Any]]:
    """Of every finished stage that names evaluation samples: rows by task, and some of them."""
    found = []
    for name, stage in state.stages.items():
        near, task = nearness_of(stage.planned.stage), naming(stage.planned.stage, "task")
        cut = cut_of(state, name, near) if near else None
        for file in artifacts(stage, "leaks").values():
            if near and cut and task and stage.shards:
                counts = json.loads(Outputs(stage.folder).read(file))
                found.append(_leaked(state, name, counts, near, task, cut))
    return found


def _leaked(
    state: RunState, name: str, told: dict[str, Any], near: Column, named: Column, cut: Cut
) -> dict[str, Any]:
    planned = state.plan.stages[name]
    assert planned.root is not None
    pool = whole(state, planned.root, {"near": (name, near.name), "task": (name, named.name)})
    value, task = pool.table["near"], pool.table["task"]
    reached_N = cut.reached(value)
    counted = pc.value_counts(task.filter(pa.array(reached_N))).to_pylist()
    rows = {count["values"]: count["counts"] for count in counted}
    largest = sorted(rows, key=lambda task: (-rows[task], task))[:TASKS]
    shown = [
        spread(np.flatnonzero(reached_N & pc.equal(task, one).fill_null(False)), value, near, SHOWN)
        for one in largest
    ]
    sample = naming(planned.stage, "sample")
    columns = [near.name, *([sample.name] if sample else [])]
    strips = strips_of(state, name, [pool.places(few.tolist()) for few in shown], columns)
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
