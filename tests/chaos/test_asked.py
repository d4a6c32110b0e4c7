"""A captioned run killed in mid-shard: the server's count proves that no stored answer is asked for
again. Killed a hundred times: test_random_kills.py."""

import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.asked import Killer, Server, begin, served, shards_of, stored_in, write_recipe
from tests.engine_stages.harness import clipmill_run, environment

pytestmark = pytest.mark.chaos


@dataclass(frozen=True)
class Asking:
    """A server, a recipe that asks it, and the shards of a run that nothing disturbs."""

    server: Server
    recipe: Path
    expected: dict[str, str]


@pytest.fixture(scope="module")
def asking(tmp_path_factory) -> Iterator[Asking]:
    folder = tmp_path_factory.mktemp("asking")
    with served() as server:
        recipe = write_recipe(folder, server.model)
        fast = [f"{stage}.limits.concurrency=60" for stage in ("short", "made", "fused")]
        settings = [word for one in fast for word in ("--set", one)]
        ended = clipmill_run(recipe, folder / "run", folder / "faults", *settings)
        assert ended.code == 0, ended.output
        expected = shards_of(str(folder / "run"))
        assert len(expected) == 16
        assert set(server.asked().values()) == {1}
        yield Asking(server, recipe, expected)


def killer(asking: Asking, folder_of, scratch: Path, seed: int) -> Killer:
    return Killer(asking.recipe, asking.server, folder_of, scratch, random.Random(seed))


@pytest.mark.drawn(one_in=3, cpu_s=25)
def test_ten_kills_of_driver_and_workers_ask_for_no_stored_answer_again(asking, tmp_path):
    lives = killer(asking, lambda number: str(tmp_path / str(number)), tmp_path, seed=0)
    tally = lives.until(10, asking.expected)
    assert not tally.wrong, "\n".join(tally.wrong)
    assert (tally.kills, tally.of_stored, tally.changed) == (10, 0, 0), str(tally)
    assert tally.with_answers > 2, str(tally)


def test_a_kill_on_an_object_store_asks_for_no_stored_answer_again(asking, bucket, tmp_path):
    lives = killer(asking, lambda number: bucket.uri(f"asked/{number}"), tmp_path, seed=7)
    tally = lives.until(1, asking.expected)
    assert not tally.wrong, "\n".join(tally.wrong)
    assert (tally.kills, tally.of_stored, tally.changed) == (1, 0, 0), str(tally)
    assert tally.with_answers > 0, str(tally)


@pytest.mark.drawn(one_in=3, cpu_s=30)
def test_a_worker_of_ray_that_is_killed_leaves_its_answers_to_the_next(asking, ray_head, tmp_path):
    run, faults, server = str(tmp_path / "run"), tmp_path / "faults", asking.server
    before = server.asked()
    dies = {**environment(faults, "answers:4", "process"), **ray_head.environment}
    process = begin(asking.recipe, run, tmp_path, *ray_head.arguments, env=dies)
    while process.poll() is None and not (faults / "answers-00004").exists():
        time.sleep(0.01)
    stored, then = stored_in(run), server.asked()
    try:
        code = process.wait(120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert code == 0, (tmp_path / "output.txt").read_text()
    keys, now = server.keys(), server.asked()
    assert len(stored) > 20
    assert (now - then).total() > 20
    assert not [digest for digest in now - then if keys[digest] & stored.keys()]
    assert set((now - before).values()) <= {1, 2}  # what was not stored, of the one that died
    assert shards_of(run) == asking.expected
