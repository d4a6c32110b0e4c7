"""What a worker of a dataset stage is sent of the shards' states, as a pool has more of them.

    python -m tests.benchmarks.sent_states [full | SHARDS ...]    20,000; full: to 128,000

Three stages are read by the stage whose worker it is. `all` is how it was until November 2026: a
call sends each worker the states of all shards. `read` is the time of a worker that reads those of
every thousandth shard, as one of many does; both worker's figures are of fresh processes.

Aim: bytes sent and memory of a worker that do not grow with the shards.
Measured (2026-11-27, EPYC, 2 shared cores at load 9), at 2,000, 20,000 and 128,000 shards: all is
0.75, 7.5 and 48.1 MB to each worker with each call, which takes it 0.03, 0.15 and 1.8 s of CPU and
6, 59 and 386 MB; the name is 272 bytes, 0.03, 0.06 and 0.05 s, 5.5, 11 and 11 MB. The object is
43 bytes a shard; the driver stores it once a stage, in 0.01,
0.12 and 0.7 s of CPU.
"""

import pickle
import subprocess
import sys
from pathlib import Path
from time import process_time

from clipmill.metadata.record import ShardState
from clipmill.metadata.storage import Storage
from clipmill.pipeline.run_folder.rows import PoolShards
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import scratch

STAGES = ("pool", "language", "caption")
READS = 100  # shards that a worker reads


def pool(shards: int) -> PoolShards:
    states = tuple({stage: state(shard, stage) for stage in STAGES} for shard in range(shards))
    return PoolShards({}, states, {}, "pool")


def state(shard: int, stage: str) -> ShardState:
    """As a shard of a row stage has it, and a root's with its source."""
    sha256 = f"{shard * 7919 + len(stage):064x}"
    source = {"file": f"s3://bucket/pool/{shard:08d}.parquet", "digest": sha256[:32]}
    return ShardState(
        rows=10_000,
        files=(f"{shard:06d}-{sha256[-16:]}.parquet",),
        digest=sha256[-32:],
        source=source if stage == "pool" else None,
    )


def main(*sizes: int) -> str:
    for shards in sizes:
        with scratch() as folder:
            whole = pool(shards)
            begun = process_time()
            name = pickle.dumps(whole.by_reference(Storage(str(folder)), "calls"))
            spent_s = process_time() - begun
            sent = {"all": pickle.dumps(whole), "name": name}
            stored = sum(path.stat().st_size for path in (folder / "calls").iterdir())
            print(
                f"{shards:>7,} shards: {stored / 1e6:.2f} MB stored, driver {spent_s:.2f} s of CPU"
            )
            for name, message in sent.items():
                path = folder / name
                path.write_bytes(message)
                command = (sys.executable, "-m", "tests.benchmarks.sent_states", "work", path)
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                print(f"    {name:<5} {len(message):>12,} bytes sent   {said.strip()}", flush=True)
    return f"{len(sent['name'])} bytes to a worker, not {len(sent['all']):,}, of {shards:,} shards"


def work(path: Path) -> None:
    """A worker's part: what it takes to know some shards."""
    before = peak_kb()
    begun = process_time()
    rows: PoolShards = pickle.loads(path.read_bytes())
    step = len(rows) // READS
    assert all(rows.rows(shard * step) == 10_000 for shard in range(READS))
    spent_s = process_time() - begun
    print(f"worker {spent_s:.3f} s of CPU, {(peak_kb() - before) / 1024:.1f} MB more")


def peak_kb() -> int:
    """Of this program: a child's ru_maxrss begins with its parent's."""
    (line,) = (it for it in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in it)
    return int(line.split()[1])


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "work":
        work(Path(sys.argv[2]))
    else:
        begin(main, quick=(20_000,), full=(2_000, 20_000, 128_000))
