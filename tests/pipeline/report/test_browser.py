"""The report in a browser: nothing off screen, all legible, every link leads somewhere."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmill.metadata.stats import Estimate
from clipmill.pipeline.ledger.proof.curves import Curve
from clipmill.pipeline.report.build import report
from clipmill.pipeline.report.leaderboard import leaderboard
from tests.legible import LEADING_NOWHERE, faults, looks
from tests.pipeline.bench.test_tables import board


@pytest.fixture(scope="module")
def page(state, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipmill.pipeline.report.ends.LEAST_ROWS", 5)  # so that there are groups
        file.write_text(report(state))
    return file


@pytest.fixture(scope="module")
def clusters_page(clustered, own_stages, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "clusters.html"
    file.write_text(report(clustered))
    return file


@pytest.fixture(scope="module")
def captions_page(captioned, own_stages, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "captions.html"
    file.write_text(report(captioned))
    return file


@pytest.fixture(scope="module")
def pages(page, clusters_page, captions_page) -> tuple[Path, ...]:
    return page, clusters_page, captions_page


def test_nothing_is_off_screen_and_all_is_legible(pages, tab):
    bad = []
    for page in pages:
        for width, scheme in looks(tab, page):
            bad += faults(tab)
            shown = np.asarray(Image.open(BytesIO(tab.picture())).convert("L"))
            assert shown.shape[1] == width
            assert shown[2, 2] < 60 if scheme == "dark" else shown[2, 2] > 200
            assert len(np.unique(shown)) > 50  # text, bars and charts
    assert bad == []


def test_a_leaderboard_breaks_long_names_of_arms_on_a_phone(tab, tmp_path):
    name = "_".join(["an_arm_of_many_rules"] * 5)
    plain = board()
    lines = [
        replace(line, arm=f"{name}_{line.arm}", warnings=("one seed",)) for line in plain.lines
    ]
    curve = (Estimate(0.1, -0.4, 1.2), Estimate(0.2))
    curves = [Curve(arm=arm, share=(0.5, 1.0), result=curve) for arm in (lines[0].arm, "raw")]
    (task,) = plain.results.tasks
    renamed = (replace(cell, arm=f"{name}_{cell.arm}") for cell in task.cells)
    task = replace(task, cells=tuple(renamed))
    results = replace(plain.results, tasks=(task,))
    page = replace(plain, lines=tuple(lines), curves=tuple(curves), results=results)
    (tmp_path / "board.html").write_text(leaderboard(page, "a bench"))
    bad = [fault for _ in looks(tab, tmp_path / "board.html") for fault in faults(tab)]
    assert bad == []
    cells = '[...document.querySelectorAll("th[scope=row]")]'
    assert max(tab.value(f"{cells}.map((e) => e.getBoundingClientRect().right)")) <= 420
    assert max(tab.value(f"{cells}.map((e) => e.scrollWidth)")) <= 420


def test_what_is_off_screen_or_faint_is_seen(tab, tmp_path):
    bad = '<main><p style="width: 3000px">wide</p><p style="color: #ccc">faint</p></main>'
    (tmp_path / "bad.html").write_text(f"<title>bad</title>{bad}<a href='#nowhere'>a</a>")
    tab.show(tmp_path / "bad.html", 420, "light")
    (*_, wider), (*look, wide), (*_, faint) = faults(tab)
    assert (look, faint[0]) == (["bad", 420, "light"], "faint")
    assert wider > 3000
    assert "wide" in wide
    assert tab.value(LEADING_NOWHERE) == ["#nowhere"]


def test_the_whole_width_is_used_and_a_narrow_window_shows_every_arm(page, tab):
    tab.show(page, 1400, "light")
    wide = ("#results table", "#thresholds .sides", "#relations .rules", "#samples .grid")
    for used in ("main", ".falls", *wide):
        assert tab.value(f'document.querySelector("{used}").getBoundingClientRect().right') > 1340
    tab.show(page, 420, "light")
    rows = '[...document.querySelector("#results table").querySelectorAll("tbody tr")]'
    assert tab.value(f"{rows}.map((e) => e.querySelector('th').textContent)") == ["shards", "raw"]
    cells = f'{rows}.flatMap((e) => [...e.querySelectorAll("td.n")])'
    assert max(tab.value(f"{cells}.map((e) => e.getBoundingClientRect().right)")) <= 420
    said = tab.value(f'{cells}.map((e) => getComputedStyle(e, "::before").content)')
    assert said == 2 * ['"acc1"', '"against raw"', '"seeds"', '"epochs"']


def test_every_link_leads_somewhere_and_the_contents_name_every_section(pages, tab):
    for page in pages:
        tab.show(page, 1400, "light")
        assert tab.value(LEADING_NOWHERE) == [], page
        ids = tab.value('[...document.querySelectorAll("[id]")].map((e) => e.id)')
        assert len(ids) == len(set(ids)), page
        named = '[...document.querySelectorAll("nav li a")].map((a) => a.hash.slice(1))'
        sections = '[...document.querySelectorAll("main section")].map((e) => e.id)'
        assert tab.value(named) == tab.value(sections) != [], page


def test_a_bar_leads_to_its_samples_which_lead_back(page, tab):
    tab.show(page, 1400, "light")
    tab.value("document.querySelector('.falls a').click()")
    at = "document.querySelector(':target').getBoundingClientRect()"
    assert tab.value("location.hash") == "#cause-1-1"
    assert tab.value(f"{at}.height") > 0  # its fold has opened
    assert 0 <= tab.value(f"{at}.top") < 900
    tab.value("document.querySelector(':target a').click()")
    assert tab.value("location.hash") == "#fall-1-1"
    assert 0 <= tab.value(f"{at}.top") < 900


def test_a_picture_leads_to_a_larger_view_and_back(page, tab):
    tab.show(page, 1400, "light")
    tab.value("document.querySelector('#samples a.frame').click()")
    width = "document.querySelector('#samples figure img').getBoundingClientRect().width"
    assert tab.value(width) > 300
    tab.value("document.querySelector(':target .smaller').click()")
    assert tab.value(width) < 150


CARDS = """[...document.querySelectorAll(".c > .card")].filter((e) => e.checkVisibility())
  .map((e) => e.querySelector("b").textContent)"""
DISC = 'document.querySelectorAll(".c > i")[{}]'


def test_a_disc_that_is_pointed_at_or_gone_to_by_keyboard_shows_its_card(clusters_page, tab):
    for look in looks(tab, clusters_page):
        tab.value("document.querySelector('.plane-view').scrollIntoView()")
        assert tab.value(CARDS) == [], look
        last = tab.value("document.querySelectorAll('.c').length") - 1  # the smallest lies on top
        box = f"{DISC.format(last)}.getBoundingClientRect()"
        tab.mouse(
            "mouseMoved", tab.value(f"{box}.left + {box}.width / 2"), tab.value(f"{box}.top + 2")
        )
        (pointed,) = tab.value(CARDS)
        assert pointed in tab.value(f"{DISC.format(last)}.parentElement.ariaLabel + ':'")
        assert faults(tab) == []
        tab.mouse("mouseMoved", 1, 1)
        assert tab.value(CARDS) == []
        tab.value("document.querySelector('.by').focus()")
        tab.key("Tab", 9)
        (reached,) = tab.value(CARDS)
        assert tab.value("document.activeElement.ariaLabel").startswith(f"{reached}:")
        tab.value("document.activeElement.blur()")


def test_the_shade_of_a_disc_is_of_what_is_asked_for(clusters_page, tab):
    tab.show(clusters_page, 1400, "light")
    each = "[...document.querySelectorAll('.c > i')]"
    shade = f"{each}.map((e) => getComputedStyle(e).backgroundColor).join()"
    shades = []
    for number in (1, 2, 3, 4, 5):
        tab.value(f"document.querySelector('#clusters-by-{number}').click()")
        shades.append(tab.value(shade))
        visible = "[...document.querySelectorAll('.scale')].filter((e) => e.checkVisibility())"
        assert tab.value(f"{visible}.map((e) => e.className)") == [f"scale scale{number}"]
    assert "rgba(0, 0, 0, 0)" not in ",".join(shades)
    assert len(set(shades)) >= 3  # `even` and `capped` may keep as many of each
    tab.value("document.querySelector('.skip a').focus()")
    assert tab.value("document.querySelector('.skip').getBoundingClientRect().width") > 50


def test_what_a_reader_that_sees_nothing_needs_is_there(page, tab):
    tab.show(page, 1400, "light")
    assert tab.value("document.querySelectorAll('main').length") == 1
    assert tab.value("document.querySelectorAll('nav[aria-label]').length") == 1
    for nameless in (
        "th:not([scope])",
        ".wide:not([aria-label])",
        "svg:not([aria-label])",
        "img:not([alt])",
        "section:not([aria-labelledby])",
    ):
        assert tab.value(f'document.querySelectorAll("{nameless}").length') == 0, nameless
    empty = "[...document.querySelectorAll('th, a')].filter((e) => !e.textContent.trim()"
    assert tab.value(f"{empty} && !e.querySelector('img[alt]')).length") == 0
