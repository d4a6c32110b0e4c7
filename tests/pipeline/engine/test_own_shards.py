"""Rows that come home: to runs of neighbouring shards, each row once and in order."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from clipmill.pipeline.engine.own_shards import Neighbours, OneShard, in_order, neighbours
from clipmill.pipeline.errors import StageError

PLANNED = SimpleNamespace(name="it", uses="toy.it")


def test_groups_cover_every_shard_once_in_order():
    for sizes, rows, least in [
        ([], 10, 4),
        ([5], 10, 4),
        ([0, 0], 10, 4),
        ([5, 5, 5, 5], 10, 2),
        ([50, 1, 1, 50], 10, 4),
    ]:
        groups = neighbours(sizes, rows, least)
        assert [shard for a, b in groups for shard in range(a, b)] == list(range(len(sizes)))
        assert all(b - a == 1 or sum(sizes[a:b]) <= rows for a, b in groups)


def test_what_is_stored_names_its_shards():
    assert list(OneShard(4, {}).shards) == [4]
    assert list(Neighbours(partition=0, start=4, rows=[9, 0, 7], parents={}).shards) == [4, 5, 6]


@pytest.mark.parametrize(
    "positions", [[0, 1], [0, 1, 1], [0, 2, 1], [1, 2, 3]], ids=["lost", "twice", "order", "other"]
)
def test_rows_that_are_not_those_of_the_shard_are_refused(positions):
    with pytest.raises(StageError, match="came home to a shard of 3") as refused:
        in_order(pa.table({"position": positions}), 7, 3, PLANNED)
    assert "stage 'it' (toy.it), shard 7" in str(refused.value)


def test_rows_in_order_come_back_as_they_are():
    table = pa.table({"position": [0, 1, 2]})
    assert in_order(table, 7, 3, PLANNED) is table
