"""A sample through the commands: run as a control, swept, asked about."""

import pytest

RECIPE = """
stages:
  pool:    {uses: ingest.datacomp, path: %s/metadata, shard_rows: 50}
  caption: {uses: annotate.caption, from: pool}
  best:    {uses: select.where, from: caption, where: caption_words >= 3}
  random:  {uses: select.sample, from: best, rows: 20}
  uids:    {uses: export.uid_list, from: random}
"""


@pytest.fixture(scope="module")
def recipe(generated, tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "it.yaml"
    path.write_text(RECIPE % generated)
    return path


def test_a_sample_is_a_control_that_is_swept_and_explained(recipe, clipmill, tmp_path):
    run = tmp_path / "run"
    assert clipmill("run", recipe, "--out", run, "--workers", 0).code == 0
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
