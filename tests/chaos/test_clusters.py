"""K-means killed in any round, on a disk, on S3 and on Ray: the bytes of a calm run."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from tests.chaos.conftest import nursery_of
from tests.engine_stages.harness import clipmill_run, meaning

pytestmark = pytest.mark.chaos

RECIPE = Path(__file__).parent / "clusters.yaml"
MANY = Path(__file__).parent / "many_clusters.yaml"
ROWS, KILLS, ON_S3 = 100, 8, 3


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> str:
    """The setting that says where the recipe's rows lie."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    rows = {
        "uid": [f"{number:032x}" for number in range(ROWS)],
        "url": [f"https://test/{number}" for number in range(ROWS)],
        "text": [f"caption {number}" for number in range(ROWS)],
    }
    vector_ND = rng.standard_normal((12, 512))[rng.integers(0, 12, ROWS)]
    vector_ND += 0.5 * rng.standard_normal((ROWS, 512))
    vector_ND[7] = np.nan
    pq.write_table(pa.table(rows), folder / "0.parquet")
    np.savez(folder / "0.npz", b32_img=vector_ND.astype(np.float16))
    return f"pool.path={folder}"


@pytest.fixture(scope="module")
def runs(given, tmp_path_factory):
    with nursery_of(RECIPE, tmp_path_factory.mktemp("nursery"), given) as nursery:
        yield nursery


def points_of(whole, count: int) -> list[int]:
    """Numbers of points all along, and those that end a round."""
    steps = [n for n, point in enumerate(whole.points, 1) if point.split()[0] == "step"]
    spread = np.linspace(1, len(whole.points), count + 2, dtype=int)[1:-1].tolist()
    return sorted({*spread, *steps}) if count == KILLS else spread


def test_every_round_of_every_stage_that_finds_centres_is_killed_here(calm):
    whole, _ = calm
    steps = [point for point in whole.points if point.split()[0] == "step"]
    assert len(steps) == (3 + 3) + (5 + 2) + (5 + 2 + 2), "rounds, draws, and refinements"


@pytest.mark.soak(cpu_s=80)
def test_killed_in_any_round_and_run_again_the_result_is_the_same(runs, calm, tmp_path):
    whole, expected = calm
    for number in points_of(whole, KILLS):
        killed = runs.run(tmp_path / str(number), fault=f"any:{number}")
        assert killed.killed, killed.output
        again = runs.run(tmp_path / str(number))
        assert again.code == 0, again.output
        assert meaning(Storage(str(tmp_path / str(number)))) == expected, killed.points[-1]
        assert killed.units + again.units <= whole.units + 1


@pytest.mark.soak(cpu_s=30)
def test_killed_on_s3_objects_are_those_of_a_local_run(runs, calm, bucket):
    whole, expected = calm
    for number in points_of(whole, ON_S3):
        uri = bucket.uri(f"clusters-{number}")
        killed = runs.run(uri, fault=f"any:{number}")
        assert killed.killed, killed.output
        again = runs.run(uri)
        assert again.code == 0, again.output
        assert meaning(Storage(uri)) == expected, killed.points[-1]


@pytest.mark.drawn(one_in=3, cpu_s=40)
def test_killed_on_ray_files_are_those_of_a_local_run(given, calm, ray_head, tmp_path):
    """The driver is killed as a round ends, then a worker in the midst of one."""
    _, expected = calm
    more, env = ("--set", given, *ray_head.arguments), ray_head.environment
    for fault in ("step:6", "rename:20"):
        folder = tmp_path / fault.replace(":", "-")
        place = (RECIPE, folder / "run")
        first = clipmill_run(
            *place, folder / "first", *more, workers=2, fault=fault, scope="process", env=env
        )
        if first.killed:
            again = clipmill_run(*place, folder / "again", *more, workers=2, env=env)
            assert again.code == 0, again.output
        else:
            assert first.code == 0, first.output
        assert meaning(Storage(str(folder / "run"))) == expected


@pytest.fixture(scope="module")
def many(given, tmp_path_factory):
    """Runs whose sums are merged by units, and how one ends that nothing disturbs."""
    folder = tmp_path_factory.mktemp("many")
    with nursery_of(MANY, folder, given) as nursery:
        ended = nursery.run(folder / "calm")
        assert ended.code == 0, ended.output
        yield nursery, ended, meaning(Storage(str(folder / "calm")))


@pytest.mark.drawn(cpu_s=15)
@pytest.mark.parametrize(
    "fault",
    [
        "rename calls-*.0001.01-reduce.data/*:9",  # the sums of a unit
        "rename calls-*.0001.01-reduce.1.data/*:1",  # 16 of them in one, the second group is left
        "journal calls-*.0001.01-reduce.1.json:1",  # both, with the root left to the driver
        "journal calls-*.0001.01-reduce.npz:1",
    ],
)
def test_killed_while_sums_are_merged_the_result_is_the_same(fault, many, tmp_path):
    nursery, whole, expected = many
    killed = nursery.run(tmp_path, fault=fault)
    assert killed.killed, killed.output
    again = nursery.run(tmp_path)
    assert again.code == 0, again.output
    assert meaning(Storage(str(tmp_path))) == expected
    assert killed.units + again.units <= whole.units + 1


def test_a_worker_killed_while_it_merges_sums_is_another_ones_unit(given, many, tmp_path):
    fault = "rename calls-*.1.data/*:3"
    ended = clipmill_run(
        MANY, tmp_path / "run", tmp_path / "faults", "--set", given,
        fault=fault, scope="process", workers=2,
    )  # fmt: skip
    assert ended.code == 0, ended.output
    merging = [point for point in ended.points if ".1.data/" in point and "rename" in point]
    assert len(merging) > len([p for p in many[1].points if ".1.data/" in p and "rename" in p])
    assert meaning(Storage(str(tmp_path / "run"))) == many[2]
