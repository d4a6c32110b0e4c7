"""`sweep` of many thresholds, against selecting as many times: the same verdicts.

    python -m tests.benchmarks.sweep [full | ROWS ...]    5 over 100,000; full: 20 over a million

The pool is a link list with a language and a score a row; `rerun` is what a user does without
`sweep`: the recipe run as often in one folder, with another threshold each, where only the select
stage has work to do. With `top`, the cut depends on which rows pass, and is found anew each time.

Aim: seconds, and at least ten times as fast.
"""

from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.schema import KEEP
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.ledger.selection.sweep import sweep
from clipmill.pipeline.run_folder.state import RunState
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import plan_of, run_toy, scratch

SHARD_ROWS, ROUNDS = 50_000, 3
VALUES = [round(0.16 + 0.01 * i, 2) for i in range(20)]
RULES: dict[str, dict] = {
    "where": {"where": "language = 'en' AND clip_score >= {}"},
    "where and top": {
        "where": "language = 'en' AND clip_score >= {}",
        "top": {"column": "quality", "fraction": 0.3},
    },
}


def main(*sizes: int) -> str:
    return "; ".join(compare(rows) for rows in sizes)


def compare(rows: int) -> str:
    step, found = 1 if rows >= 1_000_000 else 4, []
    rounds = ROUNDS if step == 1 else 1
    values = VALUES[::step]
    with scratch() as folder:
        write_pool(folder, rows)
        for name, rule in RULES.items():
            spent: dict[str, list[float]] = {"rerun": [], "sweep": []}
            for number in range(rounds):
                state = run(folder, folder / f"{name}-{number}", rule, 0.25)
                begun = perf_counter()
                kept = [rows_kept(run(folder, state.run.path, rule, v)) for v in values]
                spent["rerun"].append(perf_counter() - begun)
                begun = perf_counter()
                points = sweep(state, "subset", f"clip_score=0.16:0.35:{step / 100}").points
                spent["sweep"].append(perf_counter() - begun)
                assert [point.kept for point in points] == kept  # a fast wrong answer is none
            ratio = sorted(a / b for a, b in zip(spent["rerun"], spent["sweep"], strict=True))
            found.append(f"{name} {median(ratio):.0f}x")
            print(
                f"{name:<14} rerun {median(spent['rerun']):6.1f} s"
                f"   sweep {median(spent['sweep']):5.2f} s"
                f"   {median(ratio):5.1f}x  ({ratio[0]:.1f} to {ratio[-1]:.1f})"
            )
    return f"{', '.join(found)} {len(values)} runs of {rows:,} rows"


def write_pool(folder: Path, rows: int) -> None:
    """Links on 2,000 hosts, half of the captions English."""
    random = np.random.default_rng(0)
    host = random.integers(0, 2000, rows)
    pool = pa.table(
        {
            "url": pa.array([f"https://site-{h}.test/{i}.jpg" for i, h in enumerate(host)]),
            "text": pa.array([f"caption {i}" for i in range(rows)]),
            "language": pa.array(np.array(["en", "de", "fr", "ja"])[host % 4 * (host % 2)]),
            "clip_score": random.normal(0.24, 0.05, rows).astype(np.float32),
            "quality": random.random(rows).astype(np.float32),
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
    begin(main, quick=(100_000,), full=(1_000_000,))
