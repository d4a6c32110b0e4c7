"""A sample through the commands: run as a control, swept, asked about; the same for all workers."""

import pytest

RECIPE = """
stages:
  pool:    {uses: ingest.datacomp, path: %s/metadata, shard_rows: 50}
  caption: {uses: annotate.caption, from: pool}
  best:    {uses: select.where, from: caption, where: caption_words >= 3}
  random:  {uses: select.sample, from: best, rows: 20}
  words:   {uses: select.sample, from: best, per: caption_words, at_most: 2}
  hosts:   {uses: select.sample, from: best, by: domain, fraction: 0.5}
  uids:    {uses: export.uid_list, from: random}
"""


@pytest.fixture(scope="module")
def recipe(generated, tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "it.yaml"
    path.write_text(RECIPE % generated)
    return path


@pytest.mark.slow("a worker begins")
def test_a_sample_is_a_control_that_is_swept_and_explained(recipe, clipmill, tmp_path):
    run = tmp_path / "run"
    assert clipmill("run", recipe, "--out", run, "--workers", 1).code == 0
    said = clipmill("funnel", "--run", run).out
    assert "20  16.7%  kept by 'random'" in said
    swept = clipmill(
        "sweep", "--run", run, "--stage", "random", "--vary", "rows=10:30:10", "--json"
    ).json
    assert [(at["kept"], at["won"], at["lost"]) for at in swept["points"]] == [
        (10, 0, 10),
        (20, 0, 0),
        (30, 10, 0),
    ]
    lost = swept["points"][2]["samples"]["won"][0]["uid"]
    why = clipmill("why", lost, "--run", run).out
    assert "dropped by 'random': sampled_out; its rank is " in why
    assert "it is not among the least 20" in why
    again = tmp_path / "again"
    assert clipmill("run", recipe, "--out", again, "--workers", 0).code == 0
    for stage in ("random", "words", "hosts"):
        (one,), (other,) = (sorted(at.glob(f"stages/{stage}-*")) for at in (run, again))
        stored = [[f.read_bytes() for f in sorted(at.glob("0*.parquet"))] for at in (one, other)]
        assert len(stored[0]) == 3
        assert stored[0] == stored[1], stage


def test_a_column_that_makes_no_groups_is_refused_with_its_line(generated, clipmill, tmp_path):
    path = tmp_path / "it.yaml"
    path.write_text(
        f"stages:\n  pool: {{uses: ingest.datacomp, path: {generated}/metadata}}\n"
        "  concepts: {uses: annotate.concepts, from: pool, concepts: none.parquet}\n"
        "  few: {uses: select.sample, from: concepts, per: concept_ids, at_most: 2}\n"
    )
    said = clipmill("plan", path)
    assert said.code == 2
    assert "column 'concept_ids' holds list<" in said.err
    assert "it.yaml:4" in said.err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("fraction: 0", "above 0, at most 1"),
        ("fraction: 1.01", "above 0, at most 1"),
        ("rows: 0", "at least 1"),
        ("rows: 2.5", "a whole number"),
        ("per: text, at_most: 0", "at least 1"),
        ('by: "", fraction: 0.5', "text, not empty"),
        ("fraction: 0.5, rows: 3", "fraction and rows say how much stays"),
        ("by: words, rows: 3", "no ancestor writes column 'words'"),
        ("by: pool.words, rows: 3", "'pool' writes no 'words'"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_line(
    settings, said, generated, clipmill, tmp_path
):
    path = tmp_path / "it.yaml"
    path.write_text(
        f"stages:\n  pool: {{uses: ingest.datacomp, path: {generated}/metadata}}\n"
        f"  few: {{uses: select.sample, from: pool, {settings}}}\n"
    )
    refused = clipmill("plan", path)
    assert refused.code == 2
    assert said in refused.err
    assert "it.yaml:3" in refused.err
