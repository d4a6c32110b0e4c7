"""MetaCLIP's recipe, and its claims: heads end at t, tails stay whole."""

import json
from pathlib import Path

import polars as pl
import pytest

from clipmill.pipeline.cli import main
from clipmill.pipeline.pools.build import build_pool
from clipmill.pipeline.pools.server import start_server

HEADS = ["icon", "sign", "shape"]  # each ends the caption of every seventh English row or so
TAIL = ["Rot", "Blau", "Grün", "Gelb", "Lila", "rouge", "bleue", "verte"]
T = 60
RECIPE = """
seed: 0
stages:
  pool:     {{uses: ingest.datacomp, path: {pool}/metadata, shard_rows: 400}}
  matched:  {{uses: annotate.concepts, from: pool, concepts: {list}}}
  balanced: {{uses: select.balance, from: matched, concepts: {list}, t: {t}}}
"""
DOT = b"P6 1 1 255 " + bytes(3)  # a picture
SLOW = ("hang", "slow", "timeout")  # answers may differ on a busy machine


def stored(out: Path, stage: str) -> pl.DataFrame:
    files = sorted(out.glob(f"stages/{stage}-*/??????-*.parquet"))
    return pl.concat([pl.read_parquet(file) for file in files])


def table_of(out: Path) -> pl.DataFrame:
    (file,) = out.glob("stages/balanced-*/out/concepts.parquet")
    return pl.read_parquet(file)


def build(folder: Path) -> None:
    """A generated pool with heads of some 130 rows, a recipe over it, and its run."""
    with pytest.MonkeyPatch.context() as patch:  # captions are asked about; no picture is drawn
        patch.setattr(
            "clipmill.pipeline.pools.render.crawled_files", lambda group: [DOT] * len(group)
        )
        build_pool("generated", folder / "pool", rows=1500, workers=1)
    (folder / "concepts.json").write_text(json.dumps([*HEADS, *TAIL]))
    text = RECIPE.format(pool=folder / "pool", list=folder / "concepts.json", t=T)
    (folder / "it.yaml").write_text(text)
    assert main(["run", f"{folder}/it.yaml", "--out", f"{folder}/run", "--workers", "0"]) == 0


@pytest.fixture(scope="module")
def large(artefacts) -> Path:
    return artefacts("metaclip", build)


@pytest.fixture
def balanced(large) -> Path:
    return large / "run"


@pytest.mark.chaos  # seconds
def test_planted_heads_end_within_a_fifth_of_t(balanced):
    heads = table_of(balanced).filter(pl.col("entry").is_in(HEADS))
    assert (heads["count"] > 1.5 * T).all()
    assert ((heads["kept"] - T).abs() <= T / 5).all(), heads


def test_no_row_with_a_concept_at_or_below_t_is_lost(balanced):
    table = table_of(balanced).with_row_index("concept_ids").cast({"concept_ids": pl.Int32})
    rare = table.filter(pl.col("count").is_between(1, T))
    assert len(rare) == len(TAIL)
    assert rare["kept"].to_list() == rare["count"].to_list()
    matched = stored(balanced, "matched").explode("concept_ids")
    uids = matched.join(rare, on="concept_ids", how="semi")["uid"]
    assert stored(balanced, "balanced").filter(pl.col("uid").is_in(uids.implode()))["keep"].all()


def test_the_size_is_the_expected_one_and_the_funnel_names_the_causes(clipmill, balanced):
    (file,) = balanced.glob("stages/balanced-*/out/balance.json")
    size = json.loads(file.read_text())
    assert size["kept"] == stored(balanced, "balanced")["keep"].sum()
    assert abs(size["kept"] - size["expected"]) < 5 * size["sigma"]
    said = clipmill("funnel", "--run", balanced)
    assert "balanced: balanced_out" in said.out
    assert "matched: no_concept" in said.out


def test_why_names_the_deciding_concept(clipmill, balanced):
    lost = stored(balanced, "balanced").filter(reason="balanced_out").row(0, named=True)
    said = clipmill("why", lost["uid"].hex(), "--run", balanced, "-v")
    assert f"deciding_concept       {lost['deciding_concept']}" in said.out
    assert "dropped by 'balanced': balanced_out; its least draw, of " in said.out
    rank = f"{lost['deciding_concept']!r}, is {lost['balance_rank']:.4g}, and t is {T}"
    assert rank in said.out


