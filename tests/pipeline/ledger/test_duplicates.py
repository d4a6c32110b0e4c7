"""Groups of duplicates, against loops over the rows of the run of every stage."""

from collections import Counter

import numpy as np
import pyarrow as pa

from pipeline.ledger.duplicates import GROUPS, SIZES, duplicates, led_to, sizes
from pipeline.ledger.stored import rows_at
from tests import numbered
from tests.drawn import HOSTILE, ROWS, caption


def uids(*names: int | None) -> pa.ChunkedArray:
    halves = len(names) // 2
    found = [None if name is None else name.to_bytes(16, "big") for name in names]
    return pa.chunked_array([found[:halves], found[halves:]], pa.binary(16))


def led(uid: list[int], keeper: list[int | None], is_duplicate: list[bool] | None = None) -> list:
    duplicate_N = np.array(is_duplicate or [name is not None for name in keeper], bool)
    return led_to(uids(*uid), uids(*keeper), duplicate_N).tolist()


def test_each_row_is_led_to_the_row_that_stays_along_a_chain_of_any_length():
    assert led([7, 8, 9], [None, None, None]) == [0, 1, 2]
    assert led([7, 8, 9, 5], [9, 7, None, 9]) == [2, 2, 2, 2]
    assert led([7, 8, 9, 5], [9, 7, None, 9], [False, True, False, True]) == [0, 0, 2, 2]
    chain = list(range(1000))
    assert led(chain, [*chain[1:], None]) == [999] * 1000
    assert led([], []) == []


def test_any_forest_is_led_as_by_walking():
    rng = np.random.default_rng(0)
    for rows in rng.integers(1, 40, 200):
        name = rng.permutation(rows)
        up = [int(rng.integers(0, i)) if i and rng.random() < 0.7 else None for i in range(rows)]
        walked = []
        for row in range(rows):
            while (parent := up[row]) is not None:
                row = parent
            walked.append(row)
        keeper = [None if i is None else int(name[i]) for i in up]
        assert led(name.tolist(), keeper) == walked


def test_of_a_uid_that_repeats_the_row_that_stays_is_meant_and_a_circle_ends():
    assert led([7, 7, 8], [7, None, 7]) == [1, 1, 1]
    assert led([7], [7]) == [0]
    assert led([7, 8], [3, None]) == [0, 1]  # who is named is not there
    assert set(led([1, 2, 3], [2, 3, 1])) <= {0, 1, 2}


def test_an_all_identical_pool_is_one_group():
    first_N = led_to(uids(*range(5000)), uids(None, *[0] * 4999), np.arange(5000) > 0)
    assert sizes(np.bincount(first_N, minlength=5000)) == [0, 0, 0, 0, 1]


def test_groups_are_counted_by_class_of_size():
    assert SIZES == (2, 3, 6, 11, 101)
    assert sizes(np.array([1, 2, 2, 3, 5, 6, 10, 11, 100, 101, 0])) == [2, 2, 2, 2, 1]


def test_a_pools_own_column_of_that_name_is_passed_over(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"url": "a", "text": "b", "duplicate_of": "yes"}')
    extra = "extra: {duplicate_of: string}"
    state = numbered.run(tmp_path, f"pool: {{uses: ingest.url_list, path: none, {extra}}}")
    assert duplicates(state) == []


def test_equal_captions_are_one_group(state):
    same, _ = duplicates(state)
    groups = Counter(map(caption, range(ROWS)))
    assert same.sizes == (0, 0, 1, 1, 0)
    assert same.duplicates == sum(groups.values()) - len(groups)
    assert [group.rows for group in same.groups] == [groups[HOSTILE], groups["word"]]


def test_every_stages_groups_are_those_of_a_walk_over_its_rows(every_stage):
    found = {one.stage: one for one in duplicates(every_stage.state)}
    assert {"same", "alike", "wording", "meaning"} <= found.keys()
    for name, one in found.items():
        rows = every_stage.values(every_stage.plan.stages[name])
        up = {
            row["uid"]: row.get("duplicate_of") or row["earlier_uid"]
            for row in rows
            if row.get("duplicate_of") or (row.get("earlier_cosine") or -1) >= 0.95
        }
        size: Counter[str] = Counter()
        for row in rows:
            uid = row["uid"]
            while uid in up:
                uid = up[uid]
            size[uid] += 1
        groups = sorted((rows for rows in size.values() if rows > 1), reverse=True)
        assert (one.rows, one.duplicates) == (len(rows), len(up)), name
        assert sum(one.sizes) == len(groups), name
        assert [group.rows for group in one.groups] == groups[:GROUPS], name
        root = every_stage.plan.stages[name].root
        for group in one.groups:
            seen = rows_at(every_stage.state, {"uid": (root, "uid")}, group.places)
            keeper, *members = (row["uid"].hex() for row in seen)
            assert keeper not in up
            assert all(member in up for member in members)
