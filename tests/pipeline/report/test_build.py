"""The report: one file that needs nothing else, every caption escaped, the same bytes each time."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.proof.compare import Scored, compare, judged
from clipmill.pipeline.ledger.proof.results import results
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.report.build import report
from clipmill.pipeline.report.page import MINUS
from clipmill.pipeline.run_folder.live import live_stage
from clipmill.pipeline.run_folder.sessions import sessions
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import duration
from tests.drawn import HOSTILE, ROWS
from tests.parsed import Page

pytestmark = pytest.mark.usefixtures("own_stages")


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_nothing_is_asked_for_outside_the_file(html, page):
    assert page.asks_for_nothing()
    assert "url(" not in html
    assert "@import" not in html


def test_a_hostile_caption_is_text(html, page):
    assert HOSTILE in page.text
    assert "<script" not in html
    assert len(page.all("img")) == html.count("<img ")


@pytest.mark.parametrize(
    "tag",
    [
        "<script>1</script>",
        '<link rel="stylesheet">',
        '<a href="http://a.test/">a</a>',
        '<img src="http://a.test/a.png">',
        '<p onclick="1">a</p>',
    ],
)
def test_what_would_ask_for_more_is_seen(tag):
    assert not Page(f"<main>{tag}</main>").asks_for_nothing()


def test_every_picture_and_plot_says_what_it_is(page):
    assert all(image["alt"] for image in page.all("img"))
    plots = page.all("svg")
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert len(plots) == 4 + 1  # scores: words, min_side, aspect_ratio, luma_std; one of trainings


def test_the_same_run_gives_the_same_bytes(html, state):
    assert report(RunState(state.plan, state.run)) == html


def test_the_run_folder_alone_is_enough(html, state, tmp_path):
    shutil.copytree(state.run.path, tmp_path / "copy")
    stages = state.plan.recipe.stages
    stages = {**stages, "pool": {**stages["pool"], "path": str(tmp_path / "nowhere")}}
    plan = make_plan(replace(state.plan.recipe, stages=stages))
    copied = report(RunState(plan, Storage(str(tmp_path / "copy"))))
    assert copied.replace(str(tmp_path / "copy"), state.run.path) == html


def test_it_says_what_ran_and_what_is_left(page, state):
    assert f"{ROWS} rows in the pool" in page.text
    kept = live_stage(state, "subset").reasons[""]
    assert f"{kept} of {ROWS} rows kept" in page.text
    assert re.search(rf"shards \d+ [\d.]+ kB {kept} {ROWS - kept} not_kept", page.text)  # Exports
    assert "seed 0" in page.text
    assert "uses: select.where" in page.text


def test_a_run_without_a_finished_select_still_has_a_report(state, tmp_path):
    shutil.copytree(state.run.path, tmp_path / "copy")
    for stage in ("subset", "worth", "same", "near", "leaks"):
        shutil.rmtree(tmp_path / "copy" / state.plan.stages[stage].folder)
    page = Page(report(RunState(state.plan, Storage(str(tmp_path / "copy")))))
    assert re.search(r"This run is not complete. \d+ of 15 stages are not done: worth", page.text)
    assert "clipmill status --run" in page.text
    assert not page.all("img")


def test_what_an_earlier_select_keeps_is_called_so_in_an_unfinished_run(state, tmp_path):
    shutil.copytree(state.run.path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / state.plan.stages["subset"].folder)
    page = Page(report(RunState(state.plan, Storage(str(tmp_path / "copy")))))
    kept = live_stage(state, "worth").reasons[""]
    failed = live_stage(state, "look").reasons[
        "undecodable"
    ]  # no less lost, though `worth` keeps them
    assert failed > 0
    assert f"So far {kept - failed} of {ROWS} rows kept by worth, " in page.text
    assert re.search(rf"look undecodable {failed} rows?", page.text)
    assert f"kept {kept - failed} rows" in page.text


def test_bars_come_down_from_the_pool_to_what_is_kept_by_the_rows_that_were_lost(html, state):
    bars = html.partition('<ol class="falls">')[2].partition("</ol>")[0]
    lost = [int(rows) for rows in re.findall(rf'"count">{MINUS}(\d+)', bars)]
    left = [float(width) for width in re.findall(r'"left" style="width:([\d.]+)%', bars)]
    expected = [100 - 100 * sum(lost[:number]) / ROWS for number in range(len(lost) + 1)]
    kept = live_stage(state, "subset").reasons[""]
    assert sum(lost) == ROWS - kept
    assert left == pytest.approx([*expected, 100 * kept / ROWS], abs=0.006)


def test_a_condition_of_many_values_is_cut(state, tmp_path):
    many = ", ".join(map(str, range(100, 400)))
    where = f"caption_words IN ({many})"
    stages = {name: state.plan.recipe.stages[name] for name in ("pool", "caption")}
    stages["few"] = {"uses": "select.where", "from": "caption", "where": where}
    plan = make_plan(Recipe(name="many", path="many.yaml", seed=0, stages=stages))
    run = run_plan(plan, Storage(str(tmp_path / "run")), LocalExecutor(0), Lines()).state
    before_the_recipe, _ = report(run).split('<section id="recipe"')
    assert "250, 251" not in before_the_recipe
    assert f"({len(where):,} characters)" in before_the_recipe


LINKS = """
stages:
  pool:   {uses: ingest.datacomp, path: %s/metadata}
  images: {uses: download.images, from: pool}
  subset: {uses: select.where, from: images, where: width >= 16}
