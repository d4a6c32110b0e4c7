"""kill -9 with real workers: of all at once, of one alone, of the driver alone, at any time."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from tests.engine_stages.harness import (
    clipmill_run,
    environment,
    meaning,
    points_of,
    run_arguments,
    write_pool,
)

pytestmark = pytest.mark.chaos  # but for what is drawn, and the hundred

WORKERS = 2
REDONE = WORKERS * 2  # units at most: each worker may hold a chain of two


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    """More shards than workers."""
    return write_pool(tmp_path_factory.mktemp("pool"), [30, 0, 25])


@pytest.fixture(scope="module")
def undisturbed(recipe, pool, tmp_path_factory):
    """How a run ends that nothing kills, what is there then, and the seconds it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    ended = clipmill_run(recipe, folder / "run", folder / "faults", *over(pool), workers=WORKERS)
    took_s = time.monotonic() - began
    assert ended.code == 0, ended.output
    return ended, meaning(Storage(str(folder / "run"))), took_s


def over(pool: Path) -> tuple[str, str]:
    return "--set", f"numbers.path={pool}"


@pytest.mark.drawn(cases=2)
@pytest.mark.parametrize("twelfth", range(12))
def test_all_killed_at_a_point_and_run_again_the_result_is_the_same(
    twelfth, recipe, pool, undisturbed, tmp_path
):
    whole, expected, _ = undisturbed
    number = 1 + twelfth * (len(whole.points) - 1) // 11
    more, out = over(pool), tmp_path / "run"
    killed = clipmill_run(
        recipe, out, tmp_path / "killed", *more, workers=WORKERS, fault=f"any:{number}"
    )
    assert killed.killed, killed.output
    again = clipmill_run(recipe, out, tmp_path / "again", *more, workers=WORKERS)
    assert again.code == 0, again.output
    assert meaning(Storage(str(out))) == expected
    assert killed.units + again.units <= whole.units + REDONE


@pytest.mark.drawn(cases=2)
@pytest.mark.parametrize(
    "fault", [f"{kind}:{n}" for kind in ("attempt", "rename", "record") for n in (2, 9, 16)]
)
def test_a_killed_worker_is_replaced_and_the_run_ends_well(
    fault, recipe, pool, undisturbed, tmp_path
):
    whole, expected, _ = undisturbed
    ended = clipmill_run(
        recipe,
        tmp_path / "run",
        tmp_path / "faults",
        *over(pool),
        workers=WORKERS,
        fault=fault,
        scope="process",
    )
    assert ended.code == 0, ended.output
    kind, _, number = fault.partition(":")
    assert sum(point.split()[0] == kind for point in ended.points) >= int(number)
    assert meaning(Storage(str(tmp_path / "run"))) == expected
    assert ended.units <= whole.units + 2


@pytest.mark.drawn
@pytest.mark.parametrize("part", range(4))
def test_a_run_whose_driver_alone_dies_is_gone_on_with_at_once(
    part, recipe, pool, undisturbed, tmp_path
):
    """Its workers die with it."""
    _, expected, took_s = undisturbed
    out = tmp_path / "run"
    process = begin(recipe, out, pool, tmp_path / "faults")
    wait(process, took_s * (part + 1) / 6)
    process.kill()
    process.wait()
    again = clipmill_run(recipe, out, tmp_path / "again", *over(pool), workers=WORKERS)
    assert again.code == 0, again.output
    assert meaning(Storage(str(out))) == expected


@pytest.mark.soak(cpu_s=40)
@pytest.mark.parametrize("part", range(4))
def test_a_hundred_random_kills_change_nothing(part, recipe, pool, undisturbed, tmp_path):
    """Twenty-five here: one folder is run and killed until it is done, and then the next."""
    _, expected, took_s = undisturbed
    chance = random.Random(part)
    kills, number, limit_s = 0, 0, took_s
    while kills < 25 or not number:
        out = tmp_path / str(number)
        process = begin(recipe, out, pool, tmp_path / f"faults-{number}")
        wait(process, chance.uniform(0.2, 1.0) * limit_s)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        # The machine may be busier or idler by now: kills come neither too late nor too soon.
        limit_s *= 1.1
        if process.wait() != -signal.SIGKILL:
            assert process.returncode == 0
            assert meaning(Storage(str(out))) == expected
            number, limit_s = number + 1, limit_s * 0.6
    clipmill_run(recipe, out, tmp_path / "last", *over(pool), workers=WORKERS)
    assert meaning(Storage(str(out))) == expected


