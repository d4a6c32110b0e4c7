"""`funnel`, `why`, `sweep` and `report` where each file takes 40 ms, as on an object store.

    python -m tests.benchmarks.far_reads [full | SHARDS ...]        25; full: to 100

A run of a pool, a row stage and a select on a disk, each of whose files is opened 40 ms late (two
requests of 20 ms): read by one thread, as it was until November 2026, and by as many as an object
store is read with. The answers are compared.

Aim: a sixteenth of the waiting.
Measured (2026-11-27, EPYC, 2 shared cores at load 15), wall time at 25, 50 and 100 shards: funnel
4.2, 20.1 and 26.0 s with one reader, 0.5, 0.9 and 1.4 s with 16; why 1.3, 2.5 and 6.5 s, and 0.4,
0.3 and 0.8 s. `sweep` at load 8: 3.9, 7.7 and 14.3 s, and 0.9, 1.5 and 1.9 s. By now `why` reads
one index of 100 shards, and takes 0.2 s with one reader too. `report` on 2026-11-28: 12.9, 24.3 and
44.0 s with one reader, 1.8, 3.3 and 4.1 s with 16; 3.8, 6.2 and 9.9 s with 16 when chosen rows were
read one shard after another.
"""

import time
from collections.abc import Callable
from functools import partial
from unittest import mock

from clipmill.metadata.storage import Storage
from clipmill.pipeline.ledger.rows import ahead
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.selection.sweep import sweep
from clipmill.pipeline.ledger.selection.why import why
from clipmill.pipeline.report.build import report
from clipmill.pipeline.run_folder.state import RunState
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import plan_of, run_toy, scratch

ROWS = 200
WAIT_S = 0.04
STAGES = {
    "affine": {"uses": "toy.affine", "from": "pool"},
    "chosen": {"uses": "select.where", "from": "affine", "where": "affine > 1000000"},
}


def main(*sizes: int) -> str:
    for shards in sizes:
        pool = {"uses": "toy.rows", "shards": shards, "shard_rows": ROWS}
        with scratch() as folder:
            state = run_toy(plan_of({"pool": pool, **STAGES}), folder / "run", workers=0)
            uid = state.uid("pool", shards - 1, 0)
            asked: dict[str, Callable[[RunState], object]] = {
                "funnel": funnel,
                "why": partial(why, uid=uid),
                "sweep": partial(sweep, stage="chosen", vary="affine=0:1000000:250000"),
                "report": report,
            }
            faster = {name: compare(name, ask, state, shards) for name, ask in asked.items()}
    return ", ".join(f"{name} {ratio:.1f}x" for name, ratio in faster.items()) + " one reader"


def compare(name: str, ask: Callable[[RunState], object], state: RunState, shards: int) -> float:
    """How many times as fast many readers are as one."""
    open_file = Storage.open

    def late(folder: Storage, file: str) -> object:
        time.sleep(WAIT_S)
        return open_file(folder, file)

    answers, seconds = [], []
    for readers in (1, ahead.READERS):
        with (
            mock.patch.object(Storage, "open", late),
            mock.patch.object(ahead, "DISK_READERS", readers),
        ):
            began = time.perf_counter()
            answers.append(ask(state))
            seconds.append(time.perf_counter() - began)
    assert answers[0] == answers[1]
    one, many = seconds
    print(f"{shards:>4} shards, {name:<6} one reader {one:6.2f} s, {ahead.READERS} {many:6.2f} s")
    return one / many


if __name__ == "__main__":
    begin(main, quick=(25,), full=(25, 50, 100))