"""


def test_links_that_failed_stand_in_a_table_with_their_address(clipmill, generated, tmp_path):
    (tmp_path / "it.yaml").write_text(LINKS % generated)
    run = ("run", tmp_path / "it.yaml", "--out", tmp_path / "run", "--workers", "0")
    clipmill(*run, "--keep-going")
    assert clipmill("report", "--run", tmp_path / "run", "--out", tmp_path / "it.html").code == 0
    html = (tmp_path / "it.html").read_text()
    table = html.partition("Rows that got no picture or value")[2].partition("</table>")[0]
    assert "images private_address</a>" in table  # the pool names loopback
    assert re.search(r'<td class="any">127.0.0.1:\d+</td><td class="any link">http://127', table)
    assert "no picture</div>" not in html
    assert Page(html).asks_for_nothing()


def test_the_headline_says_what_is_kept_why_most_went_and_what_it_is_worth(page, state):
    kept = live_stage(state, "subset").reasons[""]
    assert f"{kept} of {ROWS} rows kept, {kept / ROWS:.1%}. Most were lost to" in page.text
    assert "In the acc1 of flags : shards beats raw by 22.0 ± 6.1 ." in page.text
    assert "This run is not complete" not in page.text


def test_it_says_how_long_it_took_on_what_and_no_absolute_path_of_a_setting(
    clipmill, generated, tmp_path
):
    (tmp_path / "it.yaml").write_text("stages: {pool: {uses: ingest.datacomp, path: none}}")
    path = f"pool.path={generated}/metadata"
    run = ("run", tmp_path / "it.yaml", "--set", path, "--out", tmp_path / "run", "--workers", "0")
    for _ in range(2):
        assert clipmill(*run).code == 0
    clipmill("report", "--run", tmp_path / "run", "--out", tmp_path / "it.html")
    page = Page((tmp_path / "it.html").read_text())
    first, second = sessions(Storage(str(tmp_path / "run")))
    assert f"{duration(first.seconds + second.seconds)} by the clock, in 2 runs" in page.text
    assert first.machine in page.text
    assert f"clipmill {first.clipmill}" in page.text
    above_the_recipe = page.text.partition("The stages as they ran")[0]
    assert "--set pool.path=…/metadata" in above_the_recipe
    assert str(generated) not in above_the_recipe


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([0.42, 0.44], "acc1 of flags : shards beats raw by 22.0 ± 6.1 ."),
        ([0.02, 0.04], "acc1 of flags : raw beats shards by 18.0 ± 6.1 ."),
        ([0.2, 0.26], "acc1 of flags : no difference between raw and shards."),
        ([0.44], "acc1 of flags : shards against raw, one seed: no interval is claimed."),
    ],
)
def test_what_a_subset_is_worth_is_said_in_the_words_that_its_interval_allows(
    best, said, state, monkeypatch
):
    found = results(state, [])
    (row,) = found.tasks
    base, other = row.cells
    scored = [
        Scored(seeds=tuple(range(len(values))), value_S=np.array(values))
        for values in (best, [0.2, 0.22])
    ]
    cells = (base, replace(other, against=tuple(judged([compare("shards", "raw", *scored)]))))
    told = replace(found, tasks=(replace(row, cells=cells),))
    monkeypatch.setattr("clipmill.pipeline.report.build.results", lambda *_: told)
    monkeypatch.setattr("clipmill.pipeline.report.build._sections", lambda *_: ())  # the head alone
    assert said in Page(report(state)).text


def test_the_arms_stand_against_every_baseline_that_is_named(state):
    page = Page(report(state, ["raw", "shards"])).text
    assert "against raw verdict against shards verdict seeds epochs" in page
    assert "shards 43.0 ± 12.7 +22.0 ± 6.1 beats raw the baseline 2 10.0 raw" in page
    assert f"the baseline {MINUS}22.0 ± 6.1 shards beats it 2 10.0" in page
