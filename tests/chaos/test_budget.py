"""A budget by the server's own count, with three workers that are killed near its end: the server
never gives more, the books never say less, and no stored answer is asked for again."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.budget import FOLDER, spent_in
from tests.chaos.asked import Server, begin, served, shards_of, stored_in, write_recipe
from tests.engine_stages.harness import environment

pytestmark = pytest.mark.chaos
RECIPE = """
stages:
  pool: {uses: ingest.webdataset, path: TARS}
  made:
    {uses: caption.rewrite, from: pool, model: "MODEL", styles: [human, bard],
     limits: {concurrency: 8}}
"""
STEP = 9_000  # tokens that a budget grows by once it is spent: an answer may take about 600
SPENT = re.compile(r"is spent: ([\d,.]+) of ([\d,]+) tokens; another answer may take ([\d,.]+)")


@pytest.fixture
def server() -> Iterator[Server]:
    with served(latency_s=0.1) as one:
        yield one


@dataclass
class Lives:
    """Runs in one folder until it is done, then in the next: each ends by itself or is killed."""

    server: Server
    folder: Path
    number: int = 0
    cap: int = STEP
    kills: int = 0
    ends: Counter[int] = field(default_factory=Counter)  # by exit code, of those that were not
    before: tuple[Counter[str], int] = (Counter(), 0)  # what this folder did not ask for

    def __post_init__(self) -> None:
        self.recipe = write_recipe(self.folder, self.server.model)
        text = RECIPE.replace("TARS", str(self.folder / "tars"))
        self.recipe.write_text(text.replace("MODEL", self.server.model))

    @property
    def run(self) -> str:
        return str(self.folder / f"run{self.number}")

    @property
    def given(self) -> int:
        """Tokens that the server gave this folder, once no request is under way."""
        while self.server.busy():
            time.sleep(0.02)
        return self.server.tokens() - self.before[1]

    @property
    def books(self) -> float:
        folders = list(Path(self.run).glob("stages/made-*"))
        return spent_in(Storage(str(folders[0])).child(FOLDER))["tokens"] if folders else 0

    def live(
        self,
        requests: int = 0,
        kill: Callable[["subprocess.Popen[bytes]"], object] = lambda process: None,
        fault: str = "",
    ) -> str:
        """One run, to be killed once the server got so many requests, or where one process reaches
        a point; what it said. Its answers and books are looked at."""
        stored, asked = stored_in(self.run), self.server.asked()
        faults = self.folder / f"faults{self.kills}-{self.ends.total()}"
        settings = ["--workers", "3", "--set", f"made.limits.max_tokens_total={self.cap}"]
        dies = environment(faults, fault, "process") if fault else None
        process = begin(self.recipe, self.run, self.folder, *settings, env=dies)
        while process.poll() is None and self.server.asked().total() < asked.total() + requests:
            time.sleep(0.02)
        kill(process)
        code = process.wait(120)
        is_killed = code == -signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):  # workers whose driver was hit alone
            os.killpg(process.pid, signal.SIGKILL)
        point, _, count = fault.rpartition(":")
        self.kills += is_killed or (faults / f"{point}-{count:0>5}").exists()
        output = (self.folder / "output.txt").read_text()
        assert self.given <= self.cap, output
        assert self.books >= self.given, output
        keys = self.server.keys()
        again = [one for one in self.server.asked() - asked if keys[one] & stored.keys()]
        assert not again, output
        if not is_killed:
            self.ends[code] += 1
            self._ended(code, output)
        return output

    def _ended(self, code: int, output: str) -> None:
        """Goes on with a larger budget, or in another folder."""
        if code:
            assert SPENT.search(output), output
            self.cap += STEP
        else:
            self.number += 1
            self.cap = STEP
            self.before = self.server.asked(), self.server.tokens()


def all_after(seconds: float) -> Callable[["subprocess.Popen[bytes]"], None]:
    """Kills a run with its workers, after a while."""

    def kill(process: "subprocess.Popen[bytes]") -> None:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)

    return kill


def numbers(output: str) -> tuple[float, float, float]:
    """What is spent, of how much, and what another answer may take."""
    found = SPENT.search(output)
    assert found, output
    spent, cap, another = (float(number.replace(",", "")) for number in found.groups())
    return spent, cap, another


def spent_by(server: Server, folder: Path, questions: int, kills: int) -> dict[str, float]:
    """What workers came to that are forks, within a budget that is nearly spent."""
    command = [sys.executable, "-m", "tests.chaos.spender", str(folder / "run"), server.model]
    given = [*command, str(questions), str(kills)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    assert (found["above_cap"], found["above_books"], found["again"]) == (0, 0, 0), found
    return found


@pytest.mark.parametrize(
    ("questions", "kills"), [(300, 6), pytest.param(2400, 50, marks=pytest.mark.soak(cpu_s=90))]
)
def test_kills_near_the_end_of_a_budget_pass_it_nowhere(
    server, tmp_path, questions, kills, record_property
):
    found = spent_by(server, tmp_path, questions, kills)
    assert found["kills"] == kills
    assert questions <= found["requests"] < questions + 12 * kills  # those that were under way
    record_property("tries", kills)


def test_three_workers_spend_all_of_it_and_lose_no_answer(server, tmp_path):
    lives = Lives(server, tmp_path)
    for _ in range(2):
        lives.cap = STEP
        spent, cap, another = numbers(lives.live())
        assert cap - another < spent <= lives.books <= cap == STEP
    asked = server.asked()
    # One that says "spent" ends the others, who may have begun a smaller request since.
    assert asked.total() - len(asked) <= 2


@pytest.mark.soak(cpu_s=30)
def test_a_worker_and_a_run_that_are_killed_are_paid_for(server, tmp_path):
    lives = Lives(server, tmp_path)
    lives.live(12, all_after(0.05))
    lives.cap = 10 * STEP
    lives.live(fault="answers:2")
    assert lives.kills == 2
    assert lives.ends == {0: 1}


@pytest.mark.soak(cpu_s=700)
def test_runs_that_are_killed_fifty_times_near_the_end_pass_it_nowhere(
    server, tmp_path, record_property
):
    lives, chance = Lives(server, tmp_path), random.Random(0)
    runs = [lives.run]
    while lives.kills < 50 or lives.run == runs[-1]:
        if lives.run != runs[-1]:
            runs.append(lives.run)
        if lives.kills >= 50:
            lives.live()
        elif chance.random() < 0.2:
            point = chance.choice(["answers", "budget", "any"])
            lives.live(fault=f"{point}:{chance.randint(1, 12)}")
        else:
            lives.live(chance.randint(1, 15), all_after(chance.uniform(0, 0.4)))
    assert all(shards_of(run) == shards_of(runs[0]) for run in runs)
    assert lives.ends[1] > 3
    record_property("tries", lives.kills)