def test_another_t_is_a_query_that_sweep_can_ask(clipmill, large, balanced, tmp_path):
    whole = ".inf, keep_unmatched: true"
    text = RECIPE.format(pool=large / "pool", list=large / "concepts.json", t=whole)
    text += f"  subset: {{uses: select.where, from: balanced, where: balance_rank < {T}}}\n"
    (tmp_path / "it.yaml").write_text(text)
    out = tmp_path / "run"
    assert clipmill("run", tmp_path / "it.yaml", "--out", out, "--workers", 0).code == 0
    kept = stored(out, "subset").sort("uid")["keep"]
    assert kept.equals(stored(balanced, "balanced").sort("uid")["keep"])
    vary = f"balance_rank={T // 2}:{T}:{T // 2}"
    said = clipmill("sweep", "--run", out, "--stage", "subset", "--vary", vary, "--json")
    half, whole = (point["kept"] for point in said.json["points"])
    assert half < whole == kept.sum()
    # The balance answers for itself too, whatever its own t is.
    itself = ("sweep", "--stage", "balanced", "--json", "--vary", f"t={T // 2}:{T}:{T // 2}")
    unmatched = stored(out, "balanced")["balance_rank"].null_count()
    for folder, more in ((balanced, 0), (out, unmatched)):
        points = clipmill(*itself, "--run", folder).json["points"]
        assert [point["kept"] - more for point in points] == [half, whole]
    for wrong in ("rows=1:2:1", "t=0:2:1"):
        vary = ("--stage", "balanced", "--vary", wrong)
        assert clipmill("sweep", "--run", balanced, *vary).code == 2


def test_a_list_changed_since_matching_is_refused_and_a_digest_matches_anew(
    clipmill, large, tmp_path
):
    (tmp_path / "concepts.json").write_text(json.dumps(HEADS))
    text = RECIPE.format(pool=large / "pool", list=tmp_path / "concepts.json", t=T)
    (tmp_path / "it.yaml").write_text(text)
    run = ("run", tmp_path / "it.yaml", "--out", tmp_path / "run", "--workers", 0)
    assert clipmill(*run, "--until", "matched").code == 0
    (tmp_path / "concepts.json").write_text(json.dumps([*HEADS, "Rot"]))
    said = clipmill(*run)
    assert said.code == 1
    digest = json.loads(clipmill("concepts", "show", tmp_path / "concepts.json", "--json").out)
    assert f"match again with `digest: {digest['digest']}`" in said.out + said.err
    anew = (*run, "--set", f"matched.digest={digest['digest']}")
    assert clipmill(*anew).code == 0
    (tmp_path / "concepts.json").write_text(json.dumps(HEADS))  # after all is done, too
    said = clipmill(*anew)
    assert said.code == 1
    assert "and the list is now" in said.out + said.err


@pytest.mark.slow("runs a bundled recipe, downloads and all")
def test_the_demo_recipe_whole(clipmill, tmp_path):
    build_pool("generated", tmp_path / "pool", rows=120, workers=1)
    truth = pl.read_parquet(tmp_path / "pool/truth.parquet")
    slow = truth.filter(pl.col("link_issue").is_in(SLOW))["uid"].to_list()
    said = clipmill(
        *("concepts", "build", tmp_path / "list.parquet", "--corpus", tmp_path / "pool/metadata"),
        *("--min-unigram-count", 5, "--min-bigram-count", 5, "--min-pmi", 1),
    )
    assert said.code == 0, said.err
    with start_server(tmp_path / "pool") as address:
        for path in (tmp_path / "pool/metadata").glob("*.parquet"):
            url = pl.col("url").str.replace("http://127.0.0.1:8765", address, literal=True)
            rows = pl.read_parquet(path).filter(~pl.col("uid").is_in(slow)).with_columns(url)
            rows.write_parquet(path)
        settings = [f"pool.path={tmp_path}/pool/metadata", "pool.shard_rows=50"]
        lists = ("published", "matched", "balanced")
        settings += [f"{stage}.concepts={tmp_path}/list.parquet" for stage in lists]
        overrides = [word for setting in settings for word in ("--set", setting)]
        said = clipmill(
            "run", "metaclip-demo", "--out", tmp_path / "run", "--workers", 0, *overrides
        )
    assert said.code == 0, said.out + said.err
    out = tmp_path / "run"
    assert (
        stored(out, "matched")["reason"].null_count()
        >= stored(out, "published")["reason"].null_count()
    )
    table, kept = table_of(out), stored(out, "balanced")
    assert table["count"].sum() > 100
    fresh = stored(out, "fresh").select("uid", fresh="keep")
    assert kept.filter("keep").join(fresh, on="uid")["fresh"].all()
