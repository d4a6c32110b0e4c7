"""`clipmill bench` elsewhere, and killed at each of its own points: the same bytes and digits."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from tests.chaos.conftest import Nursery, nursery_of
from tests.engine_stages.harness import Ended, meaning
from tests.pipeline.bench.conftest import run_of, tasks_of

pytestmark = pytest.mark.soak

STAGES = Path(__file__).parent / "models.yaml"  # what is imported before the runs are forked
MODULES = (
    *("torch._dynamo", "pandas", "scipy.stats", "sympy", "cv2", "numba"),
    *(
        "clipmill.pipeline.bench.board",
        "clipmill.pipeline.report.leaderboard",
        "clipmill.pipeline.ledger.answer",
    ),
    *(
        "clipmill.stages.clip.training",
        "clipmill.stages.evaluate.leaks",
        "clipmill.stages.ops.images.perceptual",
    ),
)
SETS = ("batch_size=4", "samples_seen=12", "warmup_steps=1", "checkpoint_steps=1")
COST = ["seconds", "samples_per_s"]
# Where it is killed, in the order in which they are reached: each time it goes on from the last.
POINTS = {
    "exporting": ("write out/00000.parquet:1", "rename out/dataset.json:1"),
    "writing arms": (
        "write arms/long.parquet:1",
        "rename arms/long.parquet:1",
        "arm arms/long.json:1",
        "rename arms/random_of_*.parquet:1",
        "run run.json:1",
        "write bench.yaml:1",
        "bench bench.yaml:1",
        "bench bench.json:1",
    ),
    "decoding and comparing": ("rename found/*:1", "rename out/00000.pixels.npy:1"),
    "in a training": (
        "step */checkpoints/*:2",
        "rename */model.safetensors:1",
        "journal made.json:1",
    ),
    "in an evaluation": ("rename */discs.parquet:1", "rename out/results.json:1"),
    "writing the leaderboard": (
        "write leaderboard.parquet:1",
        "rename leaderboard.parquet:1",
        "write leaderboard.html:1",
    ),
}


@dataclass(frozen=True)
class Bench:
    """One command, over a run that is as before each time."""

    nursery: Nursery
    place: Path
    out: Path

    def begin(self) -> None:
        """The run without an export, and no bench."""
        shutil.rmtree(self.place / "run", ignore_errors=True)
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.place / "before", self.place / "run")

    def run(self, fault: str = "any:0") -> Ended:
        arms = (f"long={self.place}/run:long", "--tasks", str(self.place / "tasks"))
        sets = (word for one in SETS for word in ("--set", one))
        to = ("--out", str(self.out), "--seeds", "2", "--workers", "0")
        return self.nursery.ask("bench", *arms, *sets, *to, fault=fault)

    @property
    def found(self) -> dict:
        """Every object of both folders by its name; of the leaderboard, costs apart."""
        run, bench = (meaning(Storage(str(path))) for path in (self.place / "run", self.out))
        bench["leaderboard.parquet"] = scores(self.out)
        del bench["leaderboard.html"]  # it is there
        return bench | {f"run/{name}": value for name, value in run.items()}


def scores(out: Path) -> list[dict]:
    return pq.read_table(out / "leaderboard.parquet").drop_columns(COST).to_pylist()


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    place = tmp_path_factory.mktemp("benched")
    run_of(place).rename(place / "before")
    tasks_of(place / "tasks")
    with nursery_of(STAGES, tmp_path_factory.mktemp("nursery"), modules=MODULES) as nursery:
        yield Bench(nursery, place, place / "bench")


@pytest.fixture(scope="module")
def calm(bench):
    """What a bench leaves that nothing disturbs."""
    bench.begin()
    ended = bench.run()
    assert ended.code == 0, ended.output
    return bench.found


def test_killed_at_each_of_its_points_it_ends_at_the_same_bytes(bench, calm):
    bench.begin()
    for points in POINTS.values():
        for point in points:
            killed = bench.run(point)
            assert killed.killed, (point, killed.output)
    ended = bench.run()
    assert ended.code == 0, ended.output
    assert differing(bench.found, calm) == []


def test_the_same_bench_in_another_folder_has_the_same_digits(bench, calm, tmp_path):
    other = Bench(bench.nursery, bench.place, tmp_path / "other")
    ended = other.run()
    assert ended.code == 0, ended.output
    for name in ("leaderboard.parquet", "leaderboard.md"):
        assert other.found[name] == calm[name]


def differing(one: dict, other: dict) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
