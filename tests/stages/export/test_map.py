"""export.map: places, neighbours and thumbnails of every row, against plain NumPy over all rows."""

import json
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.export import map as export_map
from clipmill.stages.export._map import moments, nearest_rows, on_plane, plane_of
from clipmill.stages.export.map import Map
from clipmill.stages.ops.vectors.matrices import from_matrix, unit_rows

D = 6


@pytest.fixture
def clustered(pool) -> pa.Table:
    """The pool with vectors of three clusters: some null, zero or NaN, some without a cluster."""
    rng = np.random.default_rng(0)
    cluster_N = rng.integers(0, 3, len(pool))
    row_ND = 3 * np.eye(3, D)[cluster_N] + rng.standard_normal((len(pool), D))
    row_ND[[5, 60]], row_ND[6, 2] = 0, np.nan
    row_ND[100] = row_ND[101]
    null_N = np.zeros(len(pool), bool)
    null_N[[6, 7, 8]] = True
    cluster = [None if i % 50 == 9 else int(number) for i, number in enumerate(cluster_N)]
    pool = pool.append_column("image_embedding", from_matrix(row_ND.astype(np.float32), null_N))
    return pool.append_column("cluster_id", pa.array(cluster, pa.int32()))


def exported(ctx, shards, **settings) -> pa.Table:
    Map(**settings).run(Inputs(rows=shards), ctx)
    return pq.read_table(ctx.out / "map.parquet")


def on_map(pool: pa.Table) -> np.ndarray:
    """The rows of the pool that can be drawn, in the order of the file."""
    unit_ND = unit_rows(np.array(filled(pool)))
    fine_N = np.isfinite(unit_ND).all(axis=1) & pool["cluster_id"].is_valid().to_numpy()
    uids = pool["uid"].to_pylist()
    return np.array(sorted(np.flatnonzero(fine_N), key=uids.__getitem__))


def filled(pool: pa.Table) -> list[list[float]]:
    return [row or [0.0] * D for row in pool["image_embedding"].to_pylist()]


SCHEMA = pa.schema(
    {
        "x": pa.float32(),
        "y": pa.float32(),
        "thumbnail": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "caption": pa.string(),
        "cluster": pa.int32(),
        "kept": pa.bool_(),
        "uid": pa.string(),
        "score": pa.float32(),
        "language": pa.string(),
        "neighbors": pa.struct({"ids": pa.list_(pa.int32()), "distances": pa.list_(pa.float32())}),
    }
)


def test_columns_and_values_are_those_of_the_rows(clustered, memory_shards, memory_context):
    shards = memory_shards(clustered[:100], clustered[100:100], clustered[100:])
    ctx = memory_context()
    found = exported(ctx, shards, columns=("score", "language"))
    expected = clustered.take(on_map(clustered))
    assert dict(zip(found.column_names, found.schema.types, strict=True)) == dict(
        zip(SCHEMA.names, SCHEMA.types, strict=True)
    )
    assert found["uid"].to_pylist() == [uid.hex() for uid in expected["uid"].to_pylist()]
    assert found["caption"].to_pylist() == expected["text"].to_pylist()
    assert found["cluster"].to_pylist() == expected["cluster_id"].to_pylist()
    assert found["kept"].to_pylist() == expected["keep"].fill_null(False).to_pylist()
    np.testing.assert_array_equal(found["score"], expected["score"])
    assert found["language"].to_pylist() == expected["language"].to_pylist()
    said = json.loads((ctx.out / "dataset.json").read_text())
    assert said["counts"] == {
        "rows": 240,
        "exported": len(expected),
        "not_kept": 0,
        "no_embedding": 5,
        "no_cluster": 5,
        "beyond_rows": 0,
    }
    assert said["files"][0]["rows"] == len(expected)
    assert "embedding-atlas map.parquet --x x" in (ctx.out / "README.md").read_text()


