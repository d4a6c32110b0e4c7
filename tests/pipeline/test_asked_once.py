"""What one run folder was answered is there for all of its runs: other recipes, shards, workers."""

import asyncio
import hashlib
import json
import shutil
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.asked import shards_of, stored_in
from tests.text_server import TextServer

RECIPE = """
stages:
  pool: {uses: ingest.datacomp, path: POOL}
  made: {uses: caption.rewrite, from: pool, model: "openai:URL#stand-in", styles: [STYLES]}
"""


class Together(TextServer):
    """Holds each answer back until its request came twice; no two answers are the same."""

    async def _reply(self, request, body, fault, number):
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        async with asyncio.timeout(60):
            while self.asked[digest] < 2:
                await asyncio.sleep(0.01)
        return await super()._reply(request, body, "another", number)


@pytest.fixture
def server():
    with TextServer().running() as one:
        yield one


def recipe(folder: Path, pool: Path, server: TextServer, styles: str) -> Path:
    path = folder / f"{styles.replace(', ', '-')}.yaml"
    text = RECIPE.replace("POOL", str(pool)).replace("URL", server.url).replace("STYLES", styles)
    path.write_text(text)
    return path


def texts(run: Path, style: str) -> list[str]:
    """The texts of a style, in the newest folder of the stage."""
    folder = max(run.glob("stages/made-*"), key=lambda path: path.stat().st_mtime_ns)
    files = sorted(folder.glob("0*.parquet"))
    rows = [row or [] for file in files for row in pl.read_parquet(file)["captions"].to_list()]
    return [it["text"] for row in rows for it in row if it["prompt_id"].startswith(style)]


def test_another_style_asks_for_itself_and_other_shards_for_nothing(
    clipmill, server, generated, tmp_path
):
    pool, out = generated / "metadata", ("--out", tmp_path / "run", "--workers", 0)
    server.script = lambda asked: "another"
    assert clipmill("run", recipe(tmp_path, pool, server, "human"), *out).code == 0
    asked, first = server.asked.total(), texts(tmp_path / "run", "human")
    assert 100 < asked == len(first)
    both = recipe(tmp_path, pool, server, "human, bard")
    assert clipmill("run", both, *out).code == 0
    assert server.asked.total() == 2 * asked
    assert texts(tmp_path / "run", "human") == first
    cut = clipmill("run", both, *out, "--set", "pool.shard_rows=50")
    assert cut.code == 0
    assert "made: done" in cut.err + cut.out
    assert server.asked.total() == 2 * asked
    assert texts(tmp_path / "run", "human") == first


@pytest.mark.chaos
def test_of_two_answers_to_two_workers_that_ask_at_once_all_later_readers_take_one(
    clipmill, tmp_path
):
    row = {"uid": [f"{n:032x}" for n in range(3)], "url": ["http://x/"] * 3}
    (tmp_path / "pool").mkdir()
    for name in ("a", "b"):  # a pool that holds its rows twice
        rows = pa.table({**row, "text": [f"a small cat number {n} on a mat" for n in range(3)]})
        pq.write_table(rows, tmp_path / "pool" / f"{name}.parquet")
    run, pool = tmp_path / "run", tmp_path / "pool"
    with Together().running() as server:
        once = recipe(tmp_path, pool, server, "human")
        assert clipmill("run", once, "--out", run, "--workers", 2).code == 0
        assert (server.asked.total(), set(server.asked.values())) == (6, {2})  # both are paid
        given = texts(run, "human")
        assert len(set(given)) == 6
        shards = []
        for _ in range(2):
            for folder in run.glob("stages/made-*"):
                shutil.rmtree(folder)
            assert clipmill("run", once, "--out", run, "--workers", 0).code == 0
            shards.append(shards_of(str(run)))
            expected = [min(pair) for pair in zip(given[:3], given[3:], strict=True)]
            assert texts(run, "human") == expected * 2
        assert shards[0] == shards[1]
        assert len(stored_in(str(run))) == 3
        assert server.asked.total() == 6
