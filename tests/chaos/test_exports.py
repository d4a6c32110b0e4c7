"""`clipmill export` of a run in an object store, to that store."""

import pytest
from PIL import Image

from clipmill.metadata.storage import Storage

RECIPE = """
stages:
  pool:   {{uses: ingest.image_folder, path: {pool}}}
  look:   {{uses: annotate.image, from: pool}}
  subset: {{uses: select.where, from: look, where: min_side >= 20}}
"""


@pytest.mark.chaos
def test_a_folder_below_is_written_found_done_and_verified_in_a_store(bucket, tmp_path, clipmill):
    pool = tmp_path / "pool"
    pool.mkdir()
    for side in (10, 20, 30):
        Image.new("RGB", (side, side), "red").save(pool / f"{side}.png")
        (pool / f"{side}.txt").write_text(f"{side} pixels")
    recipe = tmp_path / "it.yaml"
    recipe.write_text(RECIPE.format(pool=pool))
    run, out = bucket.uri("exports/run"), bucket.uri("exports/hub")
    assert clipmill("run", recipe, "--out", run, "--workers", 0).code == 0
    export = ("export", "--run", run, "--to", "huggingface", "--out", out, "--workers", 0)
    first, second = clipmill(*export), clipmill(*export)
    assert (first.code, second.code) == (0, 0)
    assert "found done: nothing was written" in second.out
    assert {entry.name for entry in Storage(out).entries(below=True)} == {
        "README.md",
        "dataset.json",
        "data/train-00000-of-00001.parquet",
    }
    assert clipmill("verify", "--run", run).code == 0
