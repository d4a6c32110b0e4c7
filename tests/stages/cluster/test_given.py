"""KMeans with given centroids: assigned as by the run that found them, and refused where not so."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.errors import StageError
from clipmill.stages.cluster.kmeans import KMeans
from clipmill.stages.ops.vectors.centroids import to_table
from clipmill.stages.ops.vectors.matrices import unit_rows
from tests.stages.cluster.shared import D, blobs, centroids_of, clustered, summary_of, table

MODEL = {"image_embedding": "open_clip:ViT-B-32/openai"}


def given(path, vector_KD, **said) -> str:
    none_K = np.zeros(len(vector_KD))
    pq.write_table(to_table(vector_KD, none_K, none_K, **said), path)
    return str(path)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rows_get_the_values_of_the_run_that_found_the_centroids(
    metric, memory_shards, memory_context
):
    row_ND = blobs(500, centres=20, spread=0.5)
    row_ND[3] = np.nan
    shards, first = memory_shards(table(row_ND)), memory_context()
    found = clustered(first, shards, clusters=9, metric=metric, m=2, model_of=MODEL)
    assert (
        centroids_of(first).schema.metadata[b"clipmill.model"].decode() == MODEL["image_embedding"]
    )
    file = str(first.out / "centroids.parquet")
    for folder, setting in ((first.folder, "stage:x"), (None, file)):
        ctx = memory_context()
        assert assigned(ctx, shards, setting, folder=folder, metric=metric, m=2).equals(found)
        assert centroids_of(ctx).equals(centroids_of(first))
        assert not (ctx.out / "rounds.parquet").exists()
        assert summary_of(ctx) == {**summary_of(first)}


def assigned(ctx, shards, setting, **more):
    return clustered(ctx, shards, centroids=setting, model_of=MODEL, **more)


def test_directions_of_any_length_are_brought_to_1(tmp_path, memory_shards, memory_context):
    row_ND = blobs(300, centres=20, spread=0.5)
    centre_KD = np.random.default_rng(0).standard_normal((7, D)).astype(np.float32)
    path = given(tmp_path / "c", centre_KD)
    out = assigned(memory_context(), memory_shards(table(row_ND)), path)
    cosine_NK = unit_rows(row_ND).astype(float) @ unit_rows(centre_KD).T.astype(float)
    assert out["cluster_id"].to_pylist() == cosine_NK.argmax(axis=1).tolist()
    np.testing.assert_allclose(out["centroid_cosine"], cosine_NK.max(axis=1), atol=1e-6)


def test_centroids_far_from_all_rows_overflow_nothing(tmp_path, memory_shards, memory_context):
    far_KD = np.full((2, D), 1e18, np.float32) * [[1], [-1]]
    ctx = memory_context()
    path = given(tmp_path / "c", far_KD.astype(np.float32), metric="euclidean")
    shards = memory_shards(table(np.eye(5, D, dtype=np.float32)))
    out = assigned(ctx, shards, path, metric="euclidean")
    assert out["cluster_id"].to_pylist() == [0] * 5
    assert centroids_of(ctx)["inertia"].to_pylist() == pytest.approx([5 * D * 1e36, 0])


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"metric": "euclidean"}, "centroids by euclidean, and `metric` is cosine"),
        (
            {"model": "open_clip:ViT-L-14/openai"},
            "centroids of the model open_clip:ViT-L-14/openai, and column 'image_embedding' is of "
            "open_clip:ViT-B-32/openai",
        ),
        ({"width": 5}, "centroids 5 wide, and embeddings 8 wide"),
        ({"zero": 2}, "centroid 2 is zero, which has no direction"),
    ],
)
def test_centroids_of_other_rows_are_refused_in_a_sentence(
    said, found, tmp_path, memory_shards, memory_context
):
    centre_KD = np.eye(4, said.pop("width", D), dtype=np.float32)
    centre_KD[said.pop("zero", 0)] *= 0 if "centroid 2" in found else 1
    path = given(tmp_path / "c", centre_KD, **said)
    with pytest.raises(StageError) as error:
        assigned(memory_context(), memory_shards(table(blobs(9, 3, 0.1))), path)
    assert error.value.args[0] == found


def test_a_file_that_is_not_there_is_refused_at_plan_and_another_is_another_digest(tmp_path):
    stage = KMeans(centroids=str(tmp_path / "c.parquet"))
    with pytest.raises(StageError, match="no file"):
        stage.look()
    given(tmp_path / "c.parquet", np.eye(3, dtype=np.float32))
    stage.look()
    before = stage.outside()
    given(tmp_path / "c.parquet", np.eye(9, dtype=np.float32))
    assert stage.outside() != before
    assert KMeans(clusters=3).outside() == KMeans(centroids="stage:x").outside() == ""
