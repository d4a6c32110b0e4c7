"""ImageBased: DataComp's rule row for row, ties too; where targets come from; what is refused."""

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.models.reference import Reference
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.vectors import targets
from clipmill.stages.ops.vectors.matrices import from_matrix
from clipmill.stages.select import _targets, image_based
from clipmill.stages.select.image_based import ImageBased
from tests.stages.select.targets import MODEL, D, coarse, datacomp, pool, write_targets
from tests.stages.task_folders import picture


@pytest.fixture
def selected(memory_context, memory_shards):
    """The stored rows of a run over these tables, and what it says of targets."""

    def run(*tables: pa.Table, inputs=None, **settings):
        ctx = memory_context()
        stage = ImageBased(**settings)
        stage.run(Inputs(rows=memory_shards(*tables), **(inputs or {})), ctx)
        stored = pa.concat_tables(t.unify_dictionaries() for t in ctx.stored)
        assert {*stored["reason"].to_pylist()} <= {None, *stage.reasons}
        told = ctx.out / "targets.json"
        return stored, json.loads(told.read_text()) if told.exists() else None

    return run


def test_rows_with_ties_are_those_of_the_published_rule(files, selected):
    rng = np.random.default_rng(0)
    centroid_KD = coarse(rng, 300)
    centroid_KD[200:250] = centroid_KD[:50]  # copies: only the first of two can be nearest
    row_ND, target_MD = coarse(rng, 4_000), coarse(rng, 40)
    product_NK = row_ND.astype(np.float64) @ centroid_KD.T.astype(np.float64)
    assert ((product_NK == product_NK.max(axis=1)[:, None]).sum(axis=1) > 1).mean() > 0.1
    places = files(centroid_KD, one=target_MD[:25], two=target_MD[25:])
    out, told = selected(*(pool(row_ND)[at : at + 1_400] for at in (0, 1_400, 2_800)), **places)
    keep_N = datacomp(row_ND, target_MD, centroid_KD)
    assert out["keep"].to_pylist() == keep_N.tolist()
    assert 400 < keep_N.sum() < 3_600
    assert out["nearest_centroid"].to_pylist() == product_NK.argmax(axis=1).tolist()
    by_target = (target_MD.astype(np.float64) @ centroid_KD.T.astype(np.float64)).argmax(axis=1)
    near_N = np.bincount(by_target, minlength=300)[product_NK.argmax(axis=1)]
    assert out["targets_near"].to_pylist() == near_N.tolist()
    assert told["kept"] == keep_N.sum()
    for name, part in (("one", by_target[:25]), ("two", by_target[25:])):
        assert told["tasks"][name] == {
            "targets": len(part),
            "centroids": len(np.unique(part)),
            "kept": int(np.isin(product_NK.argmax(axis=1), part).sum()),
        }


def test_rows_of_any_length_are_decided_as_float64_decides(files, selected):
    rng = np.random.default_rng(1)
    row_ND = rng.standard_normal((4_000, D)) * 10.0 ** rng.integers(-9, 9, (4_000, 1))
    row_ND = row_ND.astype(np.float32)
    centroid_KD = (7 * rng.standard_normal((60, D))).astype(np.float32)
    centroid_KD[30:] = centroid_KD[:30] * np.float32(1 + 2**-22)  # a hair further, so always nearer
    target_MD = rng.standard_normal((20, D)).astype(np.float32)
    out, _ = selected(pool(row_ND), **files(centroid_KD, t=target_MD))
    assert out["keep"].to_pylist() == datacomp(row_ND, target_MD, centroid_KD).tolist()


def test_centroids_that_are_all_zero_have_no_cosine_and_one_product(files, selected):
    places = files(np.zeros((3, D)), t=np.ones((2, D)))
    with pytest.raises(StageError, match=r"all zero.*\n.*`nearest`.*\n.*inner_product"):
        selected(pool(np.ones((4, D), np.float32)), nearest="cosine", **places)
    out, _ = selected(pool(np.ones((4, D), np.float32)), **places)
    assert out["nearest_centroid"].to_pylist() == [0] * 4


