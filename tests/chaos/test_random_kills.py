"""500 kills at random times, again and again until it is done: of exports, trainings, captions
within a budget, and variants that are deleted and made again. There is then what a calm run leaves.

A kill hits all processes, the driver alone or a worker, as SEED= draws. Each test is a chain of
them, so short that SHARE= cuts them, and that none is too long for a busy machine.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.verify import verify
from clipmill.pipeline.pools.evaluation import EvaluationSet, write_set
from tests.chaos.asked import begin, served, shards_of, started
from tests.chaos.test_budget import STEP, Lives
from tests.engine_stages.harness import meaning
from tests.pipeline.engine.test_stop import members
from tests.stages.clip.exported import COLOURS, row

pytestmark = pytest.mark.chaos
EXPORTS = """
stages:
  pool:        {uses: ingest.image_folder, path: GIVEN/pool, shard_rows: 12}
  chosen:      {uses: select.where, from: pool, where: text IS NOT NULL}
  parquet:     {uses: export.parquet, from: chosen, rows_per_shard: 8}
  webdataset:  {uses: export.webdataset, from: chosen, rows_per_shard: 8}
  huggingface: {uses: export.huggingface, from: chosen, rows_per_shard: 8}
"""
TRAINING = """
stages:
  pool:    {uses: ingest.image_folder, path: GIVEN/pool, shard_rows: 24}
  shards:  {uses: export.parquet, from: pool, rows_per_shard: 16}
  clip:
    {uses: train.clip, data: shards, batch_size: 8, samples_seen: 128, warmup_steps: 1,
     checkpoint_steps: 2}
  results: {uses: evaluate.zero_shot, model: "stage:clip", tasks: GIVEN/tasks}
"""
VARIANT = ("--set", "chosen.where=text LIKE '%red%'")
DELETE = """
import random, sys, time
from pathlib import Path
files = [it for name in sys.argv[2:] for it in sorted(Path(name).rglob("*")) if it.is_file()]
random.Random(sys.argv[1]).shuffle(files)
for file in files:
    file.unlink()
    time.sleep(0.4 / len(files))
"""


@dataclass
class Killer:
    """Kills a process whose work takes about `limit_s`, and the next, till `most` are done."""

    most: int
    chance: random.Random
    limit_s: float
    kills: Counter[str] = field(default_factory=Counter)  # by whom they hit

    def __call__(self, process: "subprocess.Popen[bytes]", run: Path | None = None) -> int:
        """The code that it ended with: it may be killed, and up to two workers of it before.

        It works from when it holds the lock of the run, where one is named.
        """
        began_ns = time.time_ns()
        while run and process.poll() is None and changed_ns(run / "lock.json") < began_ns:
            time.sleep(0.02)
        whom = [*self.chance.choices(["all", "driver", "worker"], k=2), "all"]
        while self.kills.total() < self.most and whom:
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.chance.uniform(0.1, 1) * self.limit_s)
                break
            self._hit(process, whom.pop(0))
        code = process.wait()
        self.limit_s *= 1.1 if code == -signal.SIGKILL else 0.6  # as busy as the machine is
        return code

    def _hit(self, process: "subprocess.Popen[bytes]", whom: str) -> None:
        workers = [pid for pid in members(process.pid) if pid != process.pid]
        if whom == "worker" and workers:
            with suppress(ProcessLookupError):  # it has ended by now
                os.kill(self.chance.choice(workers), signal.SIGKILL)
                self.kills[whom] += 1
            return
        whom = "driver" if whom == "driver" else "all"
        (os.kill if whom == "driver" else os.killpg)(process.pid, signal.SIGKILL)
        self.kills[whom] += process.wait() == -signal.SIGKILL


def changed_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.fixture
def chain(request, seed, record_property) -> Callable[..., None]:
    """Lives, each of which ends or is killed, until so many kills are done and the last ended."""

    def chain(most: int, limit_s: float, live: Callable[[Killer], bool]) -> None:
        killer = Killer(most, random.Random(f"{seed} {request.node.name}"), limit_s)
        is_done = False
        while killer.kills.total() < most or not is_done:
            is_done = live(killer)
        record_property("tries", killer.kills.total())
        print(dict(killer.kills))

    return chain


@dataclass(frozen=True)
class Given:
    """A folder of a pool, a task and recipes over them, and what is said by what runs."""

    folder: Path

    def run(self, recipe: str, out: Path, *more: str) -> "subprocess.Popen[bytes]":
        return begin(self.folder / recipe, str(out), self.folder, *more)

    def is_done(self, code: int) -> bool:
        """Whether the last of them ended well; else it was killed."""
        assert code in (0, -signal.SIGKILL), (self.folder / "output.txt").read_text()
        return code == 0

    def calm(self, recipe: str, out: Path, *more: str) -> dict[str, Any]:
        """What is there after a run that nothing kills."""
        assert self.is_done(self.run(recipe, out, *more).wait())
        return meaning(Storage(str(out)))


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Given:
    """Pictures of four colours, and a task that tells them apart."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "pool").mkdir()
    for i in range(48):
        (folder / "pool" / f"{i:02d}.png").write_bytes(row(i)["image"])
        (folder / "pool" / f"{i:02d}.txt").write_text(row(i)["texts"][0]["text"])
    images = {f"{i}": row(i)["image"] for i in range(12)}
    classes = {key: int(key) % len(COLOURS) for key in images}
    write_set(EvaluationSet("colours", images, classes, list(COLOURS)), folder / "tasks")
    (folder / "exports.yaml").write_text(EXPORTS.replace("GIVEN", str(folder)))
    (folder / "training.yaml").write_text(TRAINING.replace("GIVEN", str(folder)))
    return Given(folder)


