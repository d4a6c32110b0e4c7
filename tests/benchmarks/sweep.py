"""`sweep` of 20 thresholds over a million rows, against selecting 20 times: the same verdicts.

    python -m tests.benchmarks.sweep

The pool is a link list with a language and a score a row; `rerun` is what a user does without
`sweep`: the recipe run 20 times in one folder, with another threshold each, where only the select
stage has work to do. With `top`, the cut depends on which rows pass, and is found anew each time.

Aim: seconds, and at least ten times as fast.
"""

from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metadata.schema import KEEP
from pipeline.ledger.stored import stored
from pipeline.ledger.sweep import sweep
from pipeline.run_folder.state import RunState
from tests.benchmarks.toy import plan_of, run_toy, scratch

ROWS, SHARD_ROWS, ROUNDS = 1_000_000, 50_000, 3
VALUES = [round(0.16 + 0.01 * i, 2) for i in range(20)]
RULES: dict[str, dict] = {
    "where": {"where": "language = 'en' AND clip_score >= {}"},
    "where and top": {
        "where": "language = 'en' AND clip_score >= {}",
        "top": {"column": "quality", "fraction": 0.3},
    },
}


def main() -> None:
    with scratch() as folder:
        write_pool(folder)
        for name, rule in RULES.items():
            spent: dict[str, list[float]] = {"rerun": [], "sweep": []}
            for number in range(ROUNDS):
                state = run(folder, folder / f"run-{number}", rule, 0.25)
                begun = perf_counter()
                kept = [rows_kept(run(folder, state.run.path, rule, v)) for v in VALUES]
                spent["rerun"].append(perf_counter() - begun)
                begun = perf_counter()
                points = sweep(state, "subset", "clip_score=0.16:0.35:0.01").points
                spent["sweep"].append(perf_counter() - begun)
                assert [point.kept for point in points] == kept  # a fast wrong answer is none
                state.run.delete_folder("stages")
            ratio = sorted(a / b for a, b in zip(spent["rerun"], spent["sweep"], strict=True))
            print(
                f"{name:<14} rerun {median(spent['rerun']):6.1f} s"
                f"   sweep {median(spent['sweep']):5.2f} s"
                f"   {median(ratio):5.1f}x  ({ratio[0]:.1f} to {ratio[-1]:.1f})"
            )


def write_pool(folder: Path) -> None:
    """A million links on 2,000 hosts, half of the captions English."""
    random = np.random.default_rng(0)
    host = random.integers(0, 2000, ROWS)
    pool = pa.table(
        {
            "url": pa.array([f"https://site-{h}.test/{i}.jpg" for i, h in enumerate(host)]),
            "text": pa.array([f"caption {i}" for i in range(ROWS)]),
            "language": pa.array(np.array(["en", "de", "fr", "ja"])[host % 4 * (host % 2)]),
            "clip_score": random.normal(0.24, 0.05, ROWS).astype(np.float32),
            "quality": random.random(ROWS).astype(np.float32),
        }
    )
    pq.write_table(pool, folder / "pool.parquet")


def run(folder: Path, out: Path | str, rule: dict, value: float) -> RunState:
    stages = {
        "pool": {
            "uses": "ingest.url_list",
            "path": str(folder / "pool.parquet"),
            "extra": {"language": "string", "clip_score": "float32", "quality": "float32"},
            "shard_rows": SHARD_ROWS,
        },
        "subset": {
            "uses": "select.where",
            "from": "pool",
            **rule,
            "where": rule["where"].format(value),
        },
    }
    return run_toy(plan_of(stages), Path(out), workers=2)


def rows_kept(state: RunState) -> int:
    keep = stored(state, "pool", {"keep": ("subset", KEEP.name)})
    return sum(keep.table(i)["keep"].to_numpy().sum() for i in range(len(keep)))


if __name__ == "__main__":
    main()