def test_the_cosine_is_the_product_with_centroids_at_length_one(files, selected):
    rng = np.random.default_rng(2)
    row_ND, target_MD = coarse(rng, 2_000), coarse(rng, 30)
    row_ND, target_MD = (v[np.abs(v).sum(axis=1) > 0] for v in (row_ND, target_MD))
    centroid_KD = coarse(rng, 80)
    centroid_KD[3] = 0  # has no direction, and is nobody's nearest
    places = files(centroid_KD, t=target_MD)
    by_product, _ = selected(pool(row_ND), **places)
    out, _ = selected(pool(row_ND), **places, nearest="cosine")
    some = np.delete(np.arange(80), 3)
    wide_KD = centroid_KD[some].astype(np.float64)
    unit_KD = (wide_KD / np.linalg.norm(wide_KD, axis=1, keepdims=True)).astype(np.float32)
    assert out["keep"].to_pylist() == datacomp(row_ND, target_MD, unit_KD).tolist()
    assert out["keep"] != by_product["keep"]
    assert 3 not in out["nearest_centroid"].to_pylist()


def test_a_long_centroid_draws_rows_that_a_nearer_direction_does_not_get(files, selected):
    places = files([[1, 0], [3, 3]], t=[[0, 1]])  # the target's centroid is the long one
    row = pool(np.array([[1, 0.0]], np.float32))
    by_product, _ = selected(row, **places)  # 1 * 1 < 1 * 3
    by_cosine, _ = selected(row, **places, nearest="cosine")
    assert [out["keep"].to_pylist() for out in (by_product, by_cosine)] == [[True], [False]]


def test_another_at_least_is_a_query_on_what_is_stored(files, selected):
    rng = np.random.default_rng(3)
    rows = pool(coarse(rng, 2_000))
    places = files(coarse(rng, 30), t=coarse(rng, 60))
    out, _ = selected(rows, **places)
    stage = ImageBased(**places)
    (threshold,) = stage.thresholds()
    assert (threshold.name, threshold.column, threshold.value) == ("at_least", "targets_near", 1)
    values = [Decimal(v) for v in (0, 1, 3)]
    answers = list(stage.verdicts(threshold, values, rows, out))
    for value, answer in zip((1, 3), answers[1:], strict=True):
        again, _ = selected(rows, **places, at_least=value)
        assert answer.keep.tolist() == again["keep"].to_pylist()
        assert again["targets_near"] == out["targets_near"]
    sizes = [answer.keep.sum() for answer in answers]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    with pytest.raises(ValueError, match="at_least is -1"):
        list(stage.verdicts(threshold, [Decimal(-1)], rows, out))


def test_rows_that_stay_out_have_no_value_and_say_why(files, selected):
    row_ND = np.array([[1, 0], [1, 0], [1, 0], [np.nan, 1], [0, 0], [0, 1], [1, 0]], np.float32)
    keep = pa.array([True, False, None, True, True, True, True])
    rows = pool(row_ND, keep=keep, image_bytes=pa.array([1, 1, 1, 1, 1, 1, None], pa.int64()))
    out, told = selected(rows, **files([[1, 0], [0, 1]], t=[[2, 1]]))
    assert out["reason"].to_pylist() == [
        *(None, "dropped_before", "dropped_before"),
        *["undefined:image_embedding"] * 2,
        *("too_few_targets", "undefined:image_bytes"),
    ]
    assert out["targets_near"].to_pylist() == [1, None, None, None, None, 0, None]
    assert out["nearest_centroid"].to_pylist() == [0, None, None, None, None, 1, None]
    assert (told["rows"], told["kept"]) == (2, 1)
    row = {"targets_near": 0, "nearest_centroid": 1}
    said = ImageBased(targets="t", centroids="c").explain("too_few_targets", row)
    assert said == "its nearest centroid, 1, is the nearest of 0 targets"


def test_pictures_of_tasks_are_embedded_by_the_model(tasks, files, selected):
    seen = Reference().embed_images([decode(picture(number)) for number in range(20)])
    places = files(seen[:5]) | {"targets": str(tasks)}
    out, told = selected(pool(seen), **places, model="reference")
    assert all(out["keep"].to_pylist())
    assert {name: task["targets"] for name, task in told["tasks"].items()} == {
        "colours": 20,
        "words": 7,
    }


def test_one_parquet_of_embeddings_is_a_task_of_its_own(tmp_path, files, selected):
    places = files(np.eye(2), other=[[0, 1]])
    alone = write_targets(tmp_path / "imagenet.parquet", [[1, 0.1], [2, 0]])
    out, told = selected(pool(np.eye(2, dtype=np.float32)), **places | {"targets": alone})
    assert out["keep"].to_pylist() == [True, False]
    assert told["tasks"] == {"imagenet": {"targets": 2, "centroids": 1, "kept": 1}}
    assert told["model"] == MODEL