def life_of(recipe: str, given: Given, folder: Path) -> Callable[[Killer], bool]:
    """One life of a run in a folder, which is as a calm one leaves it and goes when it is done."""
    expected = given.calm(recipe, folder / "calm")
    run = folder / "run"

    def live(killer: Killer) -> bool:
        if not given.is_done(killer(given.run(recipe, run), run)):
            return False
        assert meaning(Storage(str(run))) == expected
        shutil.rmtree(run)
        return True

    return live


@pytest.mark.soak(cpu_s=35)
@pytest.mark.parametrize("part", range(9))
def test_exports_are_killed_90_times(part, given, chain, tmp_path):
    chain(10, 3.0, life_of("exports.yaml", given, tmp_path))


@pytest.mark.soak(cpu_s=50)
@pytest.mark.parametrize("part", range(6))
def test_trainings_and_evaluations_are_killed_36_times(part, given, chain, tmp_path):
    chain(6, 12.0, life_of("training.yaml", given, tmp_path))


@pytest.mark.soak(cpu_s=35)
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("to", ["parquet", "webdataset", "huggingface"])
def test_exports_by_command_are_killed_90_times(to, part, given, chain, tmp_path):
    run, out, calm = (tmp_path / name for name in ("run", "out", "calm"))
    given.calm("exports.yaml", calm)
    command = ("export", "--to", to, "--workers", "2", "--run", str(run), "--out", str(out))

    def export(kill: Callable[..., int]) -> dict[str, Any]:
        """What is there when it is done; nothing where it was killed."""
        if not run.exists():
            shutil.copytree(calm, run)
        if not given.is_done(kill(started(given.folder, *command), run)):
            return {}
        found = {folder.name: meaning(Storage(str(folder))) for folder in (run, out)}
        shutil.rmtree(run)
        shutil.rmtree(out)
        return found

    expected = export(lambda process, run: process.wait())

    def live(killer: Killer) -> bool:
        found = export(killer)
        assert found in ({}, expected)
        return bool(found)

    chain(10, 2.0, live)


@pytest.mark.soak(cpu_s=60)
@pytest.mark.parametrize("part", range(10))
def test_captions_within_a_budget_are_killed_100_times(part, chain, tmp_path):
    """Their answers and books are looked at after each."""
    with served(latency_s=0.1) as server:
        lives = Lives(server, tmp_path, cap=100 * STEP)
        calm = lives.run
        lives.live()

        def live(killer: Killer) -> bool:
            run = lives.run
            lives.live(killer.chance.randint(1, 15), killer)
            if lives.run == run:
                return False
            assert shards_of(run) == shards_of(calm)
            return True

        chain(10, 0.8, live)
        assert lives.ends[1] > 0  # it was spent


@pytest.mark.soak(cpu_s=45)
@pytest.mark.parametrize("part", range(8))
def test_variants_that_are_deleted_and_made_again_are_killed_184_times(
    part, given, chain, tmp_path
):
    """File by file, in any order; what other variants hold stays as it is."""
    stays, both, run = (tmp_path / name for name in ("stays", "both", "run"))
    staying = stages_in(given.calm("exports.yaml", stays))
    shutil.copytree(stays, both)
    expected = stages_in(given.calm("exports.yaml", both, *VARIANT))
    own = {name.split("/")[1] for name in expected} - {name.split("/")[1] for name in staying}
    assert len(own) == 4
    midway, delete = 0, False

    def live(killer: Killer) -> bool:
        nonlocal midway, delete
        if not run.exists():
            shutil.copytree(both, run)
        delete = not delete or killer.chance.random() < 0.3
        if delete:
            command = [sys.executable, "-S", "-c", DELETE, str(killer.chance.random())]
            folders = [str(run / "stages" / name) for name in sorted(own)]
            process = subprocess.Popen([*command, *folders], start_new_session=True)
            is_done = given.is_done(replace(killer, limit_s=0.4)(process))
            midway += not is_done
        else:
            is_done = given.is_done(killer(given.run("exports.yaml", run, *VARIANT), run))
        found = stages_in(meaning(Storage(str(run))))
        assert {name: it for name, it in found.items() if name in staying} == staying
        checked = verify(Storage(str(run)), lambda done, total: None)
        assert {Path(it.folder).name for it in checked if it.damaged} <= own
        if delete or not is_done:
            return False
        assert found == expected
        assert not [it for it in checked if it.damaged]
        shutil.rmtree(run)
        return True

    chain(23, 2.5, live)
    assert midway > 2  # of the kills


def stages_in(found: dict[str, Any]) -> dict[str, Any]:
    return {name: it for name, it in found.items() if name.startswith("stages/")}
