"""The recipes of captions from images run to their exports, by `reference`, on a tiny pool."""

import io
import json
import tarfile

import polars as pl
import pytest

from pipeline.pools.build import build_pool
from pipeline.pools.server import start_server

pytestmark = pytest.mark.chaos  # whole runs


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """60 rows, without those whose link hangs, and a server at a port of its own."""
    folder = tmp_path_factory.mktemp("pool")
    build_pool("generated", folder, rows=60)
    truth = pl.read_parquet(folder / "truth.parquet")
    slow = truth.filter(pl.col("link_issue").is_in(["timeout", "slow", "hang"]))["uid"].to_list()
    with start_server(folder) as address:
        for path in folder.glob("metadata/*.parquet"):
            url = pl.col("url").str.replace("http://127.0.0.1:8765", address, literal=True)
            rows = pl.read_parquet(path).filter(~pl.col("uid").is_in(slow)).with_columns(url)
            rows.write_parquet(path)
        yield folder


def run(clipmill, pool, out, recipe, until, *stages, more=()):
    settings = [f"pool.path={pool}/metadata", "images.timeout_s=1", "images.deadline_s=2"]
    settings += [f"{stage}.model=reference" for stage in stages]
    settings += more
    overrides = [word for setting in settings for word in ("--set", setting)]
    said = clipmill("run", recipe, "--out", out, "--workers", 0, "--until", until, *overrides)
    assert said.code == 0, said.err


def test_veclip_leaves_with_the_caption_found_and_the_fused_one(clipmill, pool, tmp_path):
    unchecked = ["chosen.checks=false"]  # the reference turns the words of the prompt round
    run(clipmill, pool, tmp_path / "run", "veclip", "shards", "short", "fused", more=unchecked)
    files = tmp_path.glob("run/stages/shards-*/out/*.parquet")
    texts = [row for file in files for row in pl.read_parquet(file)["texts"].to_list()]
    labels = {tuple(text["label"] for text in row) for row in texts}
    assert len(texts) > 20
    assert labels <= {("original",), ("original", "fused")}
    assert ("original", "fused") in labels


def test_recaption_leaves_with_one_text_for_clip_and_with_all(clipmill, pool, tmp_path):
    run(clipmill, pool, tmp_path / "run", "recaption-short-long", "for_clip", "made")
    run(clipmill, pool, tmp_path / "run", "recaption-short-long", "all_texts", "made")
    mixed, every = (labels_of(tmp_path, name) for name in ("for_clip", "all_texts"))
    assert set(mixed) == {("original",), ("short",)}
    assert ("original", "short", "long") in set(every)
    assert len(every) == len(mixed) > 20


def labels_of(folder, stage):
    found = []
    for path in folder.glob(f"run/stages/{stage}-*/out/*.tar"):
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    told = json.load(file)
                    found.append(tuple(told.get("caption_labels") or ["original"]))
    return found
