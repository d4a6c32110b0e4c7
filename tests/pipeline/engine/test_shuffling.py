"""Shuffles: which partition a row goes to, and that all of them come back from the file."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from metadata.storage import Storage
from pipeline.engine.shuffling import by_hash, by_home, split_shard
from pipeline.run_folder.rows import Partitions


def test_equal_keys_and_nulls_have_one_partition_each():
    keys = pa.table({"key": ["a", None, "b", "a", None, "c"]})
    part = by_hash("key", 1000, keys)
    assert part[0] == part[3]
    assert part[1] == part[4]
    assert len({part[0], part[1], part[2], part[5]}) == 4


def test_a_hash_does_not_depend_on_the_rows_beside_it():
    keys = pa.table({"key": [f"key {number}" for number in range(50)]})
    assert by_hash("key", 7, keys)[20:].tolist() == by_hash("key", 7, keys[20:]).tolist()


def test_a_row_goes_home_to_the_run_of_shards_that_has_its_own():
    starts = np.array([0, 3, 4])
    shards = pa.table({"shard": [0, 2, 3, 4, 9]})
    assert by_home(starts, shards).tolist() == [0, 0, 1, 2, 2]


def test_every_row_of_a_shard_is_in_its_partition_and_in_order(tmp_path):
    rows = pa.table({"number": range(20), "reason": pa.array(["x", "y"] * 10).dictionary_encode()})
    over = SimpleNamespace(table=lambda index: rows)
    task = SimpleNamespace(folder=Storage(str(tmp_path)), key="000000-a")
    made = split_shard(over, lambda table: table["number"].to_numpy() % 3, 4, "data", 0, task)
    parts = Partitions(task.folder, ((made["file"], tuple(made["offsets"])),), 4)
    assert [parts.table(p)["number"].to_pylist() for p in range(4)] == [
        list(range(0, 20, 3)),
        list(range(1, 20, 3)),
        list(range(2, 20, 3)),
        [],
    ]
    assert parts.table(1)["reason"].to_pylist() == ["y", "x", "y", "x", "y", "x", "y"]
