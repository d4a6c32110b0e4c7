"""Rows in partitions, against lists: held in memory, on disk, and on both."""

import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.ledger.rows import partitions
from clipmill.pipeline.ledger.rows.partitions import Partitions, structured

DTYPE = [("number", "<i8"), ("half", "<f8")]


@pytest.mark.parametrize("held_bytes", [1, 500, 1 << 20])
def test_each_partition_has_its_rows_in_the_order_in_which_they_came(monkeypatch, held_bytes):
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 10)
    monkeypatch.setattr(partitions, "HELD_BYTES", held_bytes)
    rng, expected, number = np.random.default_rng(0), [[] for _ in range(10)], 0
    with closing(Partitions(95, DTYPE)) as found:
        for rows in (7, 0, 1, 60, 3, 24):
            partition_N, number_N = rng.integers(0, 9, rows), np.arange(number, number + rows)
            found.add(partition_N, structured(DTYPE, number=number_N, half=number_N / 2))
            for partition, its in zip(partition_N, number_N, strict=True):
                expected[partition].append(int(its))
            number += rows
            pieces = [
                list(found.pieces(partition)) for partition in range(found.count)
            ]  # and more is added
            assert [[n for it in some for n in it["number"]] for some in pieces] == expected
            assert all((it["half"] == it["number"] / 2).all() for some in pieces for it in some)
            assert all(len(it) for some in pieces for it in some)
            most = max((it.nbytes for some in pieces for it in some), default=0)
            assert held_bytes > 1 or most <= 60 * 16


def test_hashes_are_spread_over_all_partitions(monkeypatch):
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 10)
    with closing(Partitions(95, DTYPE)) as found:
        hash_N = np.random.default_rng(0).integers(0, 2**64, 10_000, np.uint64)
        assert np.bincount(found.partition_of(hash_N), minlength=10).min() > 800


def test_a_full_disk_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(partitions, "HELD_BYTES", 1)
    full = partial(Path("/dev/full").open, "r+b", buffering=0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: full())
    with closing(Partitions(10, DTYPE)) as found, pytest.raises(StageError) as error:
        found.add(np.zeros(3, int), np.zeros(3, DTYPE))
    assert error.value.args[0].startswith("the disk is full: No space left")
    assert error.value.args[1] == tempfile.gettempdir()
