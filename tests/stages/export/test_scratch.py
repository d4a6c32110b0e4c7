"""Rows on scratch disk: any order of them, whatever their pictures, and nothing left behind."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.export import _groups as scratch


@pytest.fixture
def rows(pool) -> pa.Table:
    """With rows that have no picture, an empty one, and a picture column in the middle."""
    images = pool["image"].to_pylist()
    images[3] = b""
    return pool.set_column(1, "image", pa.chunked_array([images[:9], images[9:]], pa.binary()))


@pytest.mark.parametrize("batch_bytes", [1, 3000, 1 << 30])
def test_rows_come_in_any_order_and_several_times(rows, tmp_path, monkeypatch, batch_bytes):
    monkeypatch.setattr(scratch, "BATCH_BYTES", batch_bytes)
    plain = rows.set_column(6, "language", rows["language"].cast(pa.string()))
    tables = [plain.slice(start, 50) for start in range(0, 240, 50)]  # whose arrays have offsets
    number_K = np.random.default_rng(0).integers(0, 240, 300)
    with scratch.on_scratch(iter(tables), tmp_path / "group") as stored:
        assert stored.schema == plain.schema
        assert stored.take(number_K).equals(plain.take(pa.array(number_K)))
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image", [b"", None])
def test_pictures_may_all_be_empty_or_missing(rows, tmp_path, image):
    none = pa.table({"uid": rows["uid"], "image": pa.array([image] * 240, pa.binary())})
    with scratch.on_scratch(iter([none]), tmp_path / "group") as stored:
        assert stored.take(np.array([239, 0])).equals(none.take(pa.array([239, 0])))


def test_rows_need_no_picture(rows, tmp_path):
    texts = rows.select(["uid", "text"])
    with scratch.on_scratch(iter([texts]), tmp_path / "group") as stored:
        assert stored.take(np.array([7, 5])).equals(texts.take(pa.array([7, 5])))


def test_pictures_beyond_32_bits_come_in_several_pieces(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "MOST_BYTES", 2000)
    wanted = rows.select(["uid", "image"])
    with scratch.on_scratch(iter([wanted]), tmp_path / "group") as stored:
        found = stored.take(np.arange(240)[::-1])
    assert found["image"].num_chunks > 3
    assert found["image"].to_pylist() == wanted["image"].to_pylist()[::-1]


def test_scratch_is_given_back_where_reading_fails(rows, tmp_path):
    def broken():
        yield rows.select(["uid", "image"])
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"), scratch.on_scratch(broken(), tmp_path / "group"):
        pass
    assert list(tmp_path.iterdir()) == []