def test_a_long_file_is_compared_in_pieces_across_its_row_groups(
    tmp_path, files, selected, monkeypatch
):
    monkeypatch.setattr(targets, "SPAN", 300)
    monkeypatch.setattr(targets, "ROWS", 70)
    monkeypatch.setattr(_targets, "ROWS", 70)
    rng = np.random.default_rng(6)
    vectors = coarse(rng, 1_000) + np.float32(0.125)  # none is zero
    places = files(coarse(rng, 40))
    places["targets"] = write_targets(tmp_path / "t.parquet", vectors)
    table = pq.read_table(places["targets"])
    pq.write_table(table, places["targets"], row_group_size=260)
    out, told = selected(pool(vectors), **places)
    assert told["tasks"]["t"]["targets"] == 1_000
    count = np.bincount(out["nearest_centroid"].to_numpy(), minlength=40)
    assert out["targets_near"].to_pylist() == count[out["nearest_centroid"].to_numpy()].tolist()
    vectors[777] = 0
    bad = table.set_column(0, "image_embedding", from_matrix(vectors))
    pq.write_table(bad, places["targets"], row_group_size=260)
    with pytest.raises(StageError, match="zero or not finite") as error:
        selected(pool(vectors), **places)
    assert "t.parquet, row 777" in str(error.value)


def test_models_that_differ_are_refused_in_one_sentence(tmp_path, files, selected):
    rows = pool(np.eye(2, dtype=np.float32))
    cases = [
        (files(np.eye(2), t=np.eye(2)), {"model_of": {"image_embedding": "other"}}, "targets"),
        (files(np.eye(2), "other", t=np.eye(2)), {}, "targets"),
        (
            files(np.eye(2), "other", t=np.eye(2)),
            {"model_of": {"image_embedding": MODEL}},
            "`centroids` is",
        ),
    ]
    for places, inputs, said in cases:
        with pytest.raises(StageError, match="is of model") as error:
            selected(rows, **places, inputs=inputs)
        assert all(word in str(error.value) for word in (said, "'other'", f"'{MODEL}'"))


@pytest.mark.parametrize(
    ("vectors", "model", "found"),
    [
        (np.eye(3), MODEL, "embeddings 3 wide, and the centroids are 2 wide"),
        (np.eye(2), None, "t.parquet does not say which model made its 'image_embedding'"),
        ([[1, 0], [0, 0]], MODEL, "an embedding that is zero or not finite"),
        (np.empty((0, 2)), MODEL, "no target in 't'"),
    ],
    ids=["width", "model", "zero", "empty"],
)
def test_targets_that_cannot_be_are_refused(tmp_path, files, selected, vectors, model, found):
    places = files(np.eye(2))
    places["targets"] = write_targets(tmp_path / "t.parquet", vectors, model)
    with pytest.raises(StageError) as error:
        selected(pool(np.eye(2, dtype=np.float32)), **places)
    assert found in str(error.value)
    assert "key `targets`" in str(error.value)


def export(folder, columns: dict, *tables: pa.Table) -> str:
    """A folder as export.parquet leaves it."""
    (folder / "out").mkdir(parents=True)
    held = []
    for number, table in enumerate(tables):
        file = f"{number:05d}.parquet"
        pq.write_table(table, folder / "out" / file)
        held.append({"file": file, "rows": len(table), "sha256": str(number)})
    about = {"format": "parquet", "columns": list(columns.items()), "files": held}
    (folder / "out" / "dataset.json").write_text(json.dumps(about))
    return str(folder)


VECTORS = {"uid": "binary", "image_embedding": "list"}


def test_rows_of_an_export_without_an_embedding_are_no_targets(tmp_path, files, selected):
    some = pool(np.array([[0, 2], [np.nan, 0]], np.float32)), pool(np.array([[0, 1.0]], np.float32))
    folder = export(tmp_path / "vectors", VECTORS, *some)
    places = files(np.eye(2)) | {"targets": "stage:vectors"}
    inputs = {"targets": folder, "target_model_of": {"image_embedding": MODEL}}
    out, told = selected(pool(np.eye(2, dtype=np.float32)), **places, inputs=inputs)
    assert out["targets_near"].to_pylist() == [0, 2]
    assert told["tasks"] == {"vectors": {"targets": 2, "centroids": 1, "kept": 1}}
    assert told["model"] == MODEL


