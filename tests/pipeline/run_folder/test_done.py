"""Whether a shard is done: by its parents, the mask it was computed under, and its failure."""

import pytest

from clipmill.metadata.record import Failure, Record
from clipmill.pipeline.run_folder.done import current, standing

NOW, BEFORE = {"pool": "b"}, {"pool": "a"}


def record(parents, number=0, mask=None):
    return Record(
        shard=0,
        number=number,
        data=None,
        size_bytes=0,
        sha256="",
        rows=3,
        computed=3,
        uid_sha256="",
        parents=parents,
        mask=mask,
    )


def failure(parents, crashed=False):
    return Failure(0, parents, crashed, "a bad byte", "shard 0", "mend it")


@pytest.mark.parametrize(
    ("records", "failed", "mask", "expected"),
    [
        ([], None, None, "missing"),
        ([record(NOW)], None, None, "good"),
        ([record(BEFORE)], None, None, "missing"),
        ([record(NOW), record(BEFORE, 1)], None, None, "missing"),
        ([record(NOW)], None, "x", "good"),
        ([record(NOW, mask="x")], None, "x", "good"),
        ([record(NOW, mask="x")], None, "y", "missing"),
        ([record(NOW, mask="x")], None, None, "missing"),
        ([record(NOW, mask="x"), record(NOW, 1, "y")], None, "y", "good"),
        ([record(BEFORE, mask="x")], None, "x", "missing"),
        ([], failure(NOW), None, "failed"),
        ([], failure(NOW, crashed=True), None, "failed"),
        ([], failure(BEFORE, crashed=True), None, "missing"),
        ([record(BEFORE)], failure(NOW), None, "failed"),
        ([record(NOW)], failure(NOW), None, "good"),
        ([record(NOW, mask="x")], failure(NOW, crashed=True), "y", "failed"),
    ],
    ids=[
        "nothing stored",
        "same parents",
        "other parents",
        "a later pass of other parents",
        "all rows, where a mask asks for some",
        "the same mask",
        "another mask",
        "some rows, where all are asked for",
        "a later pass under the mask",
        "the same mask of other parents",
        "a failure",
        "a crash",
        "a crash over other parents",
        "other parents, then a failure",
        "a failure, then a record",
        "a pass that crashed",
    ],
)
def test_a_shard_is_good_failed_or_missing(records, failed, mask, expected):
    assert standing(records, failed, NOW, mask) == expected


def test_passes_count_only_where_all_have_the_same_parents():
    assert current([record(NOW), record(NOW, 1)], NOW) == [record(NOW), record(NOW, 1)]
    assert current([record(NOW), record(BEFORE, 1)], NOW) == []
