"""kill -9 on Ray: of a worker, whose item another one takes, and of the driver, which is run again.

A point is reached by whoever writes there: data and records by workers, steps, compactions and
manifests by the driver. Workers are killed at the first and the last of each kind, the driver in
the middle; the result is that of a local run which nothing disturbed.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.run_folder.sessions import sessions
from tests.engine_stages.harness import Ended, clipmill_run, meaning, write_pool
from tests.pipeline.engine.test_changed_files import flip

pytestmark = pytest.mark.chaos

BY_WORKERS = ("attempt", "write", "rename", "record", "digest", "journal", "copy")
BY_DRIVER = ("run", "recipe", "origin", "step", "index", "compaction", "manifest", "session")
REDONE = 4  # units at most: two workers, each with a chain of two


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pool"), [30, 0, 25])


@pytest.fixture(scope="module")
def undisturbed(recipe, pool, tmp_path_factory) -> tuple[Ended, dict]:
    """How a local run ends, and what is there then."""
    folder = tmp_path_factory.mktemp("undisturbed")
    more = ("--set", f"numbers.path={pool}")
    ended = clipmill_run(recipe, folder / "run", folder / "faults", *more, workers=2)
    assert ended.code == 0, ended.output
    return ended, meaning(Storage(str(folder / "run")))


@pytest.fixture
def on_ray(recipe, pool, ray_head, tmp_path):
    """Runs the recipe there."""

    def run(name: str, fault: str = "any:0") -> Ended:
        return clipmill_run(
            *(recipe, tmp_path / "run", tmp_path / name, "--set", f"numbers.path={pool}"),
            *ray_head.arguments,
            workers=2,
            fault=fault,
            scope="process",
            env=ray_head.environment,
        )

    return run


def test_every_kind_of_point_is_killed_here(undisturbed):
    whole, _ = undisturbed
    assert whole.kinds - {"lock", "lease"} == {*BY_WORKERS, *BY_DRIVER}


@pytest.mark.drawn(cases=2, cpu_s=15)
@pytest.mark.parametrize(
    ("kind", "part"),
    [*((kind, part) for kind in BY_WORKERS for part in (0, 2)), *((kind, 1) for kind in BY_DRIVER)],
)
def test_killed_at_a_point_on_ray_the_result_is_that_of_a_local_run(
    kind, part, on_ray, undisturbed, tmp_path
):
    whole, expected = undisturbed
    reached = sum(point.split()[0] == kind for point in whole.points)
    number = 1 + part * (reached - 1) // 2
    first = on_ray("first", f"{kind}:{number}")
    assert sum(point.split()[0] == kind for point in first.points) >= number, first.output
    units = first.units
    if first.killed:  # it was the driver's point
        again = on_ray("again")
        assert again.code == 0, again.output
        units += again.units
    else:
        assert kind in BY_WORKERS
        assert first.code == 0, first.output
    assert meaning(Storage(str(tmp_path / "run"))) == expected
    assert units <= whole.units + REDONE


@pytest.mark.drawn(one_in=3, cpu_s=20)
def test_damage_that_a_worker_on_ray_meets_is_mended_in_the_same_run(
    recipe, pool, on_ray, undisturbed, tmp_path
):
    more = ("--set", f"numbers.path={pool}")
    half = clipmill_run(recipe, tmp_path / "run", tmp_path / "half", *more, "--until", "shared")
    assert half.code == 0, half.output
    for path in (tmp_path / "run" / "stages").glob("*/000000-*.parquet"):
        flip(path)
    ended = on_ray("whole")
    assert ended.code == 0, ended.output
    assert ended.output.count("is damaged, and made again") == 2  # of numbers and of shared
    found = meaning(Storage(str(tmp_path / "run")))
    assert {**found, "recipes": None} == {**undisturbed[1], "recipes": None}


@pytest.mark.drawn(one_in=3, cpu_s=10)
def test_on_ray_too_a_stage_stops_whose_first_shards_fail_for_one_reason(ray_head, tmp_path):
    pool = write_pool(tmp_path / "pool", [60])
    script = tmp_path / "mood.json"
    script.write_text(json.dumps({"timeout": list(range(60))}))
    recipe = tmp_path / "it.yaml"
    recipe.write_text(
        f"stages:\n  numbers: {{uses: toy.numbers, path: {pool}, shard_rows: 12}}\n"
        f"  copy: {{uses: toy.moody, from: numbers, script: {script}}}\n"
    )
    said = "100% of the first 36 rows failed for one reason: timeout"
    for name, *more in (("first",), ("again",), ("on", "--keep-going")):
        place = (recipe, tmp_path / "run", tmp_path / name)
        on, env = (*ray_head.arguments, *more), ray_head.environment
        ended = clipmill_run(*place, *on, workers=2, env=env)
        assert ended.code == 1, ended.output
        assert (said in ended.output) == (not more)
    assert "0 of 60 rows kept by 'copy': copy: timeout took 60" in ended.output


@pytest.mark.drawn(one_in=3, cpu_s=15)
def test_workers_on_ray_leave_profiles_and_say_what_they_took(recipe, pool, ray_head, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    more = ("--set", f"numbers.path={pool}", "--until", "cube", "--log", str(log))
    place, on = (recipe, run, tmp_path / "faults"), (*ray_head.arguments, *more)
    ended = clipmill_run(*place, *on, "--profile", "shared", workers=2, env=ray_head.environment)
    assert ended.code == 0, ended.output
    assert list((run / "profiles" / "shared").glob("01-shuffle-*.speedscope.json"))
    (session,) = sessions(Storage(str(run)))
    spent = {folder.rpartition("-")[0]: spent for folder, spent in session.spent.items()}
    assert spent["stages/shared"].rows == 55
    assert 0 < spent["stages/square"].rows < 55  # but for each worker's first shard
    assert all(one.cpu_s > 0 for one in spent.values())
    stored = [json.loads(line) for line in log.read_text().splitlines()]
    shards = [
        line["shard"] for line in stored if (line["stage"], line["event"]) == ("cube", "shard")
    ]
    assert sorted(shards) == list(range(7))


@pytest.mark.drawn(one_in=3, cpu_s=15)
def test_two_runs_share_a_cluster(recipe, pool, ray_head, tmp_path, undisturbed):
    def run(name: str) -> Ended:
        return clipmill_run(
            *(
                recipe,
                tmp_path / name,
                tmp_path / f"{name}-faults",
                "--set",
                f"numbers.path={pool}",
            ),
            *ray_head.arguments,
            workers=2,
            env=ray_head.environment,
        )

    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(run, ("one", "other")))
    assert [found.code for found in ended] == [0, 0], [found.output for found in ended]
    for name in ("one", "other"):
        assert meaning(Storage(str(tmp_path / name))) == undisturbed[1]
