"""DataComp: published columns, embeddings beside them, and what disagrees."""

import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.fingerprint import settings_of
from clipmill.metadata.uid import uid_of
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import ShardError, StageError
from clipmill.stages.ingest import datacomp
from clipmill.stages.ingest.datacomp import WIDTHS, DataComp, read, scan
from clipmill.stages.ops.tables.pools import list_files
from clipmill.stages.select.where import Where

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


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"uid": [str(i) for i in range(ROWS)]}, "7 of the first 7 values of 'uid' are no uid of"),
        ({"original_width": ["wide"] * ROWS}, "'original_width' are no int32: 'wide'"),
    ],
)
def test_a_file_that_is_none_of_datacomp_stops_the_stage(tmp_path, run, changed, found):
    pq.write_table(metadata(**changed), tmp_path / "0.parquet")
    with pytest.raises(StageError) as error:
        run(DataComp(path=str(tmp_path)))
    assert found in error.value.args[0]
    assert error.value.args[1] == str(tmp_path / "0.parquet")
    assert "ingest.parquet" in error.value.args[2]


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


B32, L14, FACES = SCORES


@pytest.mark.parametrize("name", SCORES)
def test_a_score_that_a_stage_reads_is_required_and_one_that_none_reads_is_null(
    name, tmp_path, run
):
    pq.write_table(metadata(**SCORES), tmp_path / "0.parquet")
    pq.write_table(metadata(**SCORES | {name: None}), tmp_path / "1.parquet")
    stage = DataComp(path=str(tmp_path), scores=True)
    with pytest.raises(StageError, match=f"no column '{name}'") as error:
        run(stage, wanted=frozenset({"text", name}))
    assert error.value.args[1] == f"{tmp_path}/1.parquet"
    _, second = run(stage, wanted=frozenset(SCORES) - {name}).shards
    assert [other for other in SCORES if second[other].null_count == ROWS] == [name]
    assert second["reason"].null_count == ROWS


@pytest.mark.parametrize(
    ("stored", "said", "do"),
    [
        (pa.float64(), "float32", "score_type: float64"),
        (pa.float32(), "float64", "score_type: float32"),
        (pa.float16(), "float32", "store it as float32 or float64"),
        (pa.string(), "float64", "store it as float32 or float64"),
    ],
)
def test_scores_of_another_type_than_is_said_are_refused_where_they_are_read(
    stored, said, do, tmp_path, run
):
    values = np.full(ROWS, 0.25, np.float16) if stored == pa.float16() else [0.25] * ROWS
    values = pa.array(map(str, values)) if stored == pa.string() else pa.array(values, stored)
    other = pa.array([0.25] * ROWS, said)
    pq.write_table(metadata(**SCORES | {B32: values, L14: other}), tmp_path / "0.parquet")
    stage = DataComp(path=str(tmp_path), scores=True, score_type=said)
    with pytest.raises(StageError, match=f"'{B32}' is ") as error:
        run(stage, wanted=frozenset({B32}))
    assert do in error.value.args[2]
    (rows,) = run(stage, wanted=frozenset({L14})).shards
    assert rows[B32].null_count == ROWS, "never rounded"
    assert rows[L14].to_pylist() == [0.25] * ROWS


def test_scores_of_two_types_are_refused_by_plan_with_both_names_and_a_way(tmp_path, clipmill):
    values = [0.1, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7]
    scores = {B32: pa.array(values, pa.float64()), L14: pa.array(values, pa.float32())}
    pool = tmp_path / "pool"
    pool.mkdir()
    pq.write_table(metadata(**SCORES | scores), pool / "0.parquet")
    recipe = tmp_path / "recipe.yaml"
    select = f"  both: {{uses: select.where, from: pool, where: {B32} >= .25 AND {L14} >= .25}}\n"
    root = f"  pool: {{uses: ingest.datacomp, path: {pool}, scores: true}}\n"
    recipe.write_text("stages:\n" + root + select)
    said = clipmill("plan", recipe)
    assert said.code == 2
    assert f"'{B32}' is double and '{L14}' is float" in said.err
    assert "ingest.datacomp  does not fit its settings" in said.out
    extra = f"{{{B32}: double, {L14}: float}}"
    assert f"ingest.parquet with extra: {extra}" in said.err
    root = f"  pool: {{uses: ingest.parquet, path: {pool}, url_col: url, extra: {extra}}}\n"
    recipe.write_text("stages:\n" + root + select)
    assert clipmill("run", recipe, "--out", tmp_path / "run", "--workers", 0).code == 0
    recipe.write_text(recipe.read_text().replace(f" AND {L14} >= .25", ""))
    one = recipe.read_text().replace("ingest.parquet", "ingest.datacomp").partition(", url_col")
    recipe.write_text(
        f"{one[0]}, scores: true, score_type: float64}}\n{select.split(' AND ')[0]}}}\n"
    )
    assert clipmill("plan", recipe).code == 0  # nothing reads the other


