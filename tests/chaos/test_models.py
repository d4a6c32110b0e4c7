"""Exports, trainings and evaluations killed on the way: the files of a calm run."""

import re
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.pools.evaluation import EvaluationSet, write_set
from tests.chaos.conftest import nursery_of
from tests.engine_stages.harness import meaning
from tests.stages.clip.exported import COLOURS, row

pytestmark = pytest.mark.chaos

RECIPE = Path(__file__).parent / "models.yaml"
ROWS, KILLS = 50, 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs over pictures of four colours, and a task that tells them apart."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "pool").mkdir()
    for i in range(ROWS):
        (folder / "pool" / f"{i:02d}.png").write_bytes(row(i)["image"])
        (folder / "pool" / f"{i:02d}.txt").write_text(row(i)["texts"][0]["text"])
    images = {f"{i}": row(i)["image"] for i in range(12)}
    classes = {key: int(key) % len(COLOURS) for key in images}
    write_set(EvaluationSet("colours", images, classes, list(COLOURS)), folder / "tasks")
    given = (f"pool.path={folder / 'pool'}", f"results.tasks={folder / 'tasks'}")
    with nursery_of(RECIPE, tmp_path_factory.mktemp("nursery"), *given, modules=("torch",)) as made:
        yield made


@pytest.mark.drawn(cases=1, cpu_s=15)
@pytest.mark.parametrize("part", range(KILLS))
def test_killed_on_the_way_and_run_again_the_files_are_the_same(part, runs, calm, tmp_path):
    whole, expected = calm
    files = [n for n, point in enumerate(whole.points, 1) if re.search("out|cache|step", point)]
    number = files[part * (len(files) - 1) // (KILLS - 1)]
    killed = runs.run(tmp_path / "run", fault=f"any:{number}")
    assert killed.killed, killed.output
    again = runs.run(tmp_path / "run")
    assert again.code == 0, again.output
    assert meaning(Storage(str(tmp_path / "run"))) == expected, killed.points[-1]
    assert killed.units + again.units <= whole.units + 2
