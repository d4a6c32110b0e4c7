"""The recipes that look at pictures, whole, on 300 rows, some with words drawn over them."""

import tarfile
import zlib
from pathlib import Path

import polars as pl
import pytest

from clipmill.pipeline.cli import main
from clipmill.pipeline.pools.build import build_pool
from clipmill.pipeline.pools.server import start_server
from clipmill.pipeline.run_folder.state import latest
from tests.every_stage import Finished

RULES = {
    "safety": ("safe", "unsafe", "nsfw_score", "<", 0.2),
    "tmars": ("subset", "score", "clip_score", ">=", 0.0),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks") / "pool"
    port = 20_000 + zlib.crc32(bytes(folder)) % 10_000  # which no system gives to others
    build_pool("generated", folder, rows=300, workers=1, port=port, overlaid=0.3)
    with start_server(folder, port):
        yield folder, port


@pytest.mark.soak(cpu_s=60)
@pytest.mark.parametrize("recipe", RULES)
def test_a_recipe_of_looks_runs_whole_and_exports_what_its_rule_keeps(recipe, served, tmp_path):
    select, scorer, column, sign, cut = RULES[recipe]
    pool, port = served
    given = [f"pool.path={pool}/metadata", "images.allow_private_addresses=true"]
    given += ["images.timeout_s=5", "images.deadline_s=10"]
    if recipe == "tmars":  # without weights: its cosines mean nothing, and half are below zero
        given += ["masked.model=reference", f"subset.where=clip_score >= {cut}"]
    words = [word for setting in given for word in ("--set", setting)]
    assert main(["run", recipe, "--out", str(tmp_path), "--workers", "0", *words]) == 0
    done = Finished(latest(str(tmp_path)), port)
    kept, scores = (
        pl.from_arrow(done.written(done.plan.stages[name])) for name in (select, scorer)
    )
    passes = pl.col(column) < cut if sign == "<" else pl.col(column) >= cut
    passing = set(scores.filter(passes)["uid"])
    chosen = set(kept.filter("keep")["uid"])
    assert 50 < len(chosen) < 300
    assert chosen <= passing
    if recipe == "tmars":
        assert chosen == passing
        truth = pl.read_parquet(pool / "truth.parquet").filter(image_issue="drawn_text")
        boxes = pl.from_arrow(done.written(done.plan.stages["words"])).drop_nulls("text_share")
        drawn = boxes.filter(pl.col("uid").bin.encode("hex").is_in(truth["uid"].to_list()))
        assert len(drawn) > 10
        assert (drawn["text_share"] > 0).mean() > 0.9
    exported = set()
    for tar in Path(done.state.stages["shards"].folder.path, "out").rglob("*.tar"):
        with tarfile.open(tar) as members:
            exported |= {name.partition(".")[0] for name in members.getnames()}
    assert len(exported) == len(chosen)
