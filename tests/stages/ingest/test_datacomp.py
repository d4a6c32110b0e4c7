"""DataComp: published columns, embeddings beside them, and what disagrees."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metadata.uid import uid_of
from pipeline.errors import ShardError, StageError
from stages.ingest.datacomp import WIDTHS, DataComp

ROWS = 7


def metadata(**changed) -> pa.Table:
    columns = {
        "uid": [f"{i:032x}" for i in range(ROWS)],
        "url": [f"http://a/{i}" for i in range(ROWS)],
        "text": [f"caption {i}" for i in range(ROWS)],
        "original_width": pa.array(range(ROWS), pa.int64()),
        "original_height": pa.array(range(ROWS), pa.int32()),
        "sha256": ["ab" * 32] * ROWS,
    }
    return pa.table({name: it for name, it in {**columns, **changed}.items() if it is not None})


SCORES = {
    "clip_b32_similarity_score": pa.array([0.1, 0.2, 0.28, 0.3, None, float("nan"), 0], "float32"),
    "clip_l14_similarity_score": pa.array([0.1] * ROWS, "float32"),
    "face_bboxes": [[[0.25, 0.5, 0.75, 1.0]], [], None, [], [], [], []],
}


def embeddings(rows: int = ROWS, **changed) -> dict:
    def rng(width: int):
        return np.random.default_rng(width).standard_normal((rows, width))

    return {name: rng(width).astype(np.float16) for name, width in WIDTHS.items()} | changed


@pytest.fixture
def pool(tmp_path):
    pq.write_table(metadata(), tmp_path / "0000.parquet", row_group_size=2)
    np.savez(tmp_path / "0000.npz", **embeddings())
    return tmp_path


def test_published_columns_come_in_their_declared_types(pool, pool_of):
    rows = pool_of(DataComp(path=str(pool)))
    assert rows["uid"].to_pylist() == [i.to_bytes(16) for i in range(ROWS)]
    assert rows["original_width"].to_pylist() == list(range(ROWS))
    assert rows["sha256"].to_pylist() == ["ab" * 32] * ROWS
    assert rows["reason"].null_count == ROWS


def test_uids_may_be_sixteen_bytes(tmp_path, pool_of):
    uid = pa.array([bytes([i]) * 16 for i in range(ROWS)], pa.binary(16))
    pq.write_table(metadata(uid=uid), tmp_path / "0.parquet")
    assert pool_of(DataComp(path=str(tmp_path)))["uid"].to_pylist() == uid.to_pylist()


def test_what_the_pool_does_not_say_is_null_and_no_fault(tmp_path, pool_of):
    pq.write_table(metadata(sha256=None, original_width=None), tmp_path / "0.parquet")
    rows = pool_of(DataComp(path=str(tmp_path)))
    assert rows["sha256"].null_count == rows["original_width"].null_count == ROWS
    assert rows["reason"].null_count == ROWS


def test_scores_are_the_float32_that_was_published(tmp_path, pool_of):
    pq.write_table(metadata(**SCORES), tmp_path / "0.parquet")
    rows = pool_of(DataComp(path=str(tmp_path), scores=True))
    name = "clip_b32_similarity_score"
    assert rows[name].combine_chunks().view(pa.int32()).equals(SCORES[name].view(pa.int32()))
    assert rows["face_bboxes"].to_pylist() == SCORES["face_bboxes"]


def test_scores_that_are_asked_for_and_missing_stop_the_stage(pool, run):
    with pytest.raises(StageError, match="clip_b32_similarity_score"):
        run(DataComp(path=str(pool), scores=True))


def test_a_row_with_a_bad_uid_or_no_url_keeps_its_place_with_a_reason(tmp_path, pool_of):
    uid = [{1: "12", 2: None}.get(i, f"{i:032x}") for i in range(ROWS)]
    url = [f"http://a/{i}" if i != 4 else None for i in range(ROWS)]
    pq.write_table(metadata(uid=uid, url=url), tmp_path / "0.parquet")
    rows = pool_of(DataComp(path=str(tmp_path)))
    assert rows["uid"][1].as_py() == uid_of("http://a/1", "caption 1")
    assert rows["reason"].to_pylist() == [None, "bad_uid", "bad_uid", None, "no_url", None, None]


@pytest.mark.parametrize("shard_rows", [1, 3, 100])
def test_embeddings_are_exact_in_the_rows_of_the_shard(pool, run, shard_rows):
    stage = DataComp(path=f"{pool}/*.parquet", shard_rows=shard_rows)
    found = [stage.load_virtual(["l14_img"], source) for source in run(stage).sources]
    assert [table.column_names for table in found] == [["l14_img"]] * len(found)
    rows = pa.concat_tables(found)["l14_img"]
    declared = next(column for column in stage.virtual if column.name == "l14_img")
    assert rows.type == declared.dtype
    stored = np.array(rows.to_pylist(), np.float32)
    np.testing.assert_array_equal(stored, embeddings()["l14_img"].astype(np.float32))


def test_only_the_arrays_that_are_asked_for_are_read(pool, run):
    stage = DataComp(path=str(pool))
    (source,) = run(stage).sources
    np.savez(pool / "0000.npz", b32_img=embeddings()["b32_img"])
    assert len(stage.load_virtual(["b32_img"], source)) == ROWS
    with pytest.raises(ShardError, match="b32_txt"):
        stage.load_virtual(["b32_txt"], source)


@pytest.mark.parametrize(
    "arrays",
    [
        embeddings(rows=ROWS - 1),
        embeddings(b32_img=np.zeros((ROWS, 768), np.float16)),
        embeddings(b32_img=np.array([{}] * ROWS, object)),
        None,
    ],
    ids=["a row short", "another width", "pickled", "no file"],
)
def test_embeddings_that_do_not_belong_to_the_rows_fail_the_shard_by_name(pool, run, arrays):
    stage = DataComp(path=str(pool))
    (source,) = run(stage).sources
    (pool / "0000.npz").unlink()
    if arrays is not None:
        np.savez(pool / "0000.npz", **arrays)
    with pytest.raises(ShardError, match=r"0000\.npz"):
        stage.load_virtual(["b32_img"], source)


def test_new_embeddings_change_the_digest(pool, run):
    stage = DataComp(path=str(pool))
    (before,) = run(stage).sources
    np.savez_compressed(pool / "0000.npz", **embeddings())
    (after,) = run(stage).sources
    assert before["digest"] != after["digest"]


def test_a_truncated_parquet_fails_its_shard_alone(pool, run):
    data = (pool / "0000.parquet").read_bytes()
    (pool / "0001.parquet").write_bytes(data[:-100])
    (pool / "0002.parquet").write_bytes(data)
    shards = run(DataComp(path=str(pool), shard_rows=100)).shards
    assert [isinstance(shard, ShardError) for shard in shards] == [False, True, False]


def test_a_pool_of_embeddings_only_is_empty(tmp_path, run):
    np.savez(tmp_path / "0.npz", **embeddings())
    with pytest.raises(StageError, match="no file"):
        run(DataComp(path=str(tmp_path)))
