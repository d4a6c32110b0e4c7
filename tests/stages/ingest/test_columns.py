"""The first rows, tried before the others: a fault of the settings stops, a crash does not."""

import pytest

from clipmill.pipeline.errors import CrashedError, StageError
from clipmill.stages.ingest._columns import create_shards


class Failing:
    """A context whose unit ends with an error, as the engine raises it."""

    def __init__(self, cause: Exception | None) -> None:
        self.cause = cause

    def map(self, fn, inputs):
        raise StageError("a unit failed", "its place", "do") from self.cause

    def create_shards_together(self, read, units):
        self.created = units


def test_a_first_file_that_ends_its_worker_is_left_to_its_shards():
    """A bomb in the first of twenty files cost them all: tests/chaos/test_hostile_files.py."""
    scanned = [{"groups": [[{"path": "a"}], [{"path": "b"}]]}]
    create_shards(ctx := Failing(CrashedError("it took 0.9 GB", "unit 0", "do")), None, scanned)
    assert ctx.created == scanned[0]["groups"]
    with pytest.raises(StageError, match="a unit failed"):
        create_shards(Failing(None), None, scanned)
