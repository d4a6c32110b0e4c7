"""Near and far: the cut that a run draws, rows on its near side, and where they stand."""

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.schema import Column
from clipmill.pipeline.ledger.findings import duplicates as of_copies
from clipmill.pipeline.ledger.findings import leaks as of_leaks
from clipmill.pipeline.ledger.rows.near import Cut, Numbers, by_shard, cut_of, evenly, spread
from tests import numbered


def test_a_fraction_cuts_whole_numbers_where_the_select_cuts_them():
    bits = pa.chunked_array([pa.array([2, 3], pa.int32())])
    assert Cut("b", "<", 2.5).reached(bits).tolist() == [True, False]


def column(name: str, **says: Any) -> Column:
    return Column(name, pa.float32(), "any", "Of a test.", **says)


def test_the_shown_are_spread_from_the_nearest_to_the_farthest():
    bits = pa.chunked_array([np.arange(100, dtype=np.int32)])
    rows = np.array([90, 10, 50, 30, 70])
    distance, likeness = column("bits", better="high"), column("likeness", better="low")
    assert spread(rows, bits, distance, 3).tolist() == [10, 50, 90]
    assert spread(rows, bits, distance, 9).tolist() == [10, 30, 50, 70, 90]
    assert spread(rows, bits, likeness, 2).tolist() == [90, 10]
    assert evenly(rows, 2).tolist() == [90, 70]
    assert spread(rows[:0], bits, distance, 3).tolist() == []


def test_a_threshold_is_compared_in_the_columns_own_type():
    cosine = pa.chunked_array([pa.array([0.95, 0.949, None, 1], pa.float32())])
    assert Cut("c", ">=", 0.95).reached(cosine).tolist() == [True, False, False, True]
    assert Cut("c", ">", 0.95).reached(cosine).tolist() == [False, False, False, True]
    bits = pa.chunked_array([pa.array([0, 2, None, 3], pa.int32())])
    assert Cut("b", "<=", 2).reached(bits).tolist() == [True, True, False, False]
    assert Cut("b", "<", 2).reached(bits).tolist() == [True, False, False, False]


def test_places_are_counted_shard_by_shard():
    numbers = Numbers((0, 4, 5), np.array([0, 3, 3]))
    assert numbers.places([0, 2, 3, 9]) == [(0, 0), (0, 2), (5, 0), (5, 6)]


def test_a_cut_is_the_near_side_of_a_selects_threshold(state):
    far, alike = column("min_side", better="high"), column("aspect_ratio", better="low")
    assert cut_of(state, "look", far) == Cut("min_side", "<", 30, "subset")
    assert cut_of(state, "look", alike) == Cut("aspect_ratio", ">", 3, "subset")
    ranked = column("luma_std", better="low")
    assert cut_of(state, "look", ranked) is None  # the number of `top` is none of the column
    assert cut_of(state, "look", replace(ranked, alike=0.5)) == Cut("luma_std", ">=", 0.5)
    assert cut_of(state, "look", replace(ranked, better="high", alike=0.5)).sign == "<="


@pytest.mark.parametrize(("module", "find"), [(of_copies, "duplicates"), (of_leaks, "leaks")])
def test_of_a_pool_no_more_is_held_than_what_is_found(module, find, tmp_path, monkeypatch):
    more = [
        {"url": f"http://b.test/{row}", "text": f"one caption of picture {row - (row % 40 == 1)}"}
        for row in range(200)
    ]
    numbered.write_pool(tmp_path, more)
    (tmp_path / "tasks").mkdir()
    sample = pa.table({"key": ["a"], "text": ["one caption of picture 77"]})
    pq.write_table(sample, tmp_path / "tasks" / "pictures.parquet")
    stages = f"""
pool: {{uses: ingest.url_list, path: none, shard_rows: 10}}
same: {{uses: dedup.exact, from: pool, by: caption}}
near: {{uses: dedup.against, from: pool, compare: caption, tasks: {tmp_path / "tasks"}}}
"""
    state = numbered.run(tmp_path, stages)
    expected, alive, most = getattr(module, find)(state), [], []

    def tables(*args):
        for table in by_shard(*args):
            alive.append(weakref.ref(table))
            most.append(sum(ref() is not None for ref in alive))
            yield table

    monkeypatch.setattr(module, "by_shard", tables)
    assert getattr(module, find)(state) == expected
    assert len(most) >= 20
    assert max(most) <= 3
    (found,) = expected
    assert (getattr(found, "duplicates", None), found.reached) in ((5, 0), (None, 1))