def test_a_pools_own_column_named_range_leaves(clustered, memory_shards, memory_context):
    rows = clustered.append_column("range", pa.array(np.arange(240) // 9))
    found = exported(memory_context(), memory_shards(rows), columns=("range",), neighbors=1)
    assert found["range"].to_pylist() == (on_map(clustered) // 9).tolist()


def test_no_picture_that_a_stage_calls_unsafe_is_on_the_map(
    clustered, memory_shards, memory_context
):
    scores = np.full((2, len(clustered)), 0.1, np.float32)
    scores[0, :40], scores[1, 40:80] = 0.3, 0.6
    tag = ["NSFW" if 80 <= n < 120 else "UNLIKELY" for n in range(len(clustered))]
    scored = clustered.append_column("nsfw_score", pa.array(scores[0]))
    scored = scored.append_column("punsafe", pa.array(scores[1]))
    scored = scored.append_column("safety_tag", pa.array(tag))
    before, found = (
        exported(memory_context(), memory_shards(rows))["thumbnail"].is_valid().to_numpy()
        for rows in (clustered, scored)
    )
    row_N = on_map(clustered)
    assert before[row_N < 120].sum() > 60
    assert not found[row_N < 120].any()
    assert (found == before)[row_N >= 120].all()


def test_places_are_the_principal_components(clustered, memory_shards, memory_context):
    found = exported(memory_context(), memory_shards(clustered[:31], clustered[31:]))
    unit_ND = unit_rows(np.array(filled(clustered)))[on_map(clustered)].astype(np.float64)
    centred_ND = unit_ND - unit_ND.mean(axis=0)
    _, _, axis_DD = np.linalg.svd(centred_ND)
    for axis_D, name in zip(axis_DD[:2], ("x", "y"), strict=True):
        axis_D = axis_D * np.sign(axis_D[np.abs(axis_D).argmax()])
        np.testing.assert_allclose(found[name].to_numpy(), centred_ND @ axis_D, atol=1e-4)
    assert found["x"].to_numpy().std() > found["y"].to_numpy().std()


def test_neighbours_are_the_nearest_of_the_cluster(clustered, memory_shards, memory_context):
    found = exported(memory_context(), memory_shards(clustered[:77], clustered[77:]), neighbors=4)
    rows = on_map(clustered)
    unit_ND = unit_rows(np.array(filled(clustered)))[rows].astype(np.float64)
    cluster_N = np.array(found["cluster"])
    far_NN = 1 - unit_ND @ unit_ND.T
    far_NN[cluster_N[:, None] != cluster_N] = np.inf
    np.fill_diagonal(far_NN, np.inf)
    ids_Nk = np.argsort(far_NN, axis=1, kind="stable")[:, :4]
    neighbors = found["neighbors"].combine_chunks()
    itself_N1 = np.arange(len(rows))[:, None]
    assert neighbors.field("ids").to_pylist() == np.hstack([itself_N1, ids_Nk]).tolist()
    distance_NK = np.array(neighbors.field("distances").to_pylist())
    assert set(distance_NK[:, 0]) == {0}
    far_Nk = np.take_along_axis(far_NN, ids_Nk, axis=1)
    np.testing.assert_allclose(distance_NK[:, 1:], far_Nk, atol=1e-6)
    twin = {int(place): number for number, place in enumerate(rows)}
    if cluster_N[twin[100]] == cluster_N[twin[101]]:
        assert ids_Nk[twin[100], 0] == twin[101]


def test_thumbnails_are_small_jpegs_and_null_without_a_picture(
    clustered, memory_shards, memory_context
):
    wide = BytesIO()
    Image.new("RGB", (400, 100), "red").save(wide, "PNG")
    body = clustered["image"].to_pylist()
    body[0], body[2] = wide.getvalue(), b"torn"
    at = clustered.schema.get_field_index("image")
    pool = clustered.set_column(at, "image", pa.array(body, pa.binary()))
    found = exported(memory_context(), memory_shards(pool), side=64)
    small = dict(zip(found["uid"].to_pylist(), found["thumbnail"].to_pylist(), strict=True))
    pictures = {uid: Image.open(BytesIO(one["bytes"])) for uid, one in small.items() if one}
    assert {picture.format for picture in pictures.values()} == {"JPEG"}
    assert pictures.pop(pool["uid"][0].as_py().hex()).size == (64, 16)
    assert {picture.size for picture in pictures.values()} == {(8, 8)}, "none is made larger"
    undrawn = [body[row] in (None, b"torn") for row in on_map(pool)]
    assert [one is None for one in small.values()] == undrawn


def test_rows_beyond_the_limit_are_left_out_by_hash(clustered, memory_shards, memory_context):
    whole = exported(memory_context(), memory_shards(clustered))
    some = exported(memory_context(), memory_shards(clustered), rows=100)
    fewer = exported(memory_context(), memory_shards(clustered), rows=20)
    assert (len(some), len(fewer)) == (100, 20)
    assert set(fewer["uid"].to_pylist()) < set(some["uid"].to_pylist())
    at = {uid: number for number, uid in enumerate(whole["uid"].to_pylist())}
    same = whole.take([at[uid] for uid in some["uid"].to_pylist()])
    assert some.select(["x", "y"]).equals(same.select(["x", "y"])), "the plane is that of all rows"
    assert max(max(row["ids"]) for row in fewer["neighbors"].to_pylist() if row["ids"]) < 20


def test_kept_rows_alone_where_asked(clustered, memory_shards, memory_context):
    found = exported(memory_context(), memory_shards(clustered), only_kept=True)
    assert set(found["kept"].to_pylist()) == {True}
    assert 0 < len(found) < len(on_map(clustered))
    bare = clustered.drop_columns(["keep", "text"])
    found = exported(memory_context(), memory_shards(bare), only_kept=True)
    assert len(found) == len(on_map(clustered))
    assert set(found["caption"].to_pylist()) == {""}


def test_a_cluster_past_the_bound_seeks_neighbours_next_to_it(
    clustered, memory_shards, memory_context, monkeypatch
):
    monkeypatch.setattr(export_map, "SOUGHT", 30)
    found = exported(memory_context(), memory_shards(clustered), neighbors=3)
    x_N, cluster_N = found["x"].to_numpy(), found["cluster"].to_numpy()
    for row, near in enumerate(found["neighbors"].to_pylist()):
        assert len(set(near["ids"])) == 4
        assert {cluster_N[one] for one in near["ids"]} == {cluster_N[row]}
        along_N = np.sort(x_N[cluster_N == cluster_N[row]])
        place_k = np.searchsorted(along_N, x_N[[row, *near["ids"]]])
        assert np.abs(place_k - place_k[0]).max() < 30


@pytest.mark.parametrize("column", ["image_embedding", "cluster_id"])
def test_without_a_vector_or_a_cluster_there_is_no_row(
    column, clustered, memory_shards, memory_context
):
    at = clustered.schema.get_field_index(column)
    none = pa.nulls(len(clustered), clustered.schema.field(column).type)
    found = exported(memory_context(), memory_shards(clustered.set_column(at, column, none)))
    assert len(found) == 0
    assert set(found.column_names) == {*SCHEMA.names} - {"score", "language"}


@pytest.mark.parametrize("name", ["x", "kept", "neighbors", "image", "caption"])
def test_a_column_that_the_map_has_is_refused(name):
    with pytest.raises(ValueError, match=f"names '{name}', which this export has anyway"):
        Map(columns=(name,))


# Kernels


def test_equal_points_lie_on_one_place_and_are_each_others_neighbours():
    unit_ND = unit_rows(np.ones((5, 3), np.float32))
    plane = plane_of(moments(unit_ND))
    assert np.abs(on_plane(unit_ND, plane)).max() < 1e-4
    near = nearest_rows(unit_ND, np.arange(10, 15), 2).to_pylist()
    assert [one["ids"][0] for one in near] == [10, 11, 12, 13, 14]
    assert [one["ids"][1:] for one in near] == [[11, 12], [10, 12], [10, 11], [10, 11], [10, 11]]
    assert max(d for one in near for d in one["distances"]) < 1e-6


@pytest.mark.parametrize("rows", [0, 1, 2, 700])
def test_neighbours_are_those_of_a_sort(rows, monkeypatch):
    monkeypatch.setattr("clipmill.stages.export._map.SCORES", 5_000)
    rng = np.random.default_rng(rows)
    unit_ND = unit_rows(rng.integers(-1, 2, (rows, 3)) + np.float32(0.1))
    found = nearest_rows(unit_ND, np.arange(rows), 5).to_pylist()
    step_ND = np.rint(unit_ND.astype(np.float64) * 2**26)
    score_NN = step_ND @ step_ND.T
    np.fill_diagonal(score_NN, -np.inf)
    nearest = np.argsort(-score_NN, axis=1, kind="stable")[:, : max(0, min(5, rows - 1))].tolist()
    expected = [[row] * (6 - len(near)) + near for row, near in enumerate(nearest)]
    assert [one["ids"] for one in found] == expected


def test_one_width_has_no_second_axis():
    unit_ND = np.array([[1.0], [-1.0]], np.float32)
    assert on_plane(unit_ND, plane_of(moments(unit_ND))).tolist() == [[1, 0], [-1, 0]]
