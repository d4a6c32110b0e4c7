"""export.uid_list: DataComp's file, bit for bit; a multiset; sorted in pieces as if at once."""

import json

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.schema import IMAGE_BYTES, REPEATS, UID
from clipmill.pipeline.dataset import Inputs
from clipmill.stages.export import uid_list
from clipmill.stages.export.uid_list import UidList


def export(ctx, shards) -> np.ndarray:
    UidList().run(Inputs(rows=shards), ctx)
    return np.load(ctx.out / "uids.npy", mmap_mode="r")


def plain(uids: list[bytes]) -> np.ndarray:
    """What DataComp's own baselines write."""
    halves = [(int(u.hex()[:16], 16), int(u.hex()[16:32], 16)) for u in uids]
    return np.sort(np.array(halves, "u8,u8"))


def table(uids: list[bytes], **columns) -> pa.Table:
    return pa.table({"uid": pa.array(uids, UID.dtype), **columns})


def test_datacomps_known_answer(memory_shards, memory_context):
    uids = ["6e356964a967af455c8016b75d691203", "139e4a9b22a614771f06c700a8ebe150"]
    out = export(memory_context(), memory_shards(table([bytes.fromhex(u) for u in uids])))
    assert out.tolist() == [
        (1413649363202610295, 2235693070683988304),
        (7941369398997528389, 6665352425310327299),
    ]
    assert out.dtype == np.dtype("u8,u8")


def test_uids_with_one_beginning_are_sorted_by_their_end(memory_shards, memory_context):
    uids = [bytes(8) + bytes([number] * 8) for number in range(200, 0, -1)]
    np.testing.assert_array_equal(export(memory_context(), memory_shards(table(uids))), plain(uids))


def test_uids_that_fit_in_memory_are_not_shuffled(memory_shards, memory_context):
    ctx = memory_context()
    ctx.shuffle = None
    uids = [bytes([number]) * 16 for number in (3, 1, 2)]
    out = export(ctx, memory_shards(table(uids[:1]), table(uids[1:])))
    np.testing.assert_array_equal(out, plain(uids))


@pytest.mark.parametrize("range_rows", [2**21, 50, 3])
def test_the_list_equals_a_plain_sort_in_however_many_pieces(
    range_rows, pool, memory_shards, memory_context, monkeypatch
):
    monkeypatch.setattr(uid_list, "RANGE_ROWS", range_rows)
    rows = pool.select(["uid", "keep"])
    ctx = memory_context()
    out = export(ctx, memory_shards(rows[:10], rows[10:10], rows[10:]))
    kept = rows.filter(rows["keep"].fill_null(False))["uid"].to_pylist()
    np.testing.assert_array_equal(out, plain(kept))
    summary = json.loads((ctx.out / "dataset.json").read_text())
    assert summary["counts"] | {"rows": 240} == summary["counts"]
    assert summary["counts"]["not_kept"] + summary["counts"]["exported"] == 240


def test_a_uid_is_listed_as_often_as_it_repeats(memory_shards, memory_context):
    uids = [bytes([i]) * 16 for i in (9, 1, 5, 1)]
    repeats = pa.array([3, 1, 0, None], REPEATS.dtype)
    out = export(memory_context(), memory_shards(table(uids, repeats=repeats)))
    np.testing.assert_array_equal(out, plain([uids[0]] * 3 + [uids[1]] * 2))
    # How DataComp's resharder counts: two binary searches.
    (nine,) = plain([uids[0]])
    assert np.searchsorted(out, nine, "right") - np.searchsorted(out, nine, "left") == 3


def test_a_row_whose_image_failed_is_not_listed(memory_shards, memory_context):
    sizes = pa.array([10, None], IMAGE_BYTES.dtype)
    out = export(memory_context(), memory_shards(table([b"a" * 16, b"b" * 16], image_bytes=sizes)))
    np.testing.assert_array_equal(out, plain([b"a" * 16]))


@pytest.mark.parametrize("shards", [0, 2])
def test_a_pool_without_rows_is_an_empty_list(shards, memory_shards, memory_context):
    out = export(memory_context(), memory_shards(*[table([])] * shards))
    assert (len(out), out.dtype) == (0, np.dtype("u8,u8"))
