"""How well a run foretells one ten times larger: `plan --rows`, by processor time.

    python -m tests.benchmarks.forecast [full | SHARDS ...]    10; full: 10 and 30

The larger run has ten times the shards, of 5,000 rows: language, two cheap stages, equal images.
Each is a process of its own, as an import counts once. `stages` compares the sum over stages with
what the larger run measured of itself; `process` with all its processor time, start and driver too.

Aim: the median of five within 20 %.
Measured (2026-12-01, EPYC, 2 shared cores at load 6), five of 10 shards, said
beside taken: of the stages 1.12 to 1.23, median 1.18; of the process 1.04 to 1.13, median 1.09.
MinHash over captions of eleven words, nearly all copies, took 1.8 times what was said.
"""

import json
import sys
from pathlib import Path
from statistics import median
from time import process_time

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.forecast import Hardware, forecast
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.sessions import session
from clipmill.pipeline.run_folder.state import RunState
from tests.benchmarks.side_by_side import begin, rounds_of
from tests.benchmarks.toy import module, plan_of, scratch

STAGES = {
    "affine": {"uses": "toy.affine", "from": "pool"},
    "letters": {"uses": "toy.letters", "from": "affine"},
    "language": {"uses": "annotate.language", "from": "pool"},
    "copies": {"uses": "dedup.exact", "from": "pool"},
}
ROWS = 5_000
NODE = Hardware(nodes=1, cpus=1, memory_gb=16)


def main(*sizes: int) -> str:
    said = ""
    for shards in sizes:
        ratios: dict[str, list[float]] = {"stages": [], "process": []}
        for _ in range(rounds_of(5)):
            with scratch() as folder:
                small = module("tests.benchmarks.forecast", "measure", folder / "small", shards)
                large = module(
                    "tests.benchmarks.forecast", "measure", folder / "large", 10 * shards
                )
            ratios["stages"].append(small["ten_times_s"] / large["itself_s"])
            ratios["process"].append(small["ten_times_s"] / large["process_s"])
        for kind, each in ratios.items():
            print(f"{shards:>4} shards, {kind:<8}", *(f"{ratio:.2f}" for ratio in sorted(each)))
        middle = {kind: f"{median(each):.2f}" for kind, each in ratios.items()}
        said = (
            f"{middle['stages']} of the stages, {middle['process']} of the process, {shards} shards"
        )
    return said


def measure(folder: Path, shards: int) -> dict[str, float]:
    """Runs; what it says of itself and of a run ten times as large, in core-seconds."""
    pool = {"uses": "toy.rows", "shards": shards, "shard_rows": ROWS, "image_bytes": 500}
    plan = plan_of({"pool": pool, **STAGES})
    run = Storage(str(folder))
    with session(run, "toy") as spent:
        spent.update(run_plan(plan, run, LocalExecutor(0), Lines()).spent)
    process_s, state = process_time(), RunState(plan, run)
    said = (forecast(state, times * shards * ROWS, NODE).core_hours * 3600 for times in (1, 10))
    return {"process_s": process_s} | dict(zip(("itself_s", "ten_times_s"), said, strict=True))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        begin(main, quick=(10,), full=(10, 30))
