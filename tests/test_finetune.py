"""The recipe `finetune` on a generated pool: a domain's rows, the start's weights, two scores."""

import json
from pathlib import Path

import polars as pl
import pytest

from clipmill.pipeline.pools.build import build_pool
from clipmill.pipeline.pools.server import start_server

SLOW = ("hang", "slow", "timeout")
DOMAIN = "domain.where=text ILIKE '%star%' OR text ILIKE '%circle%'"
SMALL = ("batch_size=16", "samples_seen=320", "warmup_steps=2")


def served(folder: Path, address: str) -> None:
    """Points a pool's links to an address, without those that hang."""
    slow = pl.read_parquet(folder / "truth.parquet").filter(pl.col("link_issue").is_in(SLOW))["uid"]
    for path in (folder / "metadata", folder / "trusted/metadata"):
        for file in path.glob("*.parquet"):
            url = pl.col("url").str.replace("http://127.0.0.1:8765", address, literal=True)
            rows = pl.read_parquet(file).filter(~pl.col("uid").is_in(slow.implode()))
            rows.with_columns(url).write_parquet(file)


@pytest.mark.soak(cpu_s=20)
def test_a_model_is_tuned_from_anothers_weights_on_a_domains_rows_and_scored_before_and_after(
    clipmill, tmp_path
):
    pool = tmp_path / "pool"
    build_pool("generated", pool, rows=400, workers=1)
    settings = [f"pool.path={pool}/metadata", f"trusted.path={pool}/trusted/metadata", DOMAIN]
    settings += [f"{stage}.tasks={pool}/eval" for stage in ("before", "after")]
    settings += [f"{stage}.{key}" for stage in ("curated_models", "tuned") for key in SMALL]
    overrides = [word for setting in settings for word in ("--set", setting)]
    with start_server(pool) as address:
        served(pool, address)
        said = clipmill("run", "finetune", "--out", tmp_path / "run", "--workers", 0, *overrides)
    assert said.code == 0, said.out + said.err

    def out(stage: str, file: str):
        (path,) = tmp_path.glob(f"run/stages/{stage}-*/out/{file}")
        return json.loads(path.read_text())

    base, tuned = out("curated_models", "seed-0.model.json"), out("tuned", "model.json")
    assert tuned["start"] == base["sha256"] != tuned["sha256"]
    assert 16 <= tuned["rows"] < base["rows"] == tuned["rows"] + tuned["left_out"]["not_kept"]
    before, after = (out(stage, "results.json")["models"] for stage in ("before", "after"))
    assert [model["model"] for model in after] == [tuned["sha256"]]
    assert before[0]["model"] == base["sha256"]
    assert before[0]["tasks"].keys() == after[0]["tasks"].keys() == {*TASKS}


TASKS = ("generated_retrieval", "generated_shapes")
