"""kill -9 at every point that a run reaches: run again, it ends as if nothing had happened."""

import re
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from tests.engine_stages.harness import Ended, meaning
from tests.parts import coin

SOURCE = Path(__file__).parents[2]
REDONE = 2  # units at most: those a fused chain of two had in hand
# By the clock: test_lock, test_status; where weights come from outside: test_outside; in no run.
# And of `clipmill bench`: test_bench.
ELSEWHERE = {"lease", "live", "pin", "doctor", "truth", "arm", "bench", "leaderboard"}


@dataclass(frozen=True)
class Scenario:
    """A run to be killed: its arguments, and those of the run that filled its folder before."""

    arguments: tuple[str, ...]
    before: tuple[str, ...] | None = None
    code: int = 0


WIDE = ("--set", "chosen.where=shared > 1 AND distance < 9")
SCENARIOS = {
    "fresh": Scenario(()),
    # The same stages under a wider mask: `cube` adds a pass, and the export is made again.
    "wider": Scenario(WIDE, before=()),
    # A broken function: its shards are set aside, and the run ends 1.
    "failed": Scenario(("--set", "fourth.exponent=-1", "--until", "fourth"), code=1),
}


@dataclass(frozen=True)
class Undisturbed:
    """A scenario, the folder it starts from, how it ends undisturbed, and what is there then."""

    scenario: Scenario
    before: Path
    ended: Ended
    expected: dict

    def wrong_after(self, number: int, nursery, out: Path) -> object:
        """Kills a run at a point and runs it again: what is wrong then, or None."""
        shutil.copytree(self.before, out)
        killed = nursery.run(out, *self.scenario.arguments, fault=f"any:{number}")
        assert killed.killed, f"point {number} was never reached: {killed.output}"
        assert len(killed.points) == number
        again = nursery.run(out, *self.scenario.arguments)
        found = meaning(Storage(str(out)))
        done = killed.units + again.units
        shutil.rmtree(out)
        if again.code != self.scenario.code:
            return again.output
        if found != self.expected:
            return differing(found, self.expected)
        if done > self.ended.units + REDONE:
            return f"{done} units done, of {self.ended.units}"
        return None


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory) -> dict[str, Undisturbed]:
    """Every scenario, run to its end."""
    made = {}
    for name, scenario in SCENARIOS.items():
        folder = tmp_path_factory.mktemp(name)
        if scenario.before is not None:
            assert nursery.run(folder / "before", *scenario.before).code == 0
        else:
            (folder / "before").mkdir()
        shutil.copytree(folder / "before", folder / "run")
        ended = nursery.run(folder / "run", *scenario.arguments)
        assert ended.code == scenario.code, ended.output
        expected = meaning(Storage(str(folder / "run")))
        made[name] = Undisturbed(scenario, folder / "before", ended, expected)
    return made


@pytest.mark.chaos
def test_killed_at_one_point_of_each_kind_and_run_again_the_result_is_the_same(
    undisturbed, nursery, tmp_path, seed
):
    kinds = defaultdict(list)
    for name, whole in undisturbed.items():
        for number, point in enumerate(whole.ended.points, start=1):
            kinds[point.split()[0]].append((name, number))
    wrong = {}
    for places in kinds.values():
        name, number = min(places, key=lambda place: coin(seed, repr(place)))
        wrong[name, number] = undisturbed[name].wrong_after(number, nursery, tmp_path / "run")
    assert not {place: said for place, said in wrong.items() if said}


@pytest.mark.soak(cpu_s=200)
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_any_point_and_run_again_the_result_is_the_same(
    name, undisturbed, nursery, tmp_path
):
    whole = undisturbed[name]
    wrong = {
        whole.ended.points[number - 1]: whole.wrong_after(number, nursery, tmp_path / "run")
        for number in deaths(whole.ended.points)
    }
    assert not {point: said for point, said in wrong.items() if said}


def deaths(points: tuple[str, ...]) -> list[int]:
    """Where to kill, as numbers of points from 1: everywhere, but while a file is written once only
    of those whose names differ by their numbers, as each leaves the same: a torn scratch file."""
    chosen, torn = [], set()
    for number, point in enumerate(points, start=1):
        kind, name = re.sub(r"[0-9a-f]*\d[0-9a-f]*", "0", point).split()
        if kind != "write" or name not in torn:
            chosen.append(number)
        if kind == "write":
            torn.add(name)
    return chosen


def differing(one: dict, other: dict) -> list[str]:
    """The names whose values differ, or that only one has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@pytest.mark.chaos
def test_every_kind_of_point_in_the_source_is_killed_at(undisturbed):
    kinds = set().union(*(whole.ended.kinds for whole in undisturbed.values()))
    named = [
        re.findall(r'point(?:: str)? ?= ?"(\w+)"|reached\("(\w+)"', file.read_text())
        for folder in ("metadata", "pipeline")
        for file in (SOURCE / folder).rglob("*.py")
    ]
    in_source = {kind for found in named for pair in found for kind in pair if kind}
    assert kinds == in_source - ELSEWHERE
