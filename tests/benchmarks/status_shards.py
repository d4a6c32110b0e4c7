"""What a run's start and `status` take of runs of many shards: CPU time and memory.

    python -m tests.benchmarks.status_shards [full | SHARDS ...]    10,000; full: to 100,000

A pool and nine row stages, complete: real compactions, manifests and seals, and data files of which
only the sizes are true, as nothing else of them is looked at. `start` is what every verb and `run`
itself begin with: the state of all stages. `listed` does without the seals, as before there were
any. Each is a process of its own, whose imports are counted apart.

Aim: 100,000 shards of ten stages below 3 s and 300 MB, whatever a start does.
Measured (2026-12-01, EPYC, 2 shared cores at load 4), at 10,000 and 100,000 shards, by the seals:
status 0.07 and 0.16 s, 41 and 94 MB; listed 0.71 and 8.4 s, 131 and 750 MB.
"""

import json
import os
import sys
from pathlib import Path
from time import process_time

from clipmill.metadata import stage_seal
from clipmill.metadata.compaction import compact
from clipmill.metadata.record import Manifest, Record, data_name
from clipmill.metadata.records import table_of
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.manifests import seal
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.run_folder.live import live_run
from clipmill.pipeline.run_folder.state import RunState
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import module, peak_mb, plan_of, scratch

ROWS = 10_000
STAGES = {
    "affine": {"uses": "toy.affine", "from": "pool"},
    **{f"letters{n}": {"uses": "toy.letters", "from": "affine"} for n in range(8)},
}


def main(*sizes: int) -> str:
    for shards in sizes:
        with scratch() as folder:
            write(folder, shards)
            said = {
                kind: module("tests.benchmarks.status_shards", "measure", folder, shards, kind)
                for kind in ("listed", "sealed")
            }
        for kind, steps in said.items():
            for name, (seconds, mb) in steps.items():
                print(
                    f"{shards:>8,} shards, {kind}: {name:<7} {seconds:5.2f} s of CPU, {mb:5.0f} MB"
                )
    seconds, mb = said["sealed"]["status"]
    return f"{seconds:.2f} s and {mb:.0f} MB more for {shards:,} shards of {1 + len(STAGES)} stages"


def plan(shards: int) -> Plan:
    return plan_of({"pool": {"uses": "toy.rows", "shards": shards, "shard_rows": ROWS}, **STAGES})


def write(run: Path, shards: int) -> None:
    """A run folder as far as its records go."""
    done: dict[str, list[Record]] = {}
    for name, planned in plan(shards).stages.items():
        folder = run / planned.folder
        folder.mkdir(parents=True)
        parents = {source: done[source] for source in planned.sources}
        records = done[name] = [record_of(folder, shard, name, parents) for shard in range(shards)]
        compact(Storage(str(folder)), table_of(records))
        made = Manifest(shards=shards, rows=shards * ROWS, inputs="", seconds=1.0)
        (folder / "manifest.json").write_text(json.dumps(vars(made)))
    state = RunState(plan(shards), Storage(str(run)))
    for name in state.stages:
        seal(state, name)


def record_of(folder: Path, shard: int, stage: str, parents: dict[str, list[Record]]) -> Record:
    """The record of a finished shard, which lies there beside its data."""
    sha256 = f"{hash((shard, stage)) % 2**64:032x}"
    made_of = {source: records[shard].sha256 for source, records in parents.items()}
    record = Record(
        shard=shard,
        data=data_name(shard, 0, sha256),
        size_bytes=1_000_000 + shard,
        sha256=sha256,
        rows=ROWS,
        computed=ROWS,
        uid_sha256=f"{shard + 1:032x}",
        parents=made_of or {"source": f"{shard + 2:032x}"},
        counts={"": ROWS - 200, "no_text": 150, "too_long": 50} if parents else {"": ROWS},
        source=None
        if parents
        else {"file": f"pool/{shard:08d}.parquet", "digest": f"{shard:032x}"},
        seconds=1.234,
    )
    (folder / record.name).write_text(record.to_json())
    with open(folder / str(record.data), "wb") as file:
        os.truncate(file.fileno(), record.size_bytes)
    return record


def measure(run: Path, shards: int, kind: str) -> dict[str, tuple[float, float]]:
    """Seconds of CPU and more memory at most, of each."""
    if kind == "listed":
        stage_seal.LARGE = sys.maxsize
    planned = plan(shards)
    RunState(planned, Storage(str(run / "none")))  # all is imported
    peak, began = peak_mb(), process_time()
    state = RunState(planned, Storage(str(run)))
    start = process_time() - began, peak_mb() - peak
    live = live_run(state, "complete")
    status = process_time() - began, peak_mb() - peak
    assert [stage.shards for stage in live.stages.values()] == [shards] * len(state.stages)
    assert all(stage.status == "done" for stage in live.stages.values())
    return {"start": start, "status": status}


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
    else:
        begin(main, quick=(10_000,), full=(1_000, 10_000, 100_000))