def test_a_float64_just_under_a_cut_stays_under_it(
    tmp_path, pool_of, memory_shards, memory_context
):
    """Rounded to float32 it would be the cut, and pass."""
    under = np.nextafter(0.28, 0)
    assert np.float32(under) == np.float32(0.28)
    values = pa.array([under, 0.28, np.nextafter(0.28, 1), 0.1, 0.9, 0.28, 0], pa.float64())
    pq.write_table(metadata(**SCORES | {B32: values, L14: values}), tmp_path / "0.parquet")
    rows = pool_of(DataComp(path=str(tmp_path), scores=True, score_type="float64"))
    assert rows[B32].to_pylist() == values.to_pylist()
    ctx = memory_context()
    Where(where=f"{B32} >= 0.28").run(Inputs(rows=memory_shards(rows)), ctx)
    assert ctx.stored[0]["keep"].to_pylist() == [False, True, True, False, True, True, False]


def test_a_column_of_scores_without_a_value_has_no_type(tmp_path, pool_of):
    pq.write_table(metadata(**SCORES | {B32: pa.nulls(ROWS)}), tmp_path / "0.parquet")
    assert pool_of(DataComp(path=str(tmp_path), scores=True))[B32].null_count == ROWS


def test_what_was_stored_before_there_was_a_score_type_stays_good():
    assert "score_type" not in settings_of(DataComp(path="", scores=True))
    assert settings_of(DataComp(path="", score_type="float64"))["score_type"] == "float64"


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
        embeddings(b32_img=np.full((ROWS, 512), "a")),
        {"other": np.zeros(1)},
        None,
    ],
    ids=["a row short", "another width", "pickled", "of text", "no such array", "no file"],
)
def test_embeddings_that_do_not_belong_to_the_rows_fail_the_shard_by_name(pool, run, arrays):
    stage = DataComp(path=str(pool))
    (source,) = run(stage).sources
    (pool / "0000.npz").unlink()
    if arrays is not None:
        np.savez(pool / "0000.npz", **arrays)
    with pytest.raises(ShardError, match=r"0000\.npz"):
        stage.load_virtual(["b32_img"], source)


@pytest.mark.parametrize("shape", ["(100000, 768)", "(100000, 768", "(1,)" * 20])
def test_of_embeddings_that_state_another_shape_no_more_is_read(pool, run, shape):
    """150 MB of zeros that take 150 kB."""
    stage = DataComp(path=str(pool))
    (source,) = run(stage).sources
    head = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}}}".ljust(235) + "\n"
    with zipfile.ZipFile(pool / "0000.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as npz:
        npz.writestr("b32_img.npy", b"\x93NUMPY\x01\0\xec\0" + head.encode() + bytes(153_600_000))
    tracemalloc.start()
    try:
        with pytest.raises(ShardError, match=r"0000\.npz"):
            stage.load_virtual(["b32_img"], source)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


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


def test_batches_are_the_same_however_many_are_read_at_once(tmp_path, monkeypatch):
    """Their bounds and dictionaries decide the bytes that are stored."""
    rows = 9000
    number = np.arange(rows)
    columns = {
        "uid": [f"{i:032x}" if i % 4000 else "none" for i in range(rows)],
        "url": [f"http://a/{i}" if i % 1700 else None for i in range(rows)],
        "text": [f"caption {i}" for i in range(rows)],
        "original_width": pa.array(np.where(number == 5000, 0.5, number)),
        "original_height": pa.array(number),
        "sha256": ["ab" * 32] * rows,
    }
    pq.write_table(pa.table(columns), tmp_path / "0.parquet", row_group_size=5001)
    stage = DataComp(path=str(tmp_path), shard_rows=1500)
    (file,) = list_files(stage.path, (".parquet",), "pool")
    groups = scan(stage, file, None)["groups"]

    def batches(at_once: int) -> list[list[pa.Table]]:
        monkeypatch.setattr(datacomp, "AT_ONCE", at_once)
        return [list(tables) for group in groups for tables in read(stage, group, None)]

    one, eight = batches(1), batches(8)
    assert [list(map(len, tables)) for tables in one][:2] == [[0, 1024, 476], [0, 548, 952]]
    assert len(one) == len(eight) == 6
    for tables, others in zip(one, eight, strict=True):
        assert tables == others
        for mine, other in zip(tables, others, strict=True):
            held, theirs = (t["reason"].combine_chunks().dictionary for t in (mine, other))
            assert held.equals(theirs)
