"""Thresholds past what a stage can tell of: refused by plan and by sweep, with the limit."""

import pytest

RECIPE = """
stages:
  pool:    {uses: ingest.datacomp, path: %s/metadata}
  wording: {uses: dedup.minhash, from: pool, min_jaccard: 0.7}
  subset:
    uses: select.where
    from: wording
    where: joined_at IS NULL OR joined_at < %s
"""


@pytest.fixture
def recipe(tmp_path, generated, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(threshold) -> str:
        (tmp_path / "it.yaml").write_text(RECIPE % (generated, threshold))
        return "it.yaml"

    return write


@pytest.mark.parametrize(("threshold", "code"), [(0.7, 0), (1, 0), (0.69, 2), (1.01, 2)])
def test_a_plan_refuses_a_threshold_that_no_stored_value_tells_of(
    clipmill, recipe, threshold, code
):
    said = clipmill("plan", recipe(threshold))
    assert said.code == code
    if code:
        assert f"joined_at is compared with {threshold:g}" in said.err
        assert "'wording' stores values from 0.7 to 1" in said.err
        assert "stage 'subset', key `where`" in said.err


@pytest.mark.parametrize(
    "where",
    [
        "COALESCE(joined_at, 0) < 0.6",
        "joined_at IS NULL OR joined_at NOT BETWEEN 0.6 AND 1",
        "joined_at IS NULL OR NOT joined_at IN (0.5, 1)",
    ],
)
def test_whichever_way_it_is_put(clipmill, tmp_path, recipe, where):
    text = (
        (tmp_path / recipe(0.7)).read_text().replace("joined_at IS NULL OR joined_at < 0.7", where)
    )
    (tmp_path / "it.yaml").write_text(text)
    said = clipmill("plan", "it.yaml")
    assert said.code == 2
    assert "'wording' stores values from 0.7 to 1" in said.err
    assert clipmill("plan", "it.yaml", "--set", "wording.min_jaccard=0.5").code == 0


def test_keepers_of_several_orders_are_noted_and_of_one_are_not(clipmill, tmp_path, recipe):
    text = (tmp_path / recipe(0.9)).read_text().replace("from: wording", "from: [wording, same]")
    text += "      AND same.duplicate_of IS NULL\n"
    keep = "keep: {column: original_width, order: desc}"
    same = "  same:    {uses: dedup.exact, from: pool, by: url, KEEP}\n  subset:"
    (tmp_path / "it.yaml").write_text(text.replace("  subset:", same.replace("KEEP", keep)))
    note = "same, wording keep by several orders"
    assert note in clipmill("plan", "it.yaml").out
    said = clipmill("run", "it.yaml", "--out", "run", "--until", "pool", "--workers", "0")
    assert note not in said.err  # which has no select
    said = clipmill("run", "it.yaml", "--out", "run", "--workers", "0")
    assert f"clipmill: note: 'subset': {note}" in said.err
    one = ("--set", f"wording.{keep.replace(': {', '={', 1)}")
    assert "note" not in clipmill("plan", "it.yaml", *one).out
    several = "keep=[{column: original_width, order: desc}, {column: original_height, order: asc}]"
    assert note in clipmill("plan", "it.yaml", "--set", f"wording.{several}").out
    both = ("--set", f"wording.{several}", "--set", f"same.{several}")
    assert "note" not in clipmill("plan", "it.yaml", *both).out


def test_a_deeper_floor_takes_the_threshold(clipmill, recipe):
    assert clipmill("plan", recipe(0.5), "--set", "wording.min_jaccard=0.5").code == 0


def test_a_sweep_stays_within_and_counts_like_the_selection(clipmill, recipe):
    assert clipmill("run", recipe(0.8), "--out", "run", "--workers", "0").code == 0
    sweep = ("sweep", "--run", "run", "--stage", "subset", "--json", "--vary")
    said = clipmill(*sweep, "joined_at=0.6:0.9:0.1")
    assert said.code == 2
    assert "'wording' stores values from 0.7 to 1" in said.err
    points = clipmill(*sweep, "joined_at=0.7:1.0:0.1").json["points"]
    kept = [point["kept"] for point in points]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]
    assert clipmill("run", recipe(1.0), "--out", "run", "--workers", "0").code == 0
    (end,) = clipmill("funnel", "--run", "run", "--json").json["ends"]
    assert end["kept"] == kept[-1]
