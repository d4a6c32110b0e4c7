"""The recipes of captions from images run to their exports, on a tiny pool.

A stand-in for a server of texts writes them; what it spoils, the recipes' own checks catch.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter

import polars as pl
import pytest

from pipeline.pools.build import build_pool
from pipeline.pools.server import start_server
from tests.text_server import TextServer

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


SPOILT = ("refusal", "markup", "loop")
CATCHES = {"text_is_refusal", "text_markup", "text_repetition"}


def spoils(asked):
    """One of six requests, whatever their order, is answered with what no caption is."""
    at = hashlib.sha256(asked.text.encode()).digest()[0] % 18
    return SPOILT[at] if at < len(SPOILT) else None


@pytest.fixture(scope="module")
def server():
    with TextServer(joins=True, script=spoils).running() as running:
        yield running


def run(clipmill, pool, out, recipe, until, *stages, server):
    settings = [f"pool.path={pool}/metadata", "images.timeout_s=1", "images.deadline_s=2"]
    settings += [f"{stage}.model=openai:{server.url}#{server.model}" for stage in stages]
    overrides = [word for setting in settings for word in ("--set", setting)]
    said = clipmill("run", recipe, "--out", out, "--workers", 0, "--until", until, *overrides)
    assert said.code == 0, said.err


def judged(folder, stage):
    """Rows of the texts and their reasons, as a select of captions read them, and its verdict."""
    read = stored(folder, "checked", "texts").select("uid", read="texts")
    return stored(folder, stage, "fell_back").join(read, on="uid").rows(named=True)


def stored(folder, stage, column):
    """The rows of a stage, from its files that have the column."""
    tables = map(pl.read_parquet, folder.glob(f"stages/{stage}-*/*.parquet"))
    return pl.concat(table for table in tables if column in table.columns)


def test_veclip_leaves_with_the_caption_found_and_the_fused_one(clipmill, pool, server, tmp_path):
    run(clipmill, pool, tmp_path, "veclip", "shards", "short", "fused", server=server)
    files = tmp_path.glob("stages/shards-*/out/*.parquet")
    leave = [row for file in files for row in pl.read_parquet(file)["texts"].to_list()]
    labels = Counter(tuple(text["label"] for text in row) for row in leave)
    assert labels.keys() == {("original",), ("original", "fused")}
    assert labels["original", "fused"] > len(leave) / 2 > 10
    rows = judged(tmp_path, "chosen")
    assert {why for row in rows for why in row["text_reasons"] or ()} >= CATCHES
    for row in rows:  # an original is never lost, and no caught text stays
        found, why = row["read"] or [], row["text_reasons"] or []
        assert (row["texts"] or []) == [t for t, w in zip(found, why, strict=True) if w is None]
        assert not found or row["texts"][0]["label"] == "original"


def test_recaption_leaves_with_one_text_for_clip_and_with_all(clipmill, pool, server, tmp_path):
    run(clipmill, pool, tmp_path, "recaption-short-long", "for_clip", "made", server=server)
    before = server.asked.total()
    run(clipmill, pool, tmp_path, "recaption-short-long", "all_texts", "made", server=server)
    assert server.asked.total() == before
    mixed, every = (labels_of(tmp_path, name) for name in ("for_clip", "all_texts"))
    assert set(mixed) == {("original",), ("short",)}
    assert ("original", "short", "long") in set(every)
    assert len(every) == len(mixed) > 20
    rows = judged(tmp_path, "mixed")
    assert {why for row in rows for why in row["text_reasons"] or ()} >= CATCHES
    back = [row for row in rows if row["fell_back"]]
    assert back
    assert all([text["label"] for text in row["texts"]] == ["original"] for row in back)


def labels_of(folder, stage):
    found = []
    for path in folder.glob(f"stages/{stage}-*/out/*.tar"):
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    told = json.load(file)
                    found.append(tuple(told.get("caption_labels") or ["original"]))
    return found
