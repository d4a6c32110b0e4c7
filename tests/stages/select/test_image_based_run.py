"""ImageBased in a run: after a score and captions, by clusters of the same recipe."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipmill import pipeline
from clipmill.pipeline.dataset import Inputs
from clipmill.stages.ops.vectors.matrices import as_matrix
from clipmill.stages.select.image_based import ImageBased
from clipmill.stages.select.where import Top, Where
from tests.stages.select.targets import coarse, datacomp, pool
from tests.stages.task_folders import picture

PUBLISHED = Path(pipeline.__file__).parent / "recipes" / "datacomp-image-clip.yaml"


def test_the_cut_of_the_score_is_fixed_on_the_whole_pool_before_captions_and_images(
    files, memory_shards, memory_context
):
    rng = np.random.default_rng(4)
    row_ND, target_MD, centroid_KD = coarse(rng, 3_000), coarse(rng, 60), coarse(rng, 100)
    score_N = rng.integers(0, 400, 3_000).astype(np.float32) / 400
    language = rng.choice(["en", "de"], 3_000)
    tokens_N, chars_N = rng.integers(0, 5, (2, 3_000)).astype(np.int32) * [[1], [3]]
    row_ND[language == "de"] += 1  # so that images and scores differ where captions do
    score_N[language == "de"] += np.float32(0.2)
    rows = pool(
        row_ND,
        clip_score=pa.array(score_N),
        language=language,
        caption_tokens=pa.array(tokens_N, pa.int32()),
        caption_chars=pa.array(chars_N, pa.int32()),
    )

    def chain(over: str) -> list[bool]:
        stages = yaml.safe_load(PUBLISHED.read_text())["stages"]
        top = Top(**stages["fits"]["top"] | {"over": over})
        near = ImageBased(**files(centroid_KD, t=target_MD))
        kept = None
        for stage in (Where(where=stages["english"]["where"]), Where(top=top), near):
            ctx, given = memory_context(), rows
            if kept is not None:
                given = rows.append_column("keep", kept)
            stage.run(Inputs(rows=memory_shards(given)), ctx)
            kept = ctx.stored[0]["keep"]
        return kept.to_pylist()

    cut = np.sort(score_N)[::-1][int(3_000 * 0.3)]  # of all rows, whatever their captions
    of_caption_N = (language == "en") & (tokens_N > 1) & (chars_N > 5)
    published = (score_N >= cut) & of_caption_N & datacomp(row_ND, target_MD, centroid_KD)
    assert chain("pool") == published.tolist()
    assert 50 < published.sum() < of_caption_N.sum()
    assert chain("passing") != published.tolist()


RECIPE = """\
stages:
  pool: {uses: ingest.image_folder, path: %(folder)s/pool}
  emb: {uses: embed.clip, from: pool, model: reference}
  clusters: {uses: cluster.kmeans, from: emb, clusters: 4, metric: euclidean}
  trusted: {uses: ingest.image_folder, path: %(folder)s/trusted}
  trusted_emb: {uses: embed.clip, from: trusted, model: reference}
  vectors: {uses: export.parquet, from: trusted_emb, columns: [image_embedding], captions: false}
  near: {uses: select.image_based, from: emb, centroids: "stage:clusters", targets: "stage:vectors"}
"""


def test_targets_of_an_export_and_clusters_of_the_run_are_two_edges(tmp_path, clipmill):
    for folder, numbers in (("pool", range(45)), ("trusted", (5, 10))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            (tmp_path / folder / f"{number:02d}.png").write_bytes(picture(number))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE % {"folder": tmp_path})
    assert clipmill("run", recipe, "--out", tmp_path / "run", "--workers", 0).code == 0
    (near,) = (tmp_path / "run" / "stages").glob("near-*")
    told = json.loads((near / "out" / "targets.json").read_text())
    assert told["model"] == "reference"
    assert told["tasks"]["vectors"]["targets"] == 2

    def stored(stage: str, files: str = "0*") -> pa.Table:
        found = (tmp_path / "run" / "stages").glob(f"{stage}-*/{files}.parquet")
        return pa.concat_tables(map(pq.read_table, sorted(found)))

    seen, wanted = (as_matrix(stored(name)["image_embedding"]) for name in ("emb", "trusted_emb"))
    centroid_KD = as_matrix(stored("clusters", "out/centroids")["centroid"])
    assert not np.allclose(np.linalg.norm(centroid_KD, axis=1), 1), "means, not directions"
    assert stored("near")["keep"].to_pylist() == datacomp(seen, wanted, centroid_KD).tolist()
    assert 0 < told["kept"] == sum(stored("near")["keep"].to_pylist()) < 45
    varied = ("--stage", "near", "--vary", "at_least=1:2:1", "--json")
    swept = clipmill("sweep", "--run", tmp_path / "run", *varied)
    assert swept.json["points"][0]["kept"] == told["kept"]
