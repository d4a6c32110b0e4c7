"""To which row copies resolve, against walking from row to row; in one partition and in many."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.uid import mixed
from clipmill.pipeline.ledger.findings import duplicates as leading
from clipmill.pipeline.ledger.findings.duplicates import Roots, group_sizes, members
from clipmill.pipeline.ledger.rows import partitions


@pytest.fixture(params=["one partition", "many"], autouse=True)
def partition_rows(request, monkeypatch):
    if request.param == "many":
        monkeypatch.setattr(partitions, "PARTITION_ROWS", 7)
        monkeypatch.setattr(partitions, "HELD_BYTES", 200)


def uids(names: list[int | None]) -> pa.ChunkedArray:
    found = [None if name is None else name.to_bytes(16, "big") for name in names]
    return pa.chunked_array([found[: len(found) // 2], found[len(found) // 2 :]], pa.binary(16))


def resolved(
    uid: list[int], keeper: list[int | None], is_copy: list[bool] | None = None
) -> list[int]:
    """The row that each row resolves to, itself without a root; 3 rows are added at a time."""
    copy_N = np.array(is_copy or [name is not None for name in keeper], bool)
    to_N = np.arange(len(uid))
    some = [to_N[start : start + 3] for start in range(0, len(uid), 3)]
    with Roots(len(uid)) as roots:
        for row_N in some:
            row_M = row_N[copy_N[row_N]]
            roots.add_copies(row_M, uids([keeper[row] for row in row_M]), row_M / 2)
        for row_N in some:
            roots.add_rows(row_N, uids([uid[row] for row in row_N]), copy_N[row_N])
        found = roots.resolved()
        pieces = [piece for partition in range(found.count) for piece in found.pieces(partition)]
        for piece in pieces:
            assert (piece["near"] == piece["row"] / 2).all()
            to_N[piece["row"]] = piece["to"]
        size = Counter(to_N.tolist())
        sizes = {row: rows for row, rows in size.items() if rows > 1}
        made = [zip(*(it.tolist() for it in them), strict=True) for them in group_sizes(found)]
        assert {row: rows for groups in made for row, rows in groups} == sizes
        for row in sizes:
            its = [other for other in np.flatnonzero(to_N == row) if other != row]
            assert members(found, row)["row"].tolist() == its
    return to_N.tolist()


def test_each_row_is_led_to_the_row_that_stays_along_a_chain_of_any_length():
    assert resolved([7, 8, 9], [None, None, None]) == [0, 1, 2]
    assert resolved([7, 8, 9, 5], [9, 7, None, 9]) == [2, 2, 2, 2]
    assert resolved([7, 8, 9, 5], [9, 7, None, 9], [False, True, False, True]) == [0, 0, 2, 2]
    chain = list(range(200))
    assert resolved(chain, [*chain[1:], None]) == [199] * 200
    assert resolved([], []) == []


def test_any_forest_is_led_as_by_walking():
    rng = np.random.default_rng(0)
    for rows in rng.integers(1, 60, 60):
        name = rng.permutation(rows)
        up = [int(rng.integers(0, i)) if i and rng.random() < 0.7 else None for i in range(rows)]
        walked = []
        for row in range(rows):
            while (parent := up[row]) is not None:
                row = parent
            walked.append(row)
        keeper = [None if i is None else int(name[i]) for i in up]
        assert resolved(name.tolist(), keeper) == walked


def test_of_a_uid_that_repeats_the_row_that_stays_is_meant_else_the_first():
    assert resolved([7, 7, 8], [7, None, 7]) == [1, 1, 1]
    assert resolved([7, 7, 8, 9], [9, None, 7, None]) == [3, 1, 1, 3]
    assert resolved([7, 7, 8, 9], [9, 9, 7, None]) == [3, 3, 3, 3]
    assert resolved([7], [7]) == [0]


def test_a_row_stays_alone_that_names_nobody_who_is_there_or_goes_in_a_circle():
    assert resolved([7, 8, 5], [3, None, 7]) == [0, 1, 0]
    assert resolved([1, 2, 3, 4], [2, 3, 1, 1]) == [0, 1, 2, 3]
    assert resolved([1, 2], [2, 1]) == [0, 1]


def test_many_copies_of_one_row_are_one_group_of_which_those_of_the_least_hashes_are_given(
    monkeypatch,
):
    monkeypatch.setattr(leading, "GIVEN", 100)
    rows = 3000
    assert set(led_of_one(rows)) == set(
        np.argsort(mixed(np.arange(rows, dtype=np.uint64)[1:]))[:100] + 1
    )


def led_of_one(rows: int) -> list[int]:
    """The members that are given of the one group of rows that all name the first."""
    row_N = np.arange(rows)
    with Roots(rows) as roots:
        roots.add_copies(row_N[1:], uids([0] * (rows - 1)), row_N[1:] * 1.0)
        roots.add_rows(row_N, uids(list(range(rows))), row_N > 0)
        found = roots.resolved()
        (groups,) = group_sizes(found)
        assert [it.tolist() for it in groups] == [[0], [rows]]
        given = members(found, 0)["row"].tolist()
        assert given == sorted(given)
        return given
