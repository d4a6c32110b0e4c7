"""Small runs of the toy stages in this process: a recipe as text in, what is stored out."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clipmill.metadata.passes import read_stage
from clipmill.metadata.record import Record
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import Outcome, run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import RunState, latest
from tests import drawn
from tests.artefacts import linked
from tests.conftest import OWN_STAGES
from tests.engine_stages.harness import toy_stages, write_pool


@dataclass
class Ran:
    """What a run left: the state of every stage, by name."""

    outcome: Outcome
    folder: Path
    listed: dict[str, dict[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        stages = self.outcome.state.stages.items()
        self.listed = {
            name: {entry.name: entry.mtime_ns for entry in stage.folder.entries()}
            for name, stage in stages
        }

    @property
    def complete(self) -> bool:
        return self.outcome.complete

    def records(self, stage: str) -> dict[int, list[Record]]:
        return self.outcome.state.stages[stage].scan.records

    def error(self, stage: str) -> str:
        """Why the stage stopped."""
        return str(self.outcome.stopped[stage])

    def failures(self, stage: str) -> dict[int, Any]:
        """Its own failures, by shard."""
        failures = self.outcome.state.stages[stage].failures
        return {shard: failure for shard, failure in failures.items() if failure is not None}

    def column(self, stage: str, column: str, shard: int | None = None) -> list[Any]:
        """The stage's values in the pool's order, as its readers see them today."""
        state = self.outcome.state.stages[stage]
        part = self.outcome.state.stored[stage]
        shards = sorted(state.shards) if shard is None else [shard]
        return [
            value
            for number in shards
            for table in read_stage(
                part.folder, state.shards[number], ["uid", column], 5, part.mask_folder
            )
            for value in table[column].to_pylist()
        ]

    def written(self, stage: str) -> dict[str, int]:
        """Each object of the stage's folder and when it was written, at the end of the run."""
        return self.listed[stage]


@dataclass
class Engine:
    """Runs recipes over one pool of numbers, in run folders below one folder."""

    folder: Path
    pool: Path = field(init=False)

    def __post_init__(self) -> None:
        self.pool = write_pool(self.folder / "pool", [20, 0, 11])

    def plan(self, stages: str, *overrides: str, until: str | None = None) -> Plan:
        recipe = self.folder / "recipe.yaml"
        root = f"  numbers: {{uses: toy.numbers, path: {self.pool}, shard_rows: 12}}\n"
        recipe.write_text("stages:\n" + root + stages)
        return make_plan(load_recipe(str(recipe), overrides), until)

    def run(
        self,
        stages: str,
        *overrides: str,
        out: str = "run",
        workers: int = 0,
        retry: tuple[str, ...] = (),
        until: str | None = None,
        keep_going: bool = False,
        watcher: Lines | None = None,
        executor: LocalExecutor | None = None,
    ) -> Ran:
        """A run with workers of its own, else with those of an executor that stays open."""
        plan = self.plan(stages, *overrides, until=until)
        folder, more = Storage(str(self.folder / out)), (watcher or Lines(), retry, keep_going)
        if executor is not None:
            return Ran(run_plan(plan, folder, executor, *more), self.folder / out)
        with closing(LocalExecutor(workers, with_main=False)) as own:
            return Ran(run_plan(plan, folder, own, *more), self.folder / out)

    def copy(self, folder: Path) -> "Engine":
        """Its pool and its runs as they are now, in another folder."""
        other = Engine(folder)
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return other


@pytest.fixture
def engine(tmp_path) -> Iterator[Engine]:
    with toy_stages():
        yield Engine(tmp_path)


@pytest.fixture(scope="session")
def shared_run(artefacts) -> Callable[[str, str], RunState]:
    """The finished run of these stages of tests/drawn.py, under a name."""

    def run(name: str, stages: str) -> RunState:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(VARIABLE, str(OWN_STAGES / "stages"))
            return latest(str(artefacts(name, drawn.of(stages), OWN_STAGES) / "run"))

    return run


@pytest.fixture(scope="session")
def state(shared_run) -> RunState:
    """The finished run of tests/drawn.py."""
    return shared_run("drawn", drawn.STAGES)


@pytest.fixture(scope="session")
def captioned(shared_run) -> RunState:
    """A finished run that makes captions of the pool of tests/drawn.py, and chooses among them."""
    return shared_run("captioned", drawn.CAPTIONED)


@pytest.fixture(scope="session")
def clustered(shared_run) -> RunState:
    """A finished run that clusters the pool of tests/drawn.py, and selects by the clusters."""
    return shared_run("clustered", drawn.CLUSTERED)


@pytest.fixture(scope="session")
def numbered_state(numbered_run) -> RunState:
    """The finished run of tests/numbered.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(OWN_STAGES / "stages"))
        return latest(str(numbered_run / "run"))


@pytest.fixture
def numbered_copy(numbered_run, numbered_state, tmp_path) -> RunState:
    """The same, of which files may be deleted and written anew."""
    folder = linked(numbered_run, tmp_path / "numbered")
    return RunState(numbered_state.plan, Storage(str(folder / "run")))
