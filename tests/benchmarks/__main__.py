"""Every benchmark in this folder, and a table: python -m tests.benchmarks [full] [NAME ...]

`full` takes the sizes that the documents' figures were taken at, which is hours.
"""

import ast
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from clipmill.pipeline.run_folder import sessions
from tests.benchmarks.side_by_side import FULL, LACKS

HERE = Path(__file__).parent
HELPERS = {"__main__", "pools", "side_by_side", "test_cited", "toy"}
LIBRARIES = ("numpy", "pyarrow", "polars", "torch", "ray")
LIMIT_S = 180  # of a benchmark at its quick size
FINE = ("ok", "not run")


class Ran(NamedTuple):
    """One benchmark, as the table has it."""

    name: str
    claim: str
    headline: str
    seconds: float
    cpu_s: float
    outcome: str


def main() -> int:
    """Each benchmark in a process of its own: no one's memory or imports help another."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a benchmark that runs is ended
    words = sys.argv[1:]
    is_full = words[:1] == [FULL]
    begun, table = perf_counter(), []
    print(machine(), flush=True)
    for name in words[is_full:] or names():
        print(f"\n{name}", flush=True)
        table.append(ran(name, is_full))
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
    return bool(failed)


def names() -> list[str]:
    """Every benchmark."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in HELPERS)


def ran(name: str, is_full: bool) -> Ran:
    """Runs one, prints what it said, and ends what it left running."""
    source = ast.parse((HERE / f"{name}.py").read_text("utf-8"))
    claim, *_ = (ast.get_docstring(source) or "").splitlines()
    begun, begun_cpu = perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        out, err = Path(place, "out"), Path(place, "err")
        with out.open("w") as to, err.open("w") as also:
            child = subprocess.Popen(
                [sys.executable, "-m", f"tests.benchmarks.{name}", *[FULL] * is_full],
                stdout=to,
                stderr=also,
                env=os.environ | {"TMPDIR": place},
                start_new_session=True,
            )
        try:
            code = child.wait(None if is_full else LIMIT_S)
            outcome = {0: "ok", LACKS: "not run"}.get(code, "FAILED")
        except subprocess.TimeoutExpired:
            outcome = f"FAILED: over {LIMIT_S} s"
        finally:
            end(child)
        said = out.read_text()
        print(said, "" if outcome in FINE else err.read_text(), sep="", end="", flush=True)
    headline = said.rpartition("=> ")[2].strip() if outcome in FINE else ""
    spent = perf_counter() - begun, cpu_seconds() - begun_cpu
    return Ran(name, claim, headline, *spent, outcome)


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
