"""select.unlisted: who is dropped, and that only counts are written."""

import hashlib
import json

import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.ops.tables.blocklists import Lists
from clipmill.stages.select.unlisted import Unlisted

URLS = ["http://a.test/1", "http://b.test/2", "http://c.b.test/3", "http://d.test/4", None]
SHAS = [hashlib.sha256(bytes([n])).hexdigest() for n in range(5)]


def rows(numbers, **columns) -> pa.Table:
    uids = pa.array([bytes([n]) * 16 for n in numbers], pa.binary(16))
    return pa.table({"uid": uids, **columns})


@pytest.fixture
def lists(tmp_path):
    def write(**entries: str) -> Lists:
        for name, text in entries.items():
            (tmp_path / f"{name}.txt").write_text(f"{text}\n")
        return Lists(**{name: str(tmp_path / f"{name}.txt") for name in entries})

    return write


@pytest.fixture
def judged(memory_shards, memory_context):
    def run(stage: Unlisted, *tables: pa.Table):
        ctx = memory_context()
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        stored = [row for table in ctx.stored for row in table.to_pylist()]
        reasons = [row.pop("reason") for row in stored]
        assert [row.pop("keep") for row in stored] == [reason is None for reason in reasons]
        assert {name for row in stored for name in row} == {"uid", "shard", "position"}
        return reasons, json.loads((ctx.out / "lists.json").read_text())

    return run


def test_a_row_on_any_list_is_dropped_and_lists_are_counted(lists, judged):
    stage = Unlisted(lists=lists(links="a.test/1", hosts="b.test", digests=SHAS[3]))
    first = rows(range(3), url=URLS[:3], sha256=SHAS[:3])
    second = rows(range(3, 5), url=pa.array(URLS[3:], pa.string()), sha256=[SHAS[3], None])
    reasons, counts = judged(stage, first, second)
    assert reasons == ["listed"] * 4 + [None]
    assert counts == {"rows": 4, "links": 1, "hosts": 2, "digests": 1}


def test_what_an_earlier_select_dropped_is_listed_too_so_that_nothing_shows_it(lists, judged):
    table = rows(range(3), url=URLS[:3], keep=[False, True, False])
    reasons, counts = judged(Unlisted(lists=lists(links="a.test/1\nb.test/2")), table)
    assert reasons == ["listed", "listed", "dropped_before"]
    assert counts["rows"] == counts["links"] == 2


def test_a_near_perceptual_hash_is_dropped_and_a_row_without_one_stays(lists, judged):
    table = rows(range(3), phash=pa.array([0b11, None, 2**64 - 1], pa.uint64()))
    stage = Unlisted(lists=lists(phashes="0" * 16), max_distance=2)
    assert judged(stage, table)[0] == ["listed", None, None]
    assert [column.name for column in stage.reads] == ["phash"]


def test_a_near_pdq_is_dropped_if_its_quality_lets_it_count(lists, judged):
    code = [f"{2**31 - 1:064X}", "0" * 64, "0" * 64, f"{2**32 - 1:064x}", None, "0" * 64, "no hex"]
    quality = pa.array([50, 100, 49, 100, 100, None, 100], pa.uint8())
    stage = Unlisted(lists=lists(pdq="0" * 64))
    reasons, counts = judged(stage, rows(range(7), pdq=code, pdq_quality=quality))
    assert reasons == ["listed"] * 2 + [None] * 5
    assert counts == {"rows": 2, "pdq": 2}
    assert [column.name for column in stage.reads] == ["pdq", "pdq_quality"]


def test_another_list_is_another_run_and_none_is_refused(lists):
    stage = Unlisted(lists=lists(hosts="b.test"))
    before = stage.outside()
    lists(hosts="c.test")
    assert stage.outside() != before
    with pytest.raises(RecipeError, match="no list is named"):
        Unlisted(lists=Lists())
    with pytest.raises(StageError, match=r"no file 'gone\.txt'"):
        Unlisted(lists=Lists(links="gone.txt")).look()
    with pytest.raises(RecipeError, match="has `url` or `sha256`"):
        Unlisted(lists=lists(digests=SHAS[0])).check({"uid": pa.binary(16)})
