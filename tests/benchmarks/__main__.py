"""Every benchmark in this folder, and a table: python -m tests.benchmarks [full | store] [NAME ...]

`full` takes the sizes that the documents' figures were taken at, which is hours. Ratios at quick
sizes are held to medians.yaml, the ones of this kind of machine: it fails where one fell by more
than its spread. `store` puts today's there.
"""

import ast
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import yaml

from clipmill.pipeline.run_folder import sessions
from tests.benchmarks.side_by_side import FULL, LACKS

HERE = Path(__file__).parent
HELPERS = {"__main__", "pools", "side_by_side", "test_cited", "toy"}
LIBRARIES = ("numpy", "pyarrow", "polars", "torch", "ray")
LIMIT_S, ALL_S = 180, 1800  # of a benchmark at its quick size, and of all
MEDIANS, STORE = HERE / "medians.yaml", "store"  # machine, benchmark, line: median, least, greatest
RATIO = re.compile(r"^ *(\S.*?)  .*?([\d.]+)x +\(([\d.]+) to ([\d.]+)\)", re.MULTILINE)
FINE = ("ok", "not run")


class Ran(NamedTuple):
    """One benchmark, as the table has it."""

    name: str
    claim: str
    headline: str
    seconds: float
    cpu_s: float
    outcome: str
    ratios: dict[str, list[float]]


def main() -> int:
    """Each benchmark in a process of its own: no one's memory or imports help another."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a benchmark that runs is ended
    words = sys.argv[1:]
    is_full, is_stored = words[:1] == [FULL], words[:1] == [STORE]
    begun, table = perf_counter(), []
    print(machine(), flush=True)
    for name in words[is_full or is_stored :] or names():
        print(f"\n{name}", flush=True)
        limit_s = min(LIMIT_S, max(1, ALL_S - (perf_counter() - begun)))
        table.append(ran(name, None if is_full else limit_s))
    print("\n| benchmark | compares | found | s | CPU s | |\n|---|---|---|---:|---:|---|")
    for one in table:
        spent = f"{one.seconds:.0f} | {one.cpu_s:.0f}"
        print(f"| {one.name} | {one.claim} | {one.headline} | {spent} | {one.outcome} |")
    print(
        f"\n{len(table)} benchmarks in {(perf_counter() - begun) / 60:.1f} min,"
        f" {cpu_seconds():.0f} CPU seconds, {machine()}"
    )
    failed = [one.name for one in table if one.outcome not in FINE]
    if failed:
        print(f"failed: {', '.join(failed)}")
    every = yaml.safe_load(MEDIANS.read_text()) or {}
    known = every.setdefault(", ".join(sessions.machine().split(", ")[:2]), {})
    found = {one.name: one.ratios for one in table if one.ratios and not is_full}
    falls = [] if is_stored else fallen(known, found)
    print(*falls, sep="\n")
    if is_stored:
        known |= found
        MEDIANS.write_text(yaml.safe_dump(every, default_flow_style=None))
    return bool(failed or falls)


def ratios_in(said: str) -> dict[str, list[float]]:
    """Median, least and greatest of each ratio that a benchmark printed, by how its line begins."""
    return {name: [float(value) for value in values] for name, *values in RATIO.findall(said)}


Ratios = Mapping[str, Mapping[str, Sequence[float]]]  # by benchmark and line


def fallen(known: Ratios, found: Ratios) -> list[str]:
    """Says each ratio that is below the stored one by more than a tenth and either's spread."""
    falls = []
    for name, ratios in found.items():
        for line, now in ratios.items():
            before = known.get(name, {}).get(line, now)
            spread = max(before[2] - before[1], now[2] - now[1], before[0] / 10)
            if before[0] - now[0] > spread:
                falls.append(f"fell: {name}, {line}: {before[0]:.2f}x to {now[0]:.2f}x")
    return falls


def names() -> list[str]:
    """Every benchmark."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in HELPERS)


def ran(name: str, limit_s: float | None) -> Ran:
    """Runs one, prints what it said, and ends what it left running."""
    source = ast.parse((HERE / f"{name}.py").read_text("utf-8"))
    claim, *_ = (ast.get_docstring(source) or "").splitlines()
    begun, begun_cpu = perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        out, err = Path(place, "out"), Path(place, "err")
        with out.open("w") as to, err.open("w") as also:
            child = subprocess.Popen(
                [sys.executable, "-m", f"tests.benchmarks.{name}", *[FULL] * (limit_s is None)],
                stdout=to,
                stderr=also,
                env=os.environ | {"TMPDIR": place},
                start_new_session=True,
            )
        try:
            code = child.wait(limit_s)
            outcome = {0: "ok", LACKS: "not run"}.get(code, "FAILED")
        except subprocess.TimeoutExpired:
            outcome = f"FAILED: over {limit_s:.0f} s"
        finally:
            end(child)
        said = out.read_text()
        print(said, "" if outcome in FINE else err.read_text(), sep="", end="", flush=True)
    headline = said.rpartition("=> ")[2].strip() if outcome in FINE else ""
    spent = perf_counter() - begun, cpu_seconds() - begun_cpu
    return Ran(name, claim, headline, *spent, outcome, ratios_in(said) if outcome == "ok" else {})


def cpu_seconds() -> float:
    """Of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def end(child: subprocess.Popen[bytes]) -> None:
    """Kills a benchmark and all that it started."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def machine() -> str:
    """Processor, cores, memory, and the versions that the figures belong to."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{sessions.machine()}, load {os.getloadavg()[0]:.1f}, {date.today()}\n"
        f"Python {platform.python_version()}, {libraries}"
    )


if __name__ == "__main__":
    sys.exit(main())