@pytest.mark.parametrize(
    ("columns", "tables", "more", "found"),
    [
        ({"uid": "binary"}, [], {}, "no column 'image_embedding' in the export"),
        (VECTORS, [], {}, "no target in 'the export'"),
        (VECTORS, [np.full((3, 2), np.nan)], {}, "no target in 'vectors'"),
        (VECTORS, [np.zeros((1, 2))], {}, "an embedding that is zero or not finite"),
        (VECTORS, [np.eye(3)], {}, "embeddings 3 wide, and the centroids are 2 wide"),
        (VECTORS, [np.eye(2)], {"model_of": "other"}, f"`targets` is of model '{MODEL}', and"),
    ],
    ids=["column", "files", "rows", "zero", "width", "model"],
)
def test_an_export_that_cannot_be_targets_is_refused(
    tmp_path, files, selected, columns, tables, more, found
):
    folder = export(tmp_path / "vectors", columns, *(pool(t.astype(np.float32)) for t in tables))
    inputs = {"targets": folder, "target_model_of": {"image_embedding": MODEL}}
    inputs |= {name: {"image_embedding": model} for name, model in more.items()}
    places = files(np.eye(2)) | {"targets": "stage:vectors"}
    with pytest.raises(StageError) as error:
        selected(pool(np.eye(2, dtype=np.float32)), **places, inputs=inputs)
    assert found in str(error.value)
    assert "key `targets`: stage:vectors" in str(error.value)


def test_targets_of_another_format_than_parquet_are_refused(tmp_path, files, selected):
    folder = export(tmp_path / "vectors", VECTORS)
    about = Path(folder) / "out" / "dataset.json"
    about.write_text(about.read_text().replace("parquet", "csv"))
    places = files(np.eye(2)) | {"targets": "stage:vectors"}
    with pytest.raises(StageError, match=r"a csv export\n.*key `targets`"):
        selected(pool(np.eye(2, dtype=np.float32)), **places, inputs={"targets": folder})


def test_rows_of_another_width_than_the_centroids_are_refused(files, selected):
    with pytest.raises(StageError, match="embeddings 3 wide, and the centroids are 2 wide"):
        selected(pool(np.eye(3, dtype=np.float32)), **files(np.eye(2), t=np.eye(2)))


def test_a_folder_without_targets_and_pictures_without_a_model_are_refused(
    tmp_path, tasks, files, selected
):
    rows, places = pool(np.eye(2, dtype=np.float32)), files(np.eye(2))
    with pytest.raises(StageError, match="no task"):
        selected(rows, **places)
    with pytest.raises(StageError, match="pictures, and nothing that makes a 'image_embedding'"):
        selected(rows, **places | {"targets": str(tasks)})


def test_what_is_not_there_stops_before_anything_runs(tmp_path, files):
    places = files(np.eye(2), t=np.eye(2))
    ImageBased(**places).look()
    for name in places:
        with pytest.raises(StageError, match="no file"):
            ImageBased(**places | {name: str(tmp_path / "nowhere")}).look()
    (tmp_path / "imagenet.npy").write_bytes(b"")
    with pytest.raises(StageError, match=r"'imagenet.npy' is no Parquet file"):
        ImageBased(**places | {"targets": str(tmp_path / "imagenet.npy")}).look()
    with pytest.raises(RecipeError, match="an export has embeddings"):
        ImageBased(targets="stage:x", centroids="c", model="reference")


def test_a_shard_without_rows_or_without_an_embedding_is_no_mistake(files, selected):
    nothing = np.full((2, 2), np.nan, np.float32)
    places = files(np.eye(2), t=np.eye(2))
    out, told = selected(pool(nothing[:0]), pool(nothing), **places)
    assert out["reason"].to_pylist() == ["undefined:image_embedding"] * 2
    assert told["kept"] == 0


def test_a_summary_that_could_not_be_stored_is_the_same_at_the_next_try(monkeypatch):
    near = _targets.TargetCounts(np.array([2]), np.ones((1, 1), bool))
    monkeypatch.setattr(_targets, "target_counts", lambda targets: near)
    monkeypatch.setattr(image_based, "put_json", lambda name, value, task: value)
    item = {"column": "image_embedding", "rows": 3, "kept": 1, "kept_T": [1], "tasks": {"a": 2}}
    first, second = (image_based.put_summary(None, 1, item, None) for _ in range(2))
    assert first == second
    assert first["tasks"] == {"a": {"targets": 2, "centroids": 1, "kept": 1}}
