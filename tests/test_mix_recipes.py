"""The recipes that mix scores, and DataComp's text filter, whole, on 600 rows."""

import json
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from clipmill.pipeline.cli import main
from clipmill.pipeline.ledger.selection.why import why
from clipmill.pipeline.pools.build import build_pool
from clipmill.pipeline.pools.server import start_server
from clipmill.pipeline.run_folder.state import latest
from tests.every_stage import Finished
from tests.stages.select.wordnet import write_wordnet

FEW = ["images.timeout_s=5", "images.deadline_s=10"]
PARTS = ("metadata", "trusted/metadata")
GIVEN = {
    "negclip-normsim": ["fit.batch=64", *FEW],
    "hype": FEW,
    "flyt-mix": ["partners.batch=64", "subset.rows=300", "subset.batch=20", *FEW],
    "datacomp-text": [],
    "strange-ground": ["partners.batch=64", *FEW],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures") / "pool"
    port = 30_000 + zlib.crc32(bytes(folder)) % 2_000  # which no system gives to others
    build_pool("generated", folder, rows=600, workers=1, port=port)
    with start_server(folder, port):
        yield folder, port


def run(recipe: str, served, out: Path, *more: str) -> Finished:
    pool, port = served
    given = [f"pool.path={pool}/metadata", *GIVEN[recipe], *more]
    given += [f"trusted.path={pool}/trusted/metadata"] if recipe != "datacomp-text" else []
    words = [word for setting in given for word in ("--set", setting)]
    assert main(["run", recipe, "--out", str(out), "--workers", "0", *words]) == 0
    return Finished(latest(str(out)), port)


def rows(done: Finished, stage: str) -> pl.DataFrame:
    return pl.from_arrow(done.written(done.plan.stages[stage]))


@pytest.mark.soak(cpu_s=30)
def test_negclip_normsim_keeps_a_fifth_of_the_pool_by_both(served, tmp_path):
    done = run("negclip-normsim", served, tmp_path)
    fits, subset, near = (rows(done, name) for name in ("fits", "subset", "near"))
    assert fits["keep"].sum() == int(0.3 * len(fits))
    assert subset["keep"].sum() == int(0.6667 * fits["keep"].sum())
    best = near.filter(fits["keep"]).top_k(int(subset["keep"].sum()), by="norm_sim")
    assert set(subset.filter("keep")["uid"]) == set(best["uid"])


@pytest.mark.soak(cpu_s=30)
def test_hype_keeps_the_best_sums(served, tmp_path):
    done = run("hype", served, tmp_path)
    score, subset = rows(done, "score"), rows(done, "subset")
    parts = pl.sum_horizontal("hyperbolic_alignment", "image_specificity", "text_specificity")
    scored = score.drop_nulls("hype_score")
    assert np.allclose(scored["hype_score"], scored.select(parts).to_series(), atol=1e-5)
    best = scored.top_k(int(0.15 * len(score)), by="hype_score")
    assert set(subset.filter("keep")["uid"]) == set(best["uid"])


@pytest.mark.soak(cpu_s=40)
def test_flyt_mix_learns_weights_and_draws_good_rows_more_often(served, tmp_path):
    done = run("flyt-mix", served, tmp_path)
    summary = done.state.stages["mix"].folder.path + "/out/mix.json"
    weights = {c["column"]: c["weight"] for c in json.loads(Path(summary).read_text())["columns"]}
    assert weights["clip_score"] + weights["negclip_score"] + weights["above_chance"] > 0
    mix, subset, rest = rows(done, "mix"), rows(done, "subset"), rows(done, "rest")
    drawn = subset["keep"]
    assert subset["repeats"].sum() == 300
    assert not (drawn & ~rest["keep"]).any(), "trusted rows are learnt from, and not drawn"
    candidates = mix.filter(rest["keep"] & ~drawn)["mix_score"].drop_nulls()
    assert mix.filter(drawn)["mix_score"].mean() > candidates.mean()
    uid = subset.filter("keep")["uid"][0].hex()
    assert "for its " in why(done.state, uid).ends[-1].sentence


@pytest.mark.soak(cpu_s=60)
def test_strange_ground_learns_from_home_alone_and_a_bench_trains_on_strangers(served, tmp_path):
    pool, _ = served
    uids = [pl.read_parquet(pool / name / "*.parquet")["uid"] for name in PARTS]
    strangers = uids[0].to_list()[::3]
    home = sorted({*uids[0].to_list(), *uids[1].to_list()} - {*strangers})
    (tmp_path / "home.txt").write_text("\n".join(home))
    out = tmp_path / "run"
    done = run("strange-ground", served, out, f"home.path={tmp_path / 'home.txt'}")
    ours, ranks = rows(done, "ours"), rows(done, "ranks")
    rank = ranks.filter(ours["keep"] & ranks["mix_score"].is_not_null())["mix_of_clip_score"]
    assert abs(rank.mean()) < 1e-6, "ranks are shares of home's rows in the pool"
    given = [f"fit={out}:fit_best", f"flyt={out}:flyt_best", "--hold-out", "home"]
    given += ["--tasks", str(pool / "eval"), "--out", str(tmp_path / "bench"), "--seeds", "1"]
    given += ["--set", "batch_size=8", "--set", "samples_seen=16", "--set", "warmup_steps=1"]
    assert main(["bench", *given, "--workers", "0"]) == 0
    raw = pl.read_parquet(tmp_path / "bench/arms/raw.parquet")["uid"].to_list()
    assert raw
    assert {uid.hex() for uid in raw} <= {*strangers}


@pytest.mark.soak(cpu_s=10)
def test_datacomp_text_keeps_english_captions_that_name_a_class(served, tmp_path):
    wordnet = write_wordnet(tmp_path / "wordnet")
    done = run("datacomp-text", served, tmp_path / "run", f"subset.wordnet={wordnet}")
    subset, lang, pool = (rows(done, name) for name in ("subset", "lang", "pool"))
    words = {"circle", "triangle", "sun", "watches", "suns", "circles", "triangles"}
    names = [any(w.lower() in words for w in (text or "").split()) for text in pool["text"]]
    expected = (lang["language"] == "en").fill_null(False) & pl.Series(names)
    assert subset["keep"].to_list() == expected.to_list()
    assert 20 < expected.sum() < 300
