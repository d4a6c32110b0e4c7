"""Shards of ten rows on Ray, end to end: what each costs its driver; and `submit` to the first.

    python -m tests.benchmarks.tiny_shards [full | SHARDS ...]    500, 2,000; full: to 100,000

`clipmill run --executor ray --workers 2` of a pool and one row stage of arithmetic, in a process of
its own: CPU and peak memory are the driver's, seconds by the clock are the run's, with the start of
its Ray. Then `clipmill submit` to a head with two CPUs: seconds until the first shard is stored.
"""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from clipmill.metadata.storage import Storage
from clipmill.pipeline.run_folder.state import latest
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import OWN_STAGES, clipmill, scratch
from tests.chaos.test_submit import TOKEN, ray_folder, started_head

RECIPE = """
stages:
  pool:   {{uses: toy.codes, shards: {shards}, shard_rows: 10}}
  asleep: {{uses: toy.asleep, from: pool, seconds: 0, log: {log}}}
"""


def main(*sizes: int) -> str:
    found = []
    for shards in sizes:
        with scratch() as folder:
            recipe = write(folder, shards)
            run = ["run", str(recipe), "--out", str(folder / "run")]
            spent = clipmill(*run, "--executor", "ray", "--workers", "2")
            state = latest(str(folder / "run"))
            assert {len(stage.shards) for stage in state.stages.values()} == {shards}
            assert all(stage.complete for stage in state.stages.values())
            again = clipmill(*run)
        each = spent.cpu_s / shards / 2 * 1e3
        found.append(f"{shards:,}: {each:.2f} ms, {spent.peak_mb:.0f} MB")
        print(
            f"{shards:>7,} shards of two stages: {spent.wall_s:7.1f} s by the clock, driver"
            f" {spent.cpu_s:6.1f} CPU s, {each:.2f} ms a shard and stage, {spent.peak_mb:.0f} MB;"
            f" again {again.cpu_s:.1f} CPU s",
            flush=True,
        )
    first_s = submitted()
    print(f"submit to the first shard stored: {first_s:.1f} s")
    return f"driver's CPU a shard and stage: {'; '.join(found)}; submit to first {first_s:.1f} s"


def submitted() -> float:
    """Returns the seconds from `clipmill submit` to the first stored shard of a row stage."""
    with scratch() as folder, ray_folder() as place, ExitStack() as stack:
        head = started_head(stack, place, 0, 2)
        recipe, out = write(folder, 20), folder / "run"
        begun = time.perf_counter()
        command = ["-m", "clipmill.pipeline.cli", "submit", str(recipe), "--out", str(out)]
        job = subprocess.Popen(
            [
                sys.executable,
                *command,
                "--address",
                head.address,
                "--stages",
                str(OWN_STAGES / "stages"),
            ],
            env={**os.environ, "RAY_AUTH_TOKEN": TOKEN},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not list(out.glob("stages/asleep-*/0*.json")):
            assert job.poll() in (None, 0), "the job failed"
            time.sleep(0.05)
        first_s = time.perf_counter() - begun
        assert job.wait(120) == 0
        assert Storage(str(out)).child("stages").folders()
    return first_s


def write(folder: Path, shards: int) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(shards=shards, log=folder / "log"), "utf-8")
    return recipe


if __name__ == "__main__":
    begin(main, quick=(500, 2_000), full=(1_000, 10_000, 100_000))
