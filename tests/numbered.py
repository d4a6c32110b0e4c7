"""A finished run whose every value, loss and cause can be worked out by head.

Row i holds a = i, but for row 20, which holds none; `one` fails every fifth, `two` every seventh,
`late` every fourth of the rows that `first` keeps.
"""

import json
import shutil
from pathlib import Path

import yaml

from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import uid_of
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import RunState

ROWS = range(1, 21)
STAGES = """
pool:  {uses: ingest.url_list, path: none, extra: {a: int64}, shard_rows: 7}
one:   {uses: probe.copy, from: pool, column: a, to: b, unlucky: 5}
two:   {uses: probe.copy, from: one, column: b, to: c, unlucky: 7}
first: {uses: select.where, from: two, where: c > 3}
late:  {uses: probe.copy, from: pool, column: a, to: e, unlucky: 4, only: first}
last:  {uses: select.where, from: [first, late, one], where: e <> 9 AND b < 18}
uids:  {uses: export.uid_list, from: last}
"""
KEPT = (6, 11, 13, 17)
CAUSES = {  # of `last`: stage, reason and its rows
    ("one", "unlucky"): (5, 10, 15),
    ("one", "no_number"): (20,),
    ("two", "unlucky"): (7, 14),
    ("first", "c > 3"): (1, 2, 3),
    ("late", "unlucky"): (4, 8, 12, 16),
    ("last", "e <> 9"): (9,),
    ("last", "b < 18"): (18, 19),
}


def uid(row: int) -> str:
    return uid_of(f"http://a.test/{row}", f"row {row}").hex()


def plan_of(folder: Path, text: str = STAGES, pool: Path | None = None) -> Plan:
    stages = yaml.safe_load(text)
    stages["pool"]["path"] = str((pool or folder) / "pool.jsonl")
    return make_plan(Recipe(name="numbered", path="numbered.yaml", seed=0, stages=stages))


def write_pool(folder: Path, more: list[dict] = []) -> None:  # noqa: B006  # read only
    rows = [
        {"url": f"http://a.test/{i}", "text": f"row {i}", "a": None if i == 20 else i} for i in ROWS
    ]
    lines = [json.dumps(row) for row in [*rows, *more]]
    (folder / "pool.jsonl").write_text("\n".join(lines))


def run(folder: Path, text: str = STAGES, pool: Path | None = None) -> RunState:
    """The state of a run of these stages over the rows in pool.jsonl, of that folder or another."""
    plan = plan_of(folder, text, pool)
    outcome = run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    return outcome.state


def without(state: RunState, *stages: str) -> RunState:
    """The state of a copy after it has lost what these stages stored."""
    for name in stages:
        shutil.rmtree(state.stages[name].folder.path)
    return RunState(state.plan, state.run)


def build(folder: Path) -> None:
    """The pool, and the finished run."""
    write_pool(folder)
    run(folder)
