"""select.uid_list: who is named and how often, in both forms of a list; what is missing or bad."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.export.uid_list import UidList as Export
from clipmill.stages.ops.tables import uid_lists
from clipmill.stages.select.uid_list import UidList


def uid(number: int) -> bytes:
    return np.random.default_rng(number).bytes(16)


def table(numbers, **columns) -> pa.Table:
    return pa.table({"uid": pa.array(map(uid, numbers), pa.binary(16)), **columns})


@pytest.fixture(params=["npy", "txt"])
def write(request, tmp_path):
    """Writes the list in one of its forms; returns its path."""

    def write(uids: list[bytes]) -> str:
        path = tmp_path / f"list.{request.param}"
        if request.param == "npy":
            halves = [(int(u.hex()[:16], 16), int(u.hex()[16:], 16)) for u in uids]
            np.save(path, np.sort(np.array(halves, "u8,u8")))
        else:
            path.write_text("".join(f"{u.hex()}\n" for u in uids))
        return str(path)

    return write


@pytest.fixture
def listed(memory_shards, memory_context):
    """(keep, repeats, reason) of every row of the tables, each a shard, and the told numbers."""

    def run(path: str, *tables: pa.Table):
        ctx = memory_context()
        UidList(path=path).run(Inputs(rows=memory_shards(*tables)), ctx)
        told = json.loads((ctx.out / "list.json").read_text())
        rows = [row for table in ctx.stored for row in table.to_pylist()]
        return [(row["keep"], row["repeats"], row["reason"]) for row in rows], told

    return run


def test_a_row_stays_as_often_as_it_is_listed(write, listed):
    path = write([uid(n) for n in (5, 0, 2, 2, 2)])
    found, told = listed(path, table(range(3)), table([3, 4, 5, 2]))
    out = (False, None, "not_listed")
    once, thrice = (True, 1, None), (True, 3, None)
    assert found == [once, out, thrice, out, out, once, thrice]
    assert told == {"listed": 5, "uids": 3, "missing": 0, "least_missing": []}


@pytest.mark.parametrize("piece_bytes", [16, 96, 1 << 20])
def test_uids_are_counted_as_python_counts_them_in_pieces_of_any_size(
    piece_bytes, write, listed, monkeypatch
):
    monkeypatch.setattr(uid_lists, "PIECE_BYTES", piece_bytes)
    numbers = np.random.default_rng(1).integers(0, 60, 150).tolist()
    times = Counter(numbers)
    pool = range(20, 100)
    found, told = listed(write([uid(n) for n in numbers]), table(pool[:33]), table(pool[33:]))
    assert [repeats or 0 for _, repeats, _ in found] == [times[n] for n in pool]
    assert [keep for keep, _, _ in found] == [n in times for n in pool]
    missing = sorted(uid(n).hex() for n in times if n not in pool)
    assert told == {
        "listed": 150,
        "uids": len(times),
        "missing": len(missing),
        "least_missing": missing[:10],
    }


def test_a_row_dropped_before_or_without_image_stays_out_though_it_is_listed(write, listed):
    sizes = pa.array([10, 10, None, 10], pa.int64())
    rows = table(range(4), keep=[True, False, True, None], image_bytes=sizes)
    found, told = listed(write([uid(n) for n in range(4)]), rows)
    assert [reason for _, _, reason in found] == [
        None,
        "dropped_before",
        "undefined:image_bytes",
        "dropped_before",
    ]
    assert [repeats for _, repeats, _ in found] == [1, None, None, None]
    assert told["missing"] == 0


@pytest.mark.parametrize("numbers", [[], range(3)], ids=["an empty list", "a pool without rows"])
def test_nothing_is_named_where_there_is_nothing(numbers, write, listed):
    found, told = listed(write([uid(n) for n in numbers]), table([7] if not numbers else []))
    assert [reason for _, _, reason in found] == ([] if numbers else ["not_listed"])
    assert told["missing"] == len(numbers)


def test_what_export_uid_list_wrote_is_what_it_writes_again(
    listed, tmp_path, memory_shards, memory_context
):
    times = pa.array(np.random.default_rng(0).integers(0, 4, 80), pa.int32())
    rows, ctx, again = table(range(80), repeats=times), memory_context(), memory_context()
    Export().run(Inputs(rows=memory_shards(rows)), ctx)
    found, told = listed(str(ctx.out / "uids.npy"), rows.select(["uid"]))
    assert told["missing"] == 0
    keep, repeats, _ = zip(*found, strict=True)
    kept = table(range(80), keep=keep, repeats=pa.array(repeats, pa.int32()))
    Export().run(Inputs(rows=memory_shards(kept)), again)
    assert (again.out / "uids.npy").read_bytes() == (ctx.out / "uids.npy").read_bytes()


def test_lines_may_end_as_on_windows_be_in_capitals_blank_or_without_an_end(tmp_path, listed):
    first, second = uid(0).hex(), uid(1).hex().upper()
    (tmp_path / "it.txt").write_text(f"\ufeff{first}\r\n\n {second} \n\n{first}")
    found, told = listed(str(tmp_path / "it.txt"), table(range(2)))
    assert [repeats for _, repeats, _ in found] == [2, 1]
    assert told["listed"] == 3


@pytest.mark.parametrize("bad", [b"no uid", b"ab" * 15, b"\xff" * 32, b"ab" * 17, b"z" * 5000])
@pytest.mark.parametrize("piece_bytes", [40, 1 << 20])
def test_a_bad_line_is_named_by_file_and_row(bad, piece_bytes, tmp_path, listed, monkeypatch):
    monkeypatch.setattr(uid_lists, "PIECE_BYTES", piece_bytes)
    lines = [uid(n).hex().encode() for n in range(9)]
    (tmp_path / "it.txt").write_bytes(b"\n".join([*lines[:6], b"", bad, *lines[6:]]))
    with pytest.raises(StageError) as error:
        listed(str(tmp_path / "it.txt"), table(range(2)))
    assert "is no uid" in error.value.args[0]
    assert error.value.args[1] == f"{tmp_path}/it.txt, line 8"


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros(3, "u8"), "an array of uint64"),
        (np.zeros((3, 2), "u8"), "an array of uint64, shape (3, 2)"),
        (np.zeros((3, 2), "u8,u8"), "shape (3, 2)"),
        (np.array([{}, None], object), "an array of object"),
    ],
    ids=["halves", "pairs", "a matrix", "pickled"],
)
def test_another_array_is_refused_and_nothing_is_unpickled(array, says, tmp_path, listed):
    np.save(tmp_path / "it.npy", array, allow_pickle=True)
    with pytest.raises(StageError) as error:
        listed(str(tmp_path / "it.npy"), table(range(2)))
    assert says in error.value.args[0]
    assert "u8,u8" in error.value.args[2]


def test_a_list_that_is_cut_or_is_not_there_is_refused(tmp_path, listed):
    np.save(tmp_path / "it.npy", np.zeros(3, "u8,u8"))
    whole = (tmp_path / "it.npy").read_bytes()
    for size in (len(whole) - 1, 100, 8):
        (tmp_path / "it.npy").write_bytes(whole[:size])
        with pytest.raises(StageError, match=r"list of uids|its head says 3"):
            listed(str(tmp_path / "it.npy"), table(range(2)))
    with pytest.raises(StageError, match="no list of uids"):
        listed(str(tmp_path / "none.npy"), table(range(2)))


def test_a_list_that_changes_is_read_again(tmp_path):
    (tmp_path / "it.txt").write_text(uid(0).hex())
    stage = UidList(path=str(tmp_path / "it.txt"))
    before = stage.outside()
    (tmp_path / "it.txt").write_text(uid(0).hex() + "\n" + uid(1).hex())
    assert stage.outside() != before
