"""kill -9 at every point that a run reaches: run again, it ends as if nothing had happened."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from metadata.storage import Storage
from tests.engine_stages.harness import meaning

pytestmark = pytest.mark.chaos

SOURCE = Path(__file__).parents[2]
PARTS = 4  # each takes every fourth point, so that two processes share the work
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


@pytest.fixture(scope="session", params=SCENARIOS)
def undisturbed(request, nursery, tmp_path_factory):
    """A scenario, the folder it starts from, how it ends undisturbed, and what is there then."""
    scenario = SCENARIOS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    if scenario.before is not None:
        assert nursery.run(folder / "before", *scenario.before).code == 0
    else:
        (folder / "before").mkdir()
    shutil.copytree(folder / "before", folder / "run")
    ended = nursery.run(folder / "run", *scenario.arguments)
    assert ended.code == scenario.code, ended.output
    return scenario, folder / "before", ended, meaning(Storage(str(folder / "run")))


@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_any_point_and_run_again_the_result_is_the_same(
    part, undisturbed, nursery, tmp_path
):
    scenario, before, whole, expected = undisturbed
    wrong = {}
    for number in deaths(whole.points)[part::PARTS]:
        out = tmp_path / str(number)
        shutil.copytree(before, out)
        killed = nursery.run(out, *scenario.arguments, fault=f"any:{number}")
        assert killed.killed, f"point {number} was never reached: {killed.output}"
        assert len(killed.points) == number
        again = nursery.run(out, *scenario.arguments)
        found = meaning(Storage(str(out)))
        done = killed.units + again.units
        if again.code != scenario.code:
            wrong[killed.points[-1]] = again.output
        elif found != expected:
            wrong[killed.points[-1]] = differing(found, expected)
        elif done > whole.units + REDONE:
            wrong[killed.points[-1]] = f"{done} units done, of {whole.units}"
        shutil.rmtree(out)
    assert not wrong


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


def test_every_kind_of_point_in_the_source_is_killed_at(nursery, tmp_path):
    kinds: set[str] = set()
    for name, scenario in SCENARIOS.items():
        if scenario.before is not None:
            nursery.run(tmp_path / name, *scenario.before)
        kinds |= nursery.run(tmp_path / name, *scenario.arguments).kinds
    named = [
        re.findall(r'point(?:: str)? ?= ?"(\w+)"|reached\("(\w+)"', file.read_text())
        for folder in ("metadata", "pipeline")
        for file in (SOURCE / folder).rglob("*.py")
    ]
    in_source = {kind for found in named for pair in found for kind in pair if kind}
    assert kinds == in_source - ELSEWHERE
