"""Scores, mixtures and draws beside what they replace, by processor time.

python -m tests.benchmarks.mix [full | ROWS]    200,000; full: 1,000,000

Five mixed columns, as score.mix has them, beside five conditions of select.where; a partition of
score.negclip beside the released rule in NumPy; a round of select.soft_cap beside the released
code's draw, and beside drawing row after row, of which 20 draws are timed.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from time import process_time

import numpy as np
import pyarrow as pa

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.score.mix import Learn, Mix
from clipmill.stages.score.negclip import contrast
from clipmill.stages.select._repeats import clock
from clipmill.stages.select.soft_cap import SoftCap
from clipmill.stages.select.where import Where
from tests.benchmarks.side_by_side import begin, side_by_side
from tests.memory import MemoryContext, MemoryShards
from tests.stages.score.test_negclip import released

SHARDS, NAMES = 20, "abcde"
PARTITION, WIDTH, TAU = 8_192, 256, 0.07
ONE_BY_ONE = 20
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
    mixed = mixtures(pa.table({"uid": uid, **columns}))
    return f"{mixed}; negclip {negclip(rng)}; {soft_cap(rng, pa.chunked_array([uid]))}"


def mixtures(whole: pa.Table) -> str:
    step, number = len(whole) // SHARDS, count()
    rows = MemoryShards(*(whole.slice(start, step) for start in range(0, len(whole), step)))
    with tempfile.TemporaryDirectory() as folder:

        def ran(stage: Where | Mix) -> None:
            stage.run(Inputs(rows=rows), MemoryContext(Path(folder) / str(next(number))))

        rivals = {name: partial(ran, stage) for name, stage in STAGES.items()}
        ratios = side_by_side(rows=len(whole), rounds=3, clock=process_time, **rivals)
    return f"{ratios['z']} by z, {ratios['rank']} by rank, {ratios['learnt']} learnt"


def negclip(rng: np.random.Generator) -> str:
    image, text = rng.normal(size=(2, PARTITION, WIDTH)).astype(np.float32)
    image, text = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text + image))
    rivals: dict[str, Callable[[], np.ndarray]] = {
        "released, NumPy": lambda: released(image.astype(float), text.astype(float), TAU),
        "negclip": lambda: contrast(image, text, TAU),
    }
    np.testing.assert_allclose(
        *(run() for run in rivals.values()), atol=1e-6
    )  # the vectors are of float32's length 1
    return side_by_side(rows=PARTITION, rounds=3, clock=process_time, **rivals)["negclip"]


def soft_cap(rng: np.random.Generator, uid: pa.ChunkedArray) -> str:
    score_N, batch = rng.normal(size=len(uid)), len(uid) // 10
    stage = SoftCap(weights={"a": 1}, rows=batch, batch=batch)
    clocks = partial(clock, uid, 0, "draws")

    def chances() -> np.ndarray:
        chance_N = np.exp(score_N)
        return chance_N / chance_N.sum()

    def one_by_one() -> None:
        left_N = chances()
        for _ in range(ONE_BY_ONE):
            sum_N = np.cumsum(left_N)
            left_N[np.searchsorted(sum_N, rng.random() * sum_N[-1])] = 0

    rivals = {
        "released draw": lambda: rng.choice(len(uid), batch, replace=False, p=chances()),
        "soft_cap": lambda: stage.drawn(score_N.copy(), clocks, "draws"),
        f"{ONE_BY_ONE} row by row": one_by_one,
    }
    seconds: dict[str, float] = {}
    for name, run in rivals.items():
        start = process_time()
        run()
        seconds[name] = process_time() - start
        print(f"{name:<18}{seconds[name]:>12.3f} s of {batch:,} from {len(uid):,} rows")
    whole, ours, few = (seconds[name] for name in rivals)
    alone = few / ONE_BY_ONE * batch / ours
    return f"soft_cap {whole / ours:.1f}x the released draw, {alone:,.0f}x row by row"


if __name__ == "__main__":
    begin(main, quick=(200_000,), full=(1_000_000,))