def begin(recipe: Path, out: Path, pool: Path, faults: Path) -> "subprocess.Popen[bytes]":
    arguments = run_arguments(recipe, str(out), WORKERS, *over(pool))
    return subprocess.Popen(
        [sys.executable, "-m", "clipmill.pipeline.cli", *arguments],
        env=environment(faults, "any:0"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait(process: "subprocess.Popen[bytes]", limit_s: float) -> None:
    """Until it ends, or the time is over."""
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return


# What ends its worker every time


CRASH = """
stages:
  numbers: {{uses: toy.numbers, path: {pool}, shard_rows: 12}}
  square: {{uses: toy.power, from: numbers}}
  copy: {{uses: toy.moody, from: square, read: {{number: numbers.number}}, script: {script}}}
  other: {{uses: toy.shared, from: numbers}}
"""


@pytest.fixture
def crash(tmp_path, pool):
    """A recipe whose stage kills its worker at the number 13, while `mend` has not been called."""
    script = tmp_path / "mood.json"
    script.write_text(json.dumps({"kill": [13]}))
    recipe = tmp_path / "crash.yaml"
    recipe.write_text(CRASH.format(pool=pool, script=script))
    return recipe, lambda: script.write_text("{}"), script.with_suffix(".log")


ON_RAY = pytest.mark.drawn(one_in=3, cpu_s=30)


@pytest.mark.parametrize("workers", [1, 2, pytest.param("ray", marks=ON_RAY)])
def test_a_shard_that_always_ends_its_worker_is_set_aside_and_the_others_finish(
    workers, crash, tmp_path, request
):
    recipe, mend, log = crash
    out = tmp_path / "run"
    head = request.getfixturevalue("ray_head") if workers == "ray" else None
    on, env = (head.arguments, head.environment) if head else ((), {})

    def run(name: str, *more: str):
        log.unlink(missing_ok=True)
        count = 2 if head else workers
        return clipmill_run(recipe, out, tmp_path / name, *on, *more, workers=count, env=env)

    first = run("first")
    assert first.code == 1
    assert "stage 'copy', shard 1 ended its worker 3 times" in first.output
    assert "--retry crashed" in first.output
    assert log.read_text().split().count("13") <= 4  # once in its chain, three times alone
    [folder] = (out / "stages").glob("copy-*")
    assert sorted(file.name[:6] for file in folder.glob("00000*.parquet")) == [
        f"00000{shard}" for shard in (0, 2, 3, 4, 5, 6)
    ]
    assert len(list((out / "stages").glob("square-*/00000*.parquet"))) == 7
    assert list((out / "stages").glob("other-*/manifest.json"))

    mend()
    again = run("again")
    assert again.code == 1
    assert not log.exists()  # left alone

    last = run("last", "--retry", "crashed")
    assert last.code == 0, last.output
    assert set(map(int, log.read_text().split())) == set(range(12, 24))
    assert not list(out.glob("**/*.attempt"))
    assert not list(out.glob("**/*.failed.json"))


def test_a_unit_that_always_ends_its_worker_stops_its_stage(pool, tmp_path):
    cause = tmp_path / "cause"
    cause.touch()
    recipe = tmp_path / "crash.yaml"
    recipe.write_text(f"""
stages:
  numbers: {{uses: toy.numbers, path: {pool}, shard_rows: 12}}
  shared: {{uses: toy.shared, from: numbers, crash: {cause}}}
  square: {{uses: toy.power, from: numbers}}
""")
    out = tmp_path / "run"
    first = clipmill_run(recipe, out, tmp_path / "first", workers=2)
    assert first.code == 1
    assert "ended its worker 3 times" in first.output
    assert list((out / "stages").glob("square-*/manifest.json"))
    cause.unlink()
    assert clipmill_run(recipe, out, tmp_path / "again", "--retry", "crashed", workers=2).code == 0
    assert points_of(tmp_path / "again")
