"""The dfn recipe whole: trusted pairs to a network, the network to scores, scores to a subset."""

import hashlib
import json
from pathlib import Path

import polars as pl
import pytest

from clipmill.pipeline.cli import main
from clipmill.pipeline.pools.build import build_pool
from clipmill.pipeline.pools.server import start_server

SLOW = ("hang", "slow", "timeout")  # answers may differ on a busy machine


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A served pool of 120 rows, 20 of them trusted, those with a slow link left out."""
    folder = tmp_path_factory.mktemp("pool")
    build_pool("generated", folder, rows=120, workers=1)
    truth = pl.read_parquet(folder / "truth.parquet")
    slow = truth.filter(pl.col("link_issue").is_in(SLOW))["uid"].to_list()
    with start_server(folder) as address:
        for path in folder.rglob("metadata/*.parquet"):
            url = pl.col("url").str.replace("http://127.0.0.1:8765", address, literal=True)
            rows = pl.read_parquet(path).filter(~pl.col("uid").is_in(slow)).with_columns(url)
            rows.write_parquet(path)
        yield folder


def run(pool: Path, out: Path, *more: str, until: str = "shards") -> int:
    settings = [
        f"trusted.path={pool}/trusted/metadata",
        f"pool.path={pool}/metadata",
        "pool.shard_rows=50",
        *more,
    ]
    overrides = [word for setting in settings for word in ("--set", setting)]
    return main(["run", "dfn", "--out", str(out), "--workers", "0", "--until", until, *overrides])


def stored(out: Path, stage: str) -> pl.DataFrame:
    files = sorted(out.glob(f"stages/{stage}-*/??????-*.parquet"))
    return pl.concat([pl.read_parquet(file) for file in files])


def outputs(out: Path, stage: str) -> dict[str, str]:
    """The digest of each file below the stage's `out`."""
    (folder,) = out.glob(f"stages/{stage}-*/out")
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


@pytest.fixture(scope="module")
def ran(pool, tmp_path_factory):
    out = tmp_path_factory.mktemp("ran") / "run"
    assert run(pool, out) == 0
    return out


@pytest.mark.drawn(one_in=3, cpu_s=20)
def test_every_row_gets_a_score_or_a_reason_and_the_best_are_exported(ran, pool, tmp_path):
    assert outputs(ran, "dfn").keys() == {"model.json", "model.safetensors"}
    score = stored(ran, "score")
    assert (score["clip_score"].is_null() == score["reason"].is_not_null()).all()
    assert score["clip_score"].drop_nulls().is_between(-1, 1).all()
    assert score["clip_score"].n_unique() > 50
    subset = stored(ran, "subset").join(score, on="uid")
    kept, left = (subset.filter(pl.col("keep") == keep)["clip_score"] for keep in (True, False))
    assert kept.min() >= left.drop_nulls().max()
    assert len(kept) == int(0.45 * score["clip_score"].count())

    assert run(pool, tmp_path / "again", "pool.shard_rows=200") == 0
    for stage in ("features", "emb", "score"):
        assert stored(tmp_path / "again", stage).sort("uid").equals(stored(ran, stage).sort("uid"))
    assert outputs(tmp_path / "again", "dfn") == outputs(ran, "dfn")


@pytest.mark.chaos  # seconds
def test_the_network_learns_from_trusted_pairs_and_from_the_pool(ran, pool):
    card = json.loads(next(ran.glob("stages/dfn-*/out/model.json")).read_text())
    both = (stored(ran, stage) for stage in ("trusted_features", "features"))
    assert card["trained_rows"] == sum(it["reason"].is_null().sum() for it in both)
    assert len(stored(ran, "trusted_features")) < card["trained_rows"]
