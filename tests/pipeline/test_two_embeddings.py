"""A network of images beside one of images and captions in one recipe, each where it is named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.passes import read_stage
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines
from clipmill.stages.ops.vectors.matrices import as_matrix, unit_rows
from clipmill.stages.score.clip_score import row_cosine
from tests.pipeline.run_folder.test_masks import write_pool

RECIPE = """
stages:
  pool:     {uses: ingest.webdataset, path: POOL}
  clip:     {uses: embed.clip, from: pool, model: reference}
  looked:   {uses: embed.image, from: pool, model: "features:float32"}
  features: {uses: embed.features, from: pool}
  near:
    uses: cluster.kmeans
    from: [clip, looked]
    read: {image_embedding: looked.image_embedding}
    clusters: 4
  looks:    {uses: cluster.kmeans, from: features, column: image_features, clusters: 3}
  score:
    uses: score.clip_score
    from: [clip, looked]
    read: {image_embedding: clip.image_embedding}
  capped:   {uses: select.sample, from: [near, score], per: cluster_id, at_most: 2}
  subset:
    uses: select.where
    from: [capped, looks, score]
    where: looks.cluster_id >= 0 AND clip_score > -1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    (folder / "it.yaml").write_text(RECIPE.replace("POOL", str(write_pool(folder / "pool"))))
    return folder


@pytest.mark.slow("two networks")
def test_each_stage_reads_the_embedding_that_it_names(folder):
    plan = make_plan(load_recipe(str(folder / "it.yaml")))
    assert plan.models_of("near") == {"image_embedding": "features:float32"}
    assert set(plan.models_of("score").values()) == {"reference"}
    outcome = run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped

    def column(stage: str, name: str) -> pa.ChunkedArray:
        state = outcome.state.stages[stage]
        read = (read_stage(state.folder, state.shards[n], [name], 99) for n in sorted(state.shards))
        return pa.concat_tables(table for tables in read for table in tables)[name]

    for stage, embedded, name in (
        ("near", "looked", "image_embedding"),
        ("looks", "features", "image_features"),
    ):
        out = Path(outcome.state.stages[stage].folder.path, "out", "centroids.parquet")
        centre_KD = as_matrix(pq.read_table(out)["centroid"])
        cosine_NK = unit_rows(as_matrix(column(embedded, name))) @ centre_KD.T
        cluster_N = column(stage, "cluster_id").to_numpy()
        found_N = np.take_along_axis(cosine_NK, cluster_N[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(found_N, cosine_NK.max(axis=1), atol=1e-5)
        assert len(np.unique(cluster_N)) > 1
    cosine_N = row_cosine(
        *(as_matrix(column("clip", name)) for name in ("image_embedding", "text_embedding"))
    )
    np.testing.assert_array_equal(column("score", "clip_score").to_numpy(), cosine_N)
    counts = np.bincount(column("near", "cluster_id").to_numpy())
    assert sum(column("subset", "keep").to_pylist()) == np.minimum(counts, 2).sum()


def test_a_stage_that_could_mean_either_is_refused_with_what_to_write(folder):
    text = (folder / "it.yaml").read_text()
    either = text.replace("    read: {image_embedding: looked.image_embedding}\n", "")
    (folder / "either.yaml").write_text(either)
    with pytest.raises(RecipeError) as error:
        make_plan(load_recipe(str(folder / "either.yaml")))
    assert "'clip' and 'looked'" in str(error.value)
    assert "read: {image_embedding: clip.image_embedding}" in str(error.value)
