"""`pool score`: what it finds, against the truth, and what it leaves for the report."""

import numpy as np
import polars as pl
import pytest

from clipmill.metadata.sealed import read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.ledger.findings.planted import HARMLESS
from clipmill.pipeline.pools.faults import HARMLESS_LINKS
from tests.parsed import Page


def areas_of(found: dict) -> dict:
    return {row["kind"]: row for row in found["detection"]}


def test_areas_are_those_of_english_rows_by_the_truth(clipmill, generated, ran):
    found = areas_of(clipmill("pool", "score", generated, "--run", ran, "--json").json)
    truth = pl.read_parquet(generated / "truth.parquet")
    pool = pl.read_parquet(generated / "metadata" / "*.parquet").select("uid", "text")
    rows = truth.join(pool, on="uid").filter(pl.col("text").is_not_null())
    good = rows.filter("is_good", pl.col("lang") == "en")["text"].str.len_bytes().to_list()
    for kind in ("swapped", "spam", "boilerplate"):  # boilerplate is of no language
        row = found[f"text_issue: {kind}"]
        faulty = rows.filter(pl.col("text_issue") == kind, pl.col("lang").fill_null("en") == "en")
        bad = faulty["text"].str.len_bytes().to_list()
        pairs = [(g > b) + (g == b) / 2 for g in good for b in bad]
        assert row["rows"] == len(bad) > 0
        assert row["auc"]["value"] == pytest.approx(np.mean(pairs))
        assert (row["stage"], row["good"]) == ("length", len(good))


def test_every_select_of_the_run_is_judged(clipmill, generated, ran):
    found = clipmill("pool", "score", generated, "--run", ran, "--json").json
    subset, best = found["selects"]
    assert (subset["stage"], best["stage"]) == ("subset", "best")
    assert best["kept"] < subset["kept"] < subset["rows"] == best["rows"]
    boilerplate = {row["kind"]: row for row in best["planted"]}["text_issue: boilerplate"]
    assert {"subset", "best"} == {cause.partition(":")[0] for cause in boilerplate["caught"]}
    said = clipmill("pool", "score", generated, "--run", ran).out
    assert f"'subset' keeps {subset['kept']} of {subset['rows']} rows:" in said
    assert f"'best' keeps {best['kept']} of {best['rows']} rows:" in said


def test_a_truth_of_ones_own_is_judged_by_each_boolean_and_each_text_column(
    clipmill, generated, ran, tmp_path
):
    uids = pl.read_parquet(generated / "truth.parquet")["uid"]
    own = pl.DataFrame({"uid": uids}).with_row_index("number")
    third, number = pl.col("number") % 3, pl.col("number")
    own.select(
        "uid",
        is_odd=number % 2 == 1,
        found_in=pl.when(third == 0).then(pl.lit("a shop")).when(third == 1).then(pl.lit("a blog")),
        title=pl.format("row {}", "number"),
        size="number",
    ).write_parquet(tmp_path / "truth.parquet")
    found = clipmill("pool", "score", tmp_path, "--run", ran, "--json").json
    for judged in found["selects"]:
        rows = {row["kind"]: row["rows"] for row in judged["planted"]}
        assert rows["is_odd"] == len(uids) // 2
        assert rows["found_in: a shop"] == rows["found_in: a blog"] == len(uids) // 3
        assert rows.keys() == {"is_odd", "found_in: a shop", "found_in: a blog", "good"}
    assert areas_of(found).keys() == {"is_odd", "found_in: a shop", "found_in: a blog"}
    assert found["unjudged"] == {"title": len(uids)}
    assert "not judged: title" in clipmill("pool", "score", tmp_path, "--run", ran).out


def test_labels_may_have_any_name_and_a_truth_without_faults_has_good_rows_alone(
    clipmill, generated, ran, tmp_path
):
    truth = pl.read_parquet(generated / "truth.parquet").select("uid", odd=pl.col("is_good"))
    path = tmp_path / "truth.parquet"

    def scored(**labels):
        truth.with_columns(**labels).write_parquet(path)
        found = clipmill("pool", "score", tmp_path, "--run", ran, "--json").json
        return found["selects"][0]["kept"], found["detection"]

    shop = pl.when("odd").then(pl.lit("a shop"))
    plain, named = scored(), scored(cause=shop, clip_score=pl.lit(0.0))
    assert named[0] == plain[0] > 0
    assert [row for row in named[1] if row["kind"] == "odd"] == plain[1]
    truth.select("uid", lang=pl.when("odd").then(pl.lit("en"))).write_parquet(path)
    found = clipmill("pool", "score", tmp_path, "--run", ran, "--json").json["selects"][0]
    assert sum(row["rows"] for row in found["planted"]) == found["rows"]  # null is a language, too
    truth.select("uid").write_parquet(path)
    found = clipmill("pool", "score", tmp_path, "--run", ran, "--json").json
    assert [row["kind"] for row in found["selects"][0]["planted"]] == ["good"]


def test_links_that_work_nonetheless_are_those_of_the_pools_builder():
    assert {*HARMLESS} == {f"link_issue: {link}" for link in HARMLESS_LINKS}


@pytest.mark.parametrize(
    ("truth", "says"),
    [
        (pl.DataFrame({"is_odd": [True]}), "no text column `uid`"),
        (pl.DataFrame({"uid": [bytes(16)], "is_odd": [True]}), "no text column `uid`"),
        (b"PAR1 and no more", "no Parquet: "),
        (pl.DataFrame({"uid": ["0"], "is_good": [1]}), "`is_good` holds Int64"),
    ],
    ids=["no uid", "uid of bytes", "no Parquet", "good of numbers"],
)
def test_what_is_no_truth_is_refused(truth, says, clipmill, ran, tmp_path):
    path = tmp_path / "truth.parquet"
    path.write_bytes(truth) if isinstance(truth, bytes) else truth.write_parquet(path)
    said = clipmill("pool", "score", tmp_path, "--run", ran)
    assert (said.code, says in said.err) == (2, True), said.err


def test_what_it_found_is_in_the_report_until_the_run_changes(clipmill, generated, ran):
    page = ran.parent / "report.html"
    clipmill("report", "--run", ran, "--out", page)
    assert "planted truth" not in page.read_text()
    said = clipmill("pool", "score", generated, "--run", ran)
    assert "| text_issue: swapped |" in said.out
    clipmill("report", "--run", ran, "--out", page)
    found = areas_of(read_sealed(Storage(str(ran)), "truth.json"))
    for kind in ("text_issue: swapped", "text_issue: boilerplate"):
        assert f"{found[kind]['auc']['value']:.3f}" in page.read_text()
    shown = Page(page.read_text()).text
    for select in ("subset", "best"):
        assert f"What {select} and the stages before it caught" in shown
    command = ("run", "it.yaml", "--out", ran, "--workers", "0")
    assert clipmill(*command, "--set", "pool.shard_rows=50").code == 0
    clipmill("report", "--run", ran, "--out", page)
    assert "planted truth" not in page.read_text()
