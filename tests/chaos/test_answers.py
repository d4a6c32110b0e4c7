"""Stored answers outlive their writers: a kill loses, changes and asks again none of them."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.budget import SharedBudget, close_accounts, spent_in
from tests.engine_stages.harness import clipmill_run

pytestmark = pytest.mark.chaos
RECIPE = """
stages:
  numbers: {{uses: toy.numbers, path: {pool}, shard_rows: 1}}
  asked: {{uses: toy.asker, from: numbers, log: {log}, wait_s: 0.05}}
"""


def answered(uri: str, scratch: Path, kills: int) -> tuple[str, Counter[str]]:
    """What the workers said, and how often each number was asked for."""
    command = [sys.executable, "-m", "tests.chaos.answerer", uri, str(scratch), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    asked = Counter((scratch / "asked.txt").read_text().split())
    return done.stdout, asked


def test_fifty_kills_lose_and_change_nothing_that_was_stored(tmp_path):
    said, asked = answered(str(tmp_path / "answers"), tmp_path, 50)
    assert said == "killed 50\n"
    assert set(asked) == {str(number) for number in range(240)}
    again = sum(asked.values()) - 240  # what was not stored yet, of the 50 that died
    assert again < 50 * 10
    assert len(Storage(str(tmp_path / "answers")).entries("packed")) < 10


def test_kills_lose_nothing_on_an_object_store(tmp_path, bucket):
    said, asked = answered(bucket.uri("answers"), tmp_path, 5)
    assert said == "killed 5\n"
    assert set(asked) == {str(number) for number in range(240)}


def test_two_workers_share_a_budget_on_an_object_store(bucket):
    folder = Storage(bucket.uri("budget"))
    accounts = [SharedBudget(folder, name, {"tokens": 40}) for name in ("one", "two")]
    granted = 0
    while any(taken := [account.reserve({"tokens": 3}) for account in accounts]):
        for account, is_granted in zip(accounts, taken, strict=True):
            if is_granted:
                account.settle({"tokens": 3}, {"tokens": 2})
                granted += 1
    for account in accounts:
        account.flush()
    assert spent_in(folder) == {"tokens": 2 * granted}
    assert 40 - 3 < 2 * granted <= 40
    close_accounts(folder)
    assert spent_in(folder) == {"tokens": 2 * granted}


@pytest.mark.parametrize("number", [3, 6])
def test_whoever_goes_on_with_a_dead_workers_shard_asks_nothing_again(number, pool, tmp_path):
    log = tmp_path / "asked.log"
    recipe = tmp_path / "asker.yaml"
    recipe.write_text(RECIPE.format(pool=pool, log=log))
    ended = clipmill_run(
        recipe,
        tmp_path / "run",
        tmp_path / "faults",
        fault=f"answers:{number}",
        scope="process",
        workers=2,
    )
    assert ended.code == 0, ended.output
    assert sum(point.startswith("answers ") for point in ended.points) >= number
    assert sorted(map(int, log.read_text().split())) == list(range(11))
