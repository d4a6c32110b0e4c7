"""Whether all that looks at a run counts its rows as `funnel` does.

python -m tests.same_counts demo/run        show, Python and the explorer: stages, reasons, causes
python -m tests.same_counts demo/run 1 2    and the diff of these two variants
"""

import json
import sys
from collections import Counter
from pathlib import Path

import polars as pl

import clipmill
from clipmill.pipeline.explore.session import Session
from clipmill.pipeline.ledger.selection.diff import diff
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.selection.show import ShowQuery, show
from clipmill.pipeline.ledger.selection.sides import side_of
from clipmill.pipeline.run_folder.state import RunState, latest


def shown(state: RunState) -> int:
    """How many counts of stages and reasons `show` and the funnel have in common; all are."""
    compared = 0
    for it in funnel(state).stages:
        given = it.rows - it.not_selected - it.dropped.get("dropped_before", 0)
        is_select = state.plan.stages[it.stage].is_select
        counts: dict[str | bool | None, int] = {None: it.fine if is_select else given}
        counts[True] = sum(it.dropped.values()) if is_select else given - it.fine
        for kind in (it.failed, it.upstream, it.dropped):
            for reason, rows in kind.items():
                counts[reason] = counts.get(reason, 0) + rows
        for dropped, rows in counts.items():
            (group,) = show(state, ShowQuery(stage=it.stage, dropped=dropped, most=1)).groups
            assert group.rows == rows, (it.stage, dropped)
            compared += 1
    return compared


def explored(run: Path) -> int:
    """How many causes of loss, and rows kept, the explorer and the funnel have in common."""
    session = Session(str(run), run.with_name("run.yaml"))
    compared = 0
    for end in funnel(latest(str(run))).ends:
        (root,) = (it["root"] for it in session.facts()["roots"] if end.stage in it["ends"])
        answer = session.query(json.dumps({"root": root, "end": end.stage}).encode())
        found = [cause["rows"] for cause in answer["causes"]]
        assert found == [end.kept, *(cause.rows for cause in end.causes)], end.stage
        compared += len(found)
    return compared


def in_python(run: Path) -> int:
    """How many selects have as many rows in `run.table` as the funnel says are kept."""
    opened = clipmill.open(str(run))
    ends = funnel(latest(str(run))).ends
    for end in ends:
        (rows,) = opened.table(end.stage, []).select(pl.len()).collect().row(0)
        assert rows == end.kept, end.stage
    return len(ends)


def compared(run: Path, before: str, after: str) -> int:
    """How many causes of either variant `diff` and the funnel have in common."""
    sides = [side_of(variant, str(run)) for variant in (before, after)]
    found = diff(*sides)
    number = 0
    for side, which in zip(sides, ("before", "after"), strict=True):
        (end,) = (it for it in funnel(side.state).ends if it.stage == side.stage)
        rows: Counter[tuple[str, str]] = Counter()
        for move in found.moves:
            outcome = getattr(move, which)
            if outcome.what == "lost":
                rows[outcome.stage, outcome.reason] += move.rows
        assert rows == {(it.stage, it.reason): it.rows for it in end.causes}
        assert getattr(found, which).kept == end.kept
        number += len(rows)
    return number


if __name__ == "__main__":
    folder, variants = Path(sys.argv[1]), sys.argv[2:]
    for end in funnel(latest(str(folder))).ends:
        print(f"funnel: {end.kept:,} of {end.rows:,} rows kept by '{end.stage}'")
    print(f"show: {shown(latest(str(folder)))} counts of stages and reasons are the same")
    print(f"explorer: {explored(folder)} counts are the same")
    print(f"Python: {in_python(folder)} tables have as many rows")
    if variants:
        print(f"diff {' '.join(variants)}: {compared(folder, *variants)} causes are the same")
