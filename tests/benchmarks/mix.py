"""Five mixed columns, as score.mix has them, beside five conditions of select.where:
python -m tests.benchmarks.mix
"""

import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.score.mix import Learn, Mix
from clipmill.stages.select.where import Where
from tests.benchmarks.side_by_side import side_by_side
from tests.memory import MemoryContext, MemoryShards

ROWS, SHARDS, NAMES = 1_000_000, 20, "abcde"

rng = np.random.default_rng(0)
columns = {name: rng.normal(size=ROWS).astype(np.float32) for name in NAMES}
columns["good"] = columns["a"] + rng.normal(size=ROWS) > 2
uid = pa.FixedSizeBinaryArray.from_buffers(
    pa.binary(16), ROWS, [None, pa.py_buffer(rng.bytes(16 * ROWS))]
)
whole = pa.table({"uid": uid, **columns})
rows = MemoryShards(
    *(whole.slice(start, ROWS // SHARDS) for start in range(0, ROWS, ROWS // SHARDS))
)
conditions = " AND ".join(f"{name} > -1.5" for name in NAMES)
stages = {
    "where": Where(where=conditions),
    "z": Mix(weights=dict.fromkeys(NAMES, 1.0)),
    "rank": Mix(weights=dict.fromkeys(NAMES, 1.0), scale="rank"),
    "learnt": Mix(learn=Learn(columns=tuple(NAMES), good="good")),
}
with tempfile.TemporaryDirectory() as folder:
    number = count()

    def ran(stage):
        stage.run(Inputs(rows=rows), MemoryContext(Path(folder) / str(next(number))))

    rivals = {name: (lambda stage=stage: ran(stage)) for name, stage in stages.items()}
    side_by_side(rows=ROWS, rounds=3, **rivals)
