"""The report: one file that needs nothing else, every caption escaped, the same bytes each time."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metadata.storage import Storage
from pipeline.engine.run import run_plan
from pipeline.executors.local import LocalExecutor
from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import Recipe
from pipeline.progress import Lines
from pipeline.report.build import report
from pipeline.run_folder.state import RunState
from tests.drawn import HOSTILE, ROWS
from tests.parsed import Page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def html(state) -> str:
    return report(state)


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
    assert len(plots) == 4 + 4  # scores: words, min_side, aspect_ratio, luma_std; four trainings


def test_the_same_run_gives_the_same_bytes(html, state):
    assert report(RunState(state.plan, state.run)) == html


def test_the_run_folder_alone_is_enough(html, state, tmp_path):
    shutil.copytree(state.run.path, tmp_path / "copy")
    pool = Path(state.plan.recipe.stages["pool"]["path"])
    hidden = pool.rename(pool.with_name("hidden"))
    try:
        copied = report(RunState(state.plan, Storage(str(tmp_path / "copy"))))
    finally:
        hidden.rename(pool)
    assert copied.replace(str(tmp_path / "copy"), state.run.path) == html


def test_it_says_what_ran_and_what_is_left(page, state):
    assert f"{ROWS} rows in the pool" in page.text
    kept = state.stages["subset"].counts[""]
    assert f"{kept} rows exported by shards" in page.text
    assert "seed 0" in page.text
    assert "uses: select.where" in page.text


def test_a_run_without_a_finished_select_still_has_a_report(state, tmp_path):
    shutil.copytree(state.run.path, tmp_path / "copy")
    for stage in ("subset", "worth", "same", "near", "leaks"):
        shutil.rmtree(tmp_path / "copy" / state.plan.stages[stage].folder)
    page = Page(report(RunState(state.plan, Storage(str(tmp_path / "copy")))))
    assert "nothing yet" in page.text
    assert not page.all("img")


def test_a_condition_of_a_thousand_values_is_cut(state, tmp_path):
    many = ", ".join(map(str, range(100, 1100)))
    where = f"caption_words IN ({many})"
    stages = {name: state.plan.recipe.stages[name] for name in ("pool", "caption")}
    stages["few"] = {"uses": "select.where", "from": "caption", "where": where}
    plan = make_plan(Recipe(name="many", path="many.yaml", seed=0, stages=stages))
    run = run_plan(plan, Storage(str(tmp_path / "run")), LocalExecutor(0), Lines()).state
    before_the_recipe, _ = report(run).split("<h2>Recipe</h2>")
    assert "500, 501" not in before_the_recipe
    assert f"({len(where):,} characters)" in before_the_recipe


def test_a_browser_shows_it_light_dark_wide_and_narrow(html, tmp_path):
    assert CHROMIUM, "install a browser: apt-get install chromium"
    (tmp_path / "report.html").write_text(html)
    shots = {}
    for width in (1200, 420):
        for scheme in ("0", "1"):  # dark, light
            shot = tmp_path / f"{width}-{scheme}.png"
            screenshot(tmp_path / "report.html", shot, width, scheme, tmp_path)
            shots[width, scheme] = shot
    for (width, scheme), shot in shots.items():
        shown = np.asarray(Image.open(shot).convert("L"))
        assert shown.shape[1] == width
        assert shown[2, 2] < 60 if scheme == "0" else shown[2, 2] > 200
        assert len(np.unique(shown)) > 100  # pictures, bars and text


def screenshot(page: Path, shot: Path, width: int, scheme: str, folder: Path) -> None:
    subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={width},1800",
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
