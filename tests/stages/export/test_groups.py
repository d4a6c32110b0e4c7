"""Groups of an export: whole source shards, files of even size, an order that is a hash."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.export import _groups as groups
from clipmill.stages.export._leaving import Takes

TAKES = Takes()


def worker(seed: int = 0, scratch: Path = Path()) -> Worker:
    return Worker(seed=seed, stage="it", device="cpu", threads=1, scratch=scratch)


def test_every_shard_with_rows_is_in_one_group_and_files_are_numbered_through():
    exported = np.random.default_rng(0).integers(0, 60, 200).tolist()
    made = groups.groups_of(exported, 100, worker())
    assert sorted(s for g in made for s in g["shards"]) == [s for s in range(200) if exported[s]]
    assert [sum(g["rows"]) for g in made] == [sum(exported[s] for s in g["shards"]) for g in made]
    numbers = [g["first"] + i for g in made for i in range(len(g["rows"]))]
    assert numbers == list(range(len(numbers)))
    assert max(max(g["rows"]) for g in made) <= 100
    assert np.mean([sum(g["rows"]) for g in made]) > 70


def test_a_shard_larger_than_a_file_fills_files_of_even_size():
    (made,) = groups.groups_of([0, 251], 100, worker())
    assert made == {"shards": [1], "first": 0, "start": 0, "rows": [84, 84, 83]}


def test_the_seed_chooses_the_groups():
    first, again, other = (groups.groups_of([10] * 30, 100, worker(s)) for s in (0, 0, 1))
    assert first == again != other


def test_rows_come_in_hashed_order_with_their_own_values(pool, leaving, memory_shards, tmp_path):
    shards = memory_shards(pool[:100], pool[100:])
    group = {"shards": [1, 0], "first": 0, "start": 0, "rows": [len(leaving)]}
    with groups.shuffled(shards, TAKES, group, worker(scratch=tmp_path)) as shuffle:
        whole = pa.concat_tables(shuffle.tables(0, len(leaving)))
        part = pa.concat_tables(shuffle.tables(7, 31))
    assert part.equals(whole[7:31])
    names = ["uid", "image", "text", "language"]
    expected = {
        u: tuple(row) for u, *row in zip(*(leaving[n].to_pylist() for n in names), strict=True)
    }
    found = {u: tuple(row) for u, *row in zip(*(whole[n].to_pylist() for n in names), strict=True)}
    assert found == expected
    with groups.shuffled(shards, TAKES, group, worker(seed=1, scratch=tmp_path)) as shuffle:
        other = pa.concat_tables(shuffle.tables(0, len(leaving)))
    for rows in (whole, other):
        assert rows["uid"].to_pylist() != sorted(rows["uid"].to_pylist())
    assert not other["uid"].equals(whole["uid"])
    with groups.shuffled(
        memory_shards(pool), TAKES, {**group, "shards": [0]}, worker(scratch=tmp_path)
    ) as s:
        assert pa.concat_tables(s.tables(0, len(leaving))).select(names).equals(whole.select(names))
    assert list(tmp_path.iterdir()) == []


def test_shards_that_change_while_they_are_read_stop_the_stage(pool, memory_shards, tmp_path):
    group = {"shards": [0], "first": 0, "start": 0, "rows": [1]}
    with (
        pytest.raises(StageError, match="1 when they were counted"),
        groups.shuffled(memory_shards(pool), TAKES, group, worker(scratch=tmp_path)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
