"""Five mixed columns, as score.mix has them, beside five conditions of select.where.

python -m tests.benchmarks.mix [full | ROWS]    200,000; full: 1,000,000
"""

import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.score.mix import Learn, Mix
from clipmill.stages.select.where import Where
from tests.benchmarks.side_by_side import begin, side_by_side
from tests.memory import MemoryContext, MemoryShards

SHARDS, NAMES = 20, "abcde"
STAGES = {
    "where": Where(where=" AND ".join(f"{name} > -1.5" for name in NAMES)),
    "z": Mix(weights=dict.fromkeys(NAMES, 1.0)),
    "rank": Mix(weights=dict.fromkeys(NAMES, 1.0), scale="rank"),
    "learnt": Mix(learn=Learn(columns=tuple(NAMES), good="good")),
}


def main(size: int) -> str:
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=size).astype(np.float32) for name in NAMES}
    columns["good"] = columns["a"] + rng.normal(size=size) > 2
    uid = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), size, [None, pa.py_buffer(rng.bytes(16 * size))]
    )
    whole, step = pa.table({"uid": uid, **columns}), size // SHARDS
    rows = MemoryShards(*(whole.slice(start, step) for start in range(0, size, step)))
    number = count()
    with tempfile.TemporaryDirectory() as folder:

        def ran(stage: Where | Mix) -> None:
            stage.run(Inputs(rows=rows), MemoryContext(Path(folder) / str(next(number))))

        rivals = {name: (lambda stage=stage: ran(stage)) for name, stage in STAGES.items()}
        ratios = side_by_side(rows=size, rounds=3, **rivals)
    return f"{ratios['z']} by z, {ratios['rank']} by rank, {ratios['learnt']} learnt"


if __name__ == "__main__":
    begin(main, quick=(200_000,), full=(1_000_000,))
