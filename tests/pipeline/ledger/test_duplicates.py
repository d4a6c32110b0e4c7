"""Groups of duplicates, against loops over the rows of the run of every stage."""

from collections import Counter

import numpy as np

from clipmill.pipeline.ledger.findings.duplicates import GROUPS, SIZES, duplicates, sizes
from clipmill.pipeline.ledger.rows.stored import rows_at
from tests import numbered
from tests.drawn import HOSTILE, ROWS, caption


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
