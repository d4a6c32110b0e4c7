"""What a shuffle of a large pool would look like, computed by what cuts it: nothing is run."""

import pytest

from clipmill.pipeline.engine.context import partition_rows
from tests.benchmarks.shuffle_layout import driver_bytes, layout


@pytest.mark.parametrize("row_bytes", [24, 30, 36])
def test_a_pool_of_a_billion_rows_has_a_small_index_large_reads_and_a_small_driver(row_bytes):
    shards = 128_000
    made = layout([10_000] * shards, row_bytes)
    assert made.index_bytes < 50e6
    assert made.mean_read >= 1e6
    assert driver_bytes(shards, 3, made) < 1e9


def test_pieces_do_not_grow_with_the_shards_that_the_same_rows_lie_in():
    few, many = (layout([12_800_000 // n] * n, 36) for n in (1_280, 128_000))
    assert many.pieces <= few.pieces * 1.05


def test_wide_rows_make_more_segments_and_no_longer_ones():
    wide, narrow = (layout([10_000] * 1_000, size) for size in (4_096, 36))
    assert wide.runs == narrow.runs
    assert wide.segments > narrow.segments
    assert layout([10_000] * 1_000, 4_096, memory_gb=0.5).segments > wide.segments


def test_partitions_grow_with_the_root_of_a_pool_that_is_larger_than_most():
    assert [partition_rows(rows) for rows in (0, 10**6, 2 * 10**9)] == [250_000] * 3
    assert partition_rows(8 * 10**9) == 500_000
    assert layout([10_000] * 1_280_000, 24).index_bytes < 300e6
