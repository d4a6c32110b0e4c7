"""What a run's start and `status` take of runs of many shards: CPU time and memory.

    python -m tests.benchmarks.status_shards [full | SHARDS ...]    10,000; full: to 100,000

A pool and two row stages, complete: real compactions and manifests, and data files of which only
the sizes are true, as nothing else of them is looked at. `start` is what every verb and `run`
itself begin with: the state of all stages. Each is a process of its own, whose
imports are counted apart.

Aim: time and memory that grow no faster than the shards, and less of both for each.
Measured (2026-11-28, EPYC, 2 shared cores), in turns with the code that made an object of each
record, on a disk in memory at 10,000 and 100,000 shards: start 0.71 and 5.7 s (1.7 and 16.5 s),
status 0.76 and 5.9 s (1.8 and 17.0 s), 81 and 380 MB (136 and 610): 19 us and 1.3 KB a shard and
stage. With compactions that are not zstd, alone, start 0.48 and 4.8 s, 77 and 353 MB: 16 us. Ten
stages of 100,000 shards took 17 s before that, 10 to 11 s of wall time, and 608 MB: 0.6 KB. What is
left is for the most part the listing, which goes on beside that of other stages.
Before that (2026-11-27, at load 8 to 10, another day's machine), at 10,000 and 100,000 shards:
 start 0.52 and 4.53 s, status 0.54 and 4.75 s, 134 and 714 MB: 15 us and 2.2 KB more
a shard and stage. Before, 0.92 and 10.2 s, 1.54 and 18.4 s, 170 and 1,038 MB: 34 us, 62 us and
3.4 KB. What it was spent on: texts decoded in two steps, all of them held, a search for cycles
among records that stay, and a task of a thread pool for each shard.
"""

import json
import os
import re
import sys
from pathlib import Path
from time import process_time

from clipmill.metadata.compaction import compact
from clipmill.metadata.record import Manifest, Record, data_name
from clipmill.metadata.records import table_of
from clipmill.metadata.storage import Storage
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.run_folder.live import live_run
from clipmill.pipeline.run_folder.state import RunState
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import module, plan_of, scratch

ROWS = 10_000
STAGES = {
    "affine": {"uses": "toy.affine", "from": "pool"},
    "letters": {"uses": "toy.letters", "from": "affine"},
}


def main(*sizes: int) -> str:
    for shards in sizes:
        with scratch() as folder:
            write(folder, shards)
            said = module("tests.benchmarks.status_shards", "measure", folder, shards)
        each = shards * (1 + len(STAGES))
        for name, (seconds, mb) in said.items():
            print(
                f"{shards:>8,} shards, {name:<7} {seconds:5.2f} s of CPU, {mb:5.0f} MB at most:"
                f" {seconds / each * 1e6:4.1f} us and {mb / each * 2**20:,.0f} B a shard and stage"
            )
    spent, held = said["status"][0] / each * 1e6, said["status"][1] / each * 2**10
    return f"{spent:.0f} us and {held:.1f} KB a shard and stage of {shards:,}"


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


def measure(run: Path, shards: int) -> dict[str, tuple[float, float]]:
    """Seconds of CPU and more memory at most, of each."""
    planned = plan(shards)
    RunState(planned, Storage(str(run / "none")))  # all is imported
    peak, began = _peak_mb(), process_time()
    state = RunState(planned, Storage(str(run)))
    start = process_time() - began, _peak_mb() - peak
    live = live_run(state, "complete")
    status = process_time() - began, _peak_mb() - peak
    assert [stage.shards for stage in live.stages.values()] == [shards] * 3
    assert all(stage.status == "done" for stage in live.stages.values())
    return {"start": start, "status": status}


def _peak_mb() -> float:
    """Of this process; what `getrusage` says is at least its parent's."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        begin(main, quick=(10_000,), full=(1_000, 10_000, 100_000))
