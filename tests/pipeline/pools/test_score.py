"""`pool score`: areas against counting every pair, and what it leaves for the report."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pools.score import auc

STAGE = '''
"""A score that knows nothing but the caption's length."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from metadata.schema import REASON, REASON_TYPE, TEXT, Column
from pipeline.stage import RowFunction, RowStage, Worker

SCORE = Column("clip_score", pa.float32(), "", "Bytes of the caption.")


@dataclass(frozen=True, kw_only=True)
class Length(RowStage):
    """Bytes of the caption; null without one."""

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (SCORE,)

    def open(self, worker: Worker) -> RowFunction:
        return length


def length(batch: pa.Table) -> pa.Table:
    size = pc.binary_length(batch[TEXT.name]).cast(pa.float32())
    return pa.table({SCORE.name: size, REASON.name: pa.nulls(len(batch), REASON_TYPE)})
'''
RECIPE = """
stages:
  pool:    {uses: ingest.datacomp, path: %s/metadata}
  length:  {uses: mine.length, from: pool}
  caption: {uses: annotate.caption, from: pool}
  subset:  {uses: select.where, from: [length, caption], where: caption_words >= 2}
"""
SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=30)


@given(SCORES, SCORES)
def test_the_area_is_the_share_of_pairs_in_order_ties_half(good, bad):
    pairs = [(g > b) + (g == b) / 2 for g in good for b in bad]
    found = auc(np.array(good, float), np.array(bad, float))
    assert found["value"] == pytest.approx(np.mean(pairs))
    assert found["low"] <= found["value"] <= found["high"]


def test_the_interval_is_hanley_and_mcneils():
    rng = np.random.default_rng(0)
    found = auc(rng.normal(1, 1, 400), rng.normal(0, 1, 300))
    areas = [auc(rng.normal(1, 1, 400), rng.normal(0, 1, 300))["value"] for _ in range(300)]
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * np.std(areas), rel=0.15)


@pytest.fixture
def ran(clipmill, generated, tmp_path, monkeypatch):
    """A finished run, whose stage is the user's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages" / "mine").mkdir(parents=True)
    (tmp_path / "stages" / "mine" / "length.py").write_text(STAGE)
    (tmp_path / "it.yaml").write_text(RECIPE % generated)
    assert clipmill("run", "it.yaml", "--out", "run", "--workers", "0").code == 0
    return tmp_path / "run"


def test_areas_are_those_of_english_rows_by_the_truth(clipmill, generated, ran):
    found = clipmill("pool", "score", generated, "--run", ran, "--json").json
    truth = pl.read_parquet(generated / "truth.parquet")
    pool = pl.read_parquet(generated / "metadata" / "*.parquet").select("uid", "text")
    rows = truth.join(pool, on="uid").filter(pl.col("lang") == "en", pl.col("text").is_not_null())
    good = rows.filter("is_good")["text"].str.len_bytes().to_list()
    by_kind = {row["kind"]: row for row in found["detection"]}
    assert {"swapped", "spam"} <= by_kind.keys()
    for kind in ("swapped", "spam"):
        bad = rows.filter(pl.col("text_issue") == kind)["text"].str.len_bytes().to_list()
        pairs = [(g > b) + (g == b) / 2 for g in good for b in bad]
        assert by_kind[kind]["rows"] == len(bad)
        assert by_kind[kind]["auc"]["value"] == pytest.approx(np.mean(pairs))
        assert (by_kind[kind]["stage"], by_kind[kind]["good"]) == ("length", len(good))


def test_what_it_found_is_in_the_report_until_the_run_changes(clipmill, generated, ran):
    page = ran.parent / "report.html"
    clipmill("report", "--run", ran, "--out", page)
    assert "planted truth" not in page.read_text()
    said = clipmill("pool", "score", generated, "--run", ran)
    assert "| swapped |" in said.out
    clipmill("report", "--run", ran, "--out", page)
    found = json.loads((ran / "truth.json").read_text())
    swapped = next(row for row in found["detection"] if row["kind"] == "swapped")
    assert f"{swapped['auc']['value']:.3f}" in page.read_text()
    command = ("run", "it.yaml", "--out", ran, "--workers", "0")
    assert clipmill(*command, "--set", "pool.shard_rows=50").code == 0
    clipmill("report", "--run", ran, "--out", page)
    assert "planted truth" not in page.read_text()
