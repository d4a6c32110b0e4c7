"""A run that holds no row, but an outside model's scores: each way to look at it has an answer."""

import pytest

from clipmill.pipeline.cli import main
from clipmill.pipeline.ledger.proof.measured import measured
from clipmill.pipeline.ledger.proof.trials import arms
from clipmill.pipeline.run_folder.state import latest
from tests.artefacts import linked
from tests.parsed import Page
from tests.stages.task_folders import write_tasks

RECIPE = "stages: {{scored: {{uses: evaluate.zero_shot, model: reference, tasks: {tasks}}}}}\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rowless")
    write_tasks(folder / "tasks")
    (folder / "it.yaml").write_text(RECIPE.format(tasks=folder / "tasks"))
    assert main(["run", f"{folder}/it.yaml", "--out", f"{folder}/run", "--workers", "0"]) == 0
    return folder / "run"


def test_the_funnel_lists_what_was_made(clipmill, run):
    said = clipmill("funnel", "--run", run)
    assert said.code == 0, said.err
    assert "none of its complete stages has rows" in said.out
    assert "scored: 3 files" in said.out
    found = clipmill("funnel", "--run", run, "--json").json
    assert (found["stages"], found["ends"]) == ([], [])
    assert [made["stage"] for made in found["exports"]] == ["scored"]


def test_the_report_shows_the_results(clipmill, run, tmp_path):
    said = clipmill("report", "--run", run, "--out", tmp_path / "page.html")
    assert said.code == 0, said.err
    assert "colours" in said.out
    assert "seeds an arm: 1; no interval is claimed\n" in said.out
    page = Page((tmp_path / "page.html").read_text())
    assert page.asks_for_nothing()
    assert "image_retrieval_recall@5" in page.text
    assert "Where the rows went" not in page.text
    assert "rows in the pool" not in page.text
    assert "difference" not in page.text


def test_an_evaluation_leaves_the_items_that_its_noise_is_of(run):
    (arm,) = arms(latest(str(run)))
    found = measured(arm.trials)
    assert {one.task for one in found} == {"colours", "words"}
    assert all(one.draw_SD is not None and one.chance is not None for one in found)


def test_status_speaks_and_what_needs_rows_says_that_there_are_none(clipmill, run):
    assert clipmill("status", "--run", run).code == 0
    for command in (("why", "0" * 32), ("sweep", "--stage", "scored", "--vary", "a=0:1:1")):
        said = clipmill(*command, "--run", run)
        assert (said.code, said.err[:9]) == (2, "clipmill:")
        assert "Traceback" not in said.err


def test_a_run_that_has_done_nothing_is_sent_to_run_first(clipmill, run, tmp_path):
    run = linked(run, tmp_path / "run")
    for made in (run / "stages").glob("scored-*/*.json"):
        made.unlink()
    said = clipmill("funnel", "--run", run)
    assert (said.code, "run the recipe first" in said.err) == (2, True)


def test_a_run_without_a_select_has_a_headline(clipmill, tmp_path):
    rows = "url,text\nhttp://a.test/1,two cats\nhttp://a.test/2,\nhttp://a.test/3,a dog\n"
    (tmp_path / "pool.csv").write_text(rows)
    pool = f"pool: {{uses: ingest.url_list, path: {tmp_path / 'pool.csv'}}}"
    words = "words: {uses: annotate.caption, from: pool}"
    (tmp_path / "it.yaml").write_text(f"stages:\n  {pool}\n  {words}\n")
    said = clipmill("run", tmp_path / "it.yaml", "--out", tmp_path / "run", "--workers", 0)
    assert "2 of 3 rows kept by 'words' (66.7%); lost to\n" in said.out
    assert clipmill("report", "--run", tmp_path / "run").code == 0
    page = (tmp_path / "run.html").read_text()
    assert '<p class="headline"><b>2 of 3 rows have a value of words, 66.7%; no stage' in page
    assert "The others lack it for <code>no_text</code> in words (1)." in page
