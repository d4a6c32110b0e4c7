"""Shards that are read at once: in order, few held, and left early."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from clipmill.pipeline.ledger.rows import ahead as readers
from clipmill.pipeline.ledger.rows.ahead import ahead

DISK: Any = SimpleNamespace(is_local=True)
STORE: Any = SimpleNamespace(is_local=False)
STUCK_S = 20


@pytest.mark.parametrize("run", [DISK, STORE], ids=["disk", "store"])
@pytest.mark.parametrize("shards", [0, 1, 100])
def test_answers_come_in_order(run, shards):
    assert list(ahead(run, lambda shard: shard * 2, range(shards))) == list(range(0, 2 * shards, 2))


@pytest.mark.parametrize(
    ("run", "at_once"), [(DISK, readers.DISK_READERS), (STORE, readers.READERS)]
)
def test_so_many_are_read_at_once_and_no_more_are_held(run, at_once):
    meeting, begun = threading.Barrier(at_once), []

    def read(shard):
        begun.append(shard)
        meeting.wait(STUCK_S)
        return shard

    answers = ahead(run, read, range(2 * at_once))
    assert next(answers) == 0
    assert len(begun) <= at_once
    assert list(answers) == list(range(1, 2 * at_once))


def test_an_error_is_raised_in_its_place_and_what_waits_is_not_read():
    read = []

    def fail_at_three(shard):
        read.append(shard)
        if shard == 3:
            raise ValueError("three")
        return shard

    with pytest.raises(ValueError, match="three"):
        list(ahead(DISK, fail_at_three, range(1_000)))
    assert len(read) < 10
