"""Whole processes of `clipmill --help` and `clipmill plan`: what a user waits for each time.

    python -m tests.benchmarks.startup

`plan` types and binds the 16 stages of tests/every_stage.yaml, a `where` among them. It stands
beside an interpreter that imports the libraries it cannot do without, `--help` beside one that
imports nothing: the ratio is what is ours. CPU seconds are those of an idle machine; wall seconds
are too where nobody else is at work.

Aim: less than 0.5 s each.
Measured (2026-11-25, EPYC, 2 cores, load 1): --help 0.03 s of wall and CPU time; plan 0.39 s
of wall time (least 0.38), 0.50 s of CPU, 1.14x (1.01 to 1.22) the CPU time of its libraries.
Both aims met.
"""

import sys
from collections.abc import Callable
from statistics import median

from tests.benchmarks.toy import Spent, clipmill, spend

ROUNDS = 7
LIBRARIES = (
    "import msgspec, polars, pyarrow.compute, pyarrow.parquet, sqlglot.dialects.postgres, yaml"
)


def main() -> None:
    rivals: dict[str, Callable[[], Spent]] = {
        "python": lambda: spend(sys.executable, "-c", "pass"),
        "--help": lambda: clipmill("--help"),
        "libraries": lambda: spend(sys.executable, "-c", LIBRARIES),
        "plan": lambda: clipmill("plan", "tests/every_stage.yaml"),
    }
    for run in rivals.values():
        run()  # once for the bytecode and the disk's cache
    spent: dict[str, list[Spent]] = {name: [] for name in rivals}
    for _ in range(ROUNDS):
        for name, run in rivals.items():
            spent[name].append(run())
    for name, times in spent.items():
        wall_s = sorted(time.wall_s for time in times)
        cpu_s = sorted(time.cpu_s for time in times)
        print(
            f"{name:<10} wall {median(wall_s):.2f} s (least {wall_s[0]:.2f})"
            f"   CPU {median(cpu_s):.2f} s (least {cpu_s[0]:.2f})"
        )
    for mine, floor in (("--help", "python"), ("plan", "libraries")):
        ratio = sorted(a.cpu_s / b.cpu_s for a, b in zip(spent[mine], spent[floor], strict=True))
        print(
            f"{mine} takes {median(ratio):.2f}x ({ratio[0]:.2f} to {ratio[-1]:.2f})"
            f" the CPU time of {floor}"
        )


if __name__ == "__main__":
    main()
