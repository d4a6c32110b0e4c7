"""Runs of toy stages, for benchmarks of the engine: cheap work, so that what is left is engine."""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.run_folder.live import Watcher
from clipmill.pipeline.run_folder.state import RunState

OWN_STAGES = Path(__file__).parent / "own_stages"
os.environ[VARIABLE] = str(OWN_STAGES / "stages")  # workers inherit it


class Storing(Watcher):
    """Sees how much the journals in a folder hold at most, at the end of a call."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most_bytes = folder, 0

    def unit(self, name, call, done, total):
        if done == total:
            files = [path for path in self.folder.rglob("calls*/**/*") if path.is_file()]
            self.most_bytes = max(self.most_bytes, sum(path.stat().st_size for path in files))


def plan_of(stages: Mapping[str, dict[str, Any]]) -> Plan:
    """The plan of a recipe that stands in the code."""
    return make_plan(Recipe(name="toy", path="toy.yaml", seed=0, stages=dict(stages)))


def run_toy(plan: Plan, folder: Path, workers: int, watcher: Watcher | None = None) -> RunState:
    """The finished run."""
    executor = LocalExecutor(workers)
    try:
        outcome = run_plan(plan, Storage(str(folder)), executor, watcher or Watcher())
    finally:
        executor.close()
    assert outcome.complete, outcome.stopped
    return outcome.state


def measured(pool: dict[str, Any], stage: dict[str, Any], folder: Path) -> tuple[Storage, Any]:
    """The folder of a stage that has run over a pool, in this process; its seconds, and the peak.

    The pool is made by `fill`, in another process, or its memory would count.
    """
    run_toy(plan_of({"pool": pool}), folder, workers=0)  # it is there: this loads the engine
    plan = plan_of({"pool": pool, "near": {"from": "pool", **stage}})
    watcher = Storing(folder / "stages")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, cpu = time.perf_counter(), time.process_time()
    state = run_toy(plan, folder, workers=0, watcher=watcher)
    said = {"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said |= {"peak_mb": peak / 1024, "grown_mb": (peak - before) / 1024}
    said |= {"journal_mb": watcher.most_bytes / 2**20}
    return state.stages["near"].folder, said


def grown(name: str, pools: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What `NAME measure` says of each pool; printed."""
    every = []
    for pool, stage in pools.items():
        with scratch() as folder:
            fill(stage, folder)
            said = module(name, "measure", pool, folder)
        print(*(f"{key} {value:,.6g}  " for key, value in said.items()), flush=True)
        every.append(said)
    return every


def fill(pool: dict[str, Any], folder: Path) -> None:
    """Makes a pool for `measured`."""
    run_toy(plan_of({"pool": pool}), folder, workers=2)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one benchmark, gone after it."""
    with tempfile.TemporaryDirectory(prefix="clipmill-benchmark-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Spent:
    """What one child process took."""

    wall_s: float
    cpu_s: float  # its children's too, once it has waited for them
    peak_mb: float  # of the greatest of them
    out: str


def spend(*arguments: str) -> Spent:
    """Runs a whole process that sees the toy stages, and fails if it does."""
    path = os.pathsep.join((str(OWN_STAGES), os.getcwd()))
    environment = os.environ | {"PYTHONPATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its bytecode
    begun = time.perf_counter()
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment, text=True)
    assert child.stdout is not None
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{arguments} ended with {child.returncode}: {out}")
    return Spent(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out)


def clipmill(*arguments: str) -> Spent:
    """One command of the CLI as a process of its own."""
    return spend(sys.executable, "-m", "clipmill.pipeline.cli", *arguments)


def peak_mb(pid: int | str = "self") -> float:
    """Returns the most memory that a process ever held; getrusage begins with its parent's."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(line) / 1024


def module(name: str, *arguments: object) -> Any:
    """What `python -m name …` prints last, as JSON."""
    out = spend(sys.executable, "-m", name, *map(str, arguments)).out
    return json.loads(out.splitlines()[-1])
