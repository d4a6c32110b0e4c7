"""Whole processes of `clipmill`: what a user waits for each time.

    python -m tests.benchmarks.startup [full | TREE]    TREE: another checkout, to stand beside it

`plan` types and binds the stages of `concepts` and a `where` (until November 2026 it did so of 16
stages). It stands beside an interpreter that imports the libraries it cannot do without, `--help`
beside one that imports nothing: the ratio is what is ours. `concepts` is a small MetaCLIP run in
two workers: 20,000 captions, so that nearly all of it is start-up. CPU seconds are those of an idle
machine, and those of the workers are in them; wall seconds are too where nobody else is at work.

Aim: less than 0.5 s each for --help and plan.
Measured (2026-11-26, EPYC, 2 cores shared, load 6; CPU time beside the commit before, which looked
for garbage at its end, and whose `plan` imported pandas and numba): --help 0.04 s, 0.85x; plan
0.45 s, 0.42x (0.37 to 0.46); concepts 2.5 s, 0.82x (0.70 to 0.92).
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.side_by_side import begin, rounds_of
from tests.benchmarks.toy import Spent, clipmill, scratch, spend

ROUNDS = 7
LIBRARIES = (
    "import msgspec, polars, pyarrow.compute, pyarrow.parquet, sqlglot.dialects.postgres, yaml"
)
CAPTIONS, ENTRIES = 20_000, 2_000
RECIPE = """
stages:
  pool:     {{uses: ingest.url_list, path: {folder}/pool.parquet}}
  matched:  {{uses: annotate.concepts, from: pool, concepts: {folder}/concepts.json}}
  balanced: {{uses: select.balance, from: matched, concepts: {folder}/concepts.json, t: 20}}
"""
WHERE = "  kept:     {{uses: select.where, from: [pool, balanced], where: text IS NOT NULL}}\n"


def main(tree: str = "") -> str:
    other = Path(tree).resolve() if tree else None
    with scratch() as folder:
        fill(folder)
        commands = {
            "--help": partial(clipmill, "--help"),
            "plan": partial(clipmill, "plan", str(folder / "planned.yaml")),
            "concepts": partial(concepts, folder),
        }
        rivals: dict[str, Callable[[], Spent]] = {
            "python": lambda: spend(sys.executable, "-c", "pass"),
            "libraries": lambda: spend(sys.executable, "-c", LIBRARIES),
            **commands,
        }
        pairs = [("--help", "python"), ("plan", "libraries")]
        if other:
            rivals |= {f"{name} there": partial(run, tree=other) for name, run in commands.items()}
            pairs = [(name, f"{name} there") for name in commands]
        least_s = compare(rivals, pairs)
    return f"--help {least_s['--help']:.2f} s, plan {least_s['plan']:.2f} s of CPU"


def compare(
    rivals: dict[str, Callable[[], Spent]], pairs: list[tuple[str, str]]
) -> dict[str, float]:
    """The least CPU seconds of each; prints what each takes, and the ratio of each pair."""
    for run in rivals.values():
        run()  # once for the bytecode, the compiled loops and the disk's cache
    spent: dict[str, list[Spent]] = {name: [] for name in rivals}
    for _ in range(rounds_of(ROUNDS)):
        for name, run in rivals.items():
            spent[name].append(run())
    for name, times in spent.items():
        wall_s = sorted(time.wall_s for time in times)
        cpu_s = sorted(time.cpu_s for time in times)
        print(
            f"{name:<15} wall {median(wall_s):.2f} s (least {wall_s[0]:.2f})"
            f"   CPU {median(cpu_s):.2f} s (least {cpu_s[0]:.2f})"
        )
    for mine, floor in pairs:
        ratio = sorted(a.cpu_s / b.cpu_s for a, b in zip(spent[mine], spent[floor], strict=True))
        print(
            f"{mine} takes {median(ratio):.2f}x ({ratio[0]:.2f} to {ratio[-1]:.2f})"
            f" the CPU time of {floor}"
        )
    return {name: min(time.cpu_s for time in times) for name, times in spent.items()}


def fill(folder: Path) -> None:
    """A pool of captions, a list of concepts, and the recipe that balances them."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(ENTRIES)])
    texts = [" ".join(row) for row in words[rng.integers(0, ENTRIES, (CAPTIONS, 8))]]
    urls = [f"http://a.test/{number}.png" for number in range(CAPTIONS)]
    pq.write_table(pa.table({"url": urls, "text": texts}), folder / "pool.parquet")
    (folder / "concepts.json").write_text(json.dumps(words.tolist()))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    (folder / "planned.yaml").write_text((RECIPE + WHERE).format(folder=folder))


def concepts(folder: Path, tree: Path | None = None) -> Spent:
    """A run of its own, in two workers."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    recipe = str(folder / "recipe.yaml")
    return clipmill("run", recipe, "--out", str(out), "--workers", "2", tree=tree)


if __name__ == "__main__":
    begin(main)
