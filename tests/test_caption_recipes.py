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

from tests.captioned import judged, run_recipe, served_pool
from tests.text_server import TextServer

pytestmark = pytest.mark.chaos  # whole runs


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with served_pool(tmp_path_factory.mktemp("pool"), rows=60) as folder:
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


def run(clipmill, pool, out, recipe, until, *asking, server):
    model = f"openai:{server.url}#{server.model}"
    run_recipe(clipmill, recipe, pool, out, until, *(f"{stage}.model={model}" for stage in asking))


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
