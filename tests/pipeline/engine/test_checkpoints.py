"""Checkpoints: the newest whole one is found, older ones go, torn ones are passed over."""

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.checkpoints import StoredCheckpoints


@pytest.fixture
def door(tmp_path):
    (tmp_path / "scratch").mkdir()
    return StoredCheckpoints(Storage(str(tmp_path / "stage")), "calls/x", tmp_path / "scratch")


def put(door, step: int, text: str):
    path = door.scratch / "state"
    path.write_text(text)
    door.put(step, path)
    assert not path.exists()


def newest(door):
    found = door.newest()
    return found and (found[0], found[1].read_text())


def test_the_newest_stays_and_is_found(door, tmp_path):
    assert newest(door) is None
    for step in (9, 10):
        put(door, step, f"at {step}")
        assert newest(door) == (step, f"at {step}")
        assert len(list((tmp_path / "stage/calls/x").iterdir())) == 1


def test_a_torn_one_is_passed_over_for_the_one_before(door, tmp_path):
    put(door, 9, "at 9")
    (before,) = (tmp_path / "stage/calls/x").iterdir()
    kept = before.read_text()
    put(door, 10, "at 10")
    (torn,) = (tmp_path / "stage/calls/x").iterdir()
    torn.write_text("at")
    assert newest(door) is None
    assert list(door.scratch.iterdir()) == []
    before.write_text(kept)  # a kill came before it was deleted
    assert newest(door) == (9, "at 9")
