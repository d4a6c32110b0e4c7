"""The report in a browser: nothing off screen, all legible, every link leads somewhere."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.build import report
from tests.browser import Browser, browser

WIDTHS, SCHEMES = (1400, 420), ("light", "dark")
LOOKS = [(width, scheme) for width in WIDTHS for scheme in SCHEMES]

# Text is legible from 4.5 to 1 (WCAG 2.2, 1.4.3, AA).
FAINT = """(() => {
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = rgba(getComputedStyle(at).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.tagName === "title") continue;
    const style = getComputedStyle(element);
    const ink = rgba(element instanceof SVGElement ? style.fill : style.color);
    const [dark, pale] = [light(ink), light(behind(element))].sort((a, b) => a - b);
    const ratio = (pale + 0.05) / (dark + 0.05);
    if (ratio < 4.5) faint.push([walk.currentNode.data.trim().slice(0, 40), ratio]);
  }
  return faint;
})()"""
OFF_SCREEN = """[...document.querySelectorAll("main *, nav *")]
  .filter((e) => e.checkVisibility() && !e.closest(".hidden")
    && !e.parentElement.closest(".wide, pre"))
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1
    || e.getBoundingClientRect().left < -1)
  .map((e) => e.outerHTML.slice(0, 90))"""
LEADING_NOWHERE = """[...document.querySelectorAll("a")].map((a) => a.getAttribute("href"))
  .filter((to) => !to.startsWith("#") || !document.getElementById(to.slice(1)))"""
UNFOLD = 'document.querySelectorAll("details").forEach((each) => { each.open = true; })'


@pytest.fixture(scope="module")
def page(state, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.relations.LEAST_ROWS", 5)  # so that there are groups
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
def tab(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("which", ["page", "clusters_page", "captions_page"])
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_nothing_is_off_screen_and_all_is_legible(width, scheme, which, tab, request):
    tab.show(request.getfixturevalue(which), width, scheme)
    tab.value(UNFOLD)
    assert tab.value("innerWidth") == width
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(OFF_SCREEN) == []
    assert tab.value(FAINT) == []
    shown = np.asarray(Image.open(BytesIO(tab.picture())).convert("L"))
    assert shown.shape[1] == width
    assert shown[2, 2] < 60 if scheme == "dark" else shown[2, 2] > 200
    assert len(np.unique(shown)) > 50  # text, bars and charts


def test_what_is_off_screen_or_faint_is_seen(tab, tmp_path):
    bad = '<main><p style="width: 3000px">wide</p><p style="color: #ccc">faint</p></main>'
    (tmp_path / "bad.html").write_text(f"{bad}<a href='#nowhere'>a</a>")
    tab.show(tmp_path / "bad.html", 420, "light")
    assert "wide" in tab.value(OFF_SCREEN)[0]
    assert [text for text, _ in tab.value(FAINT)] == ["faint"]
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


@pytest.mark.parametrize("which", ["page", "clusters_page", "captions_page"])
def test_every_link_leads_somewhere_and_the_contents_name_every_section(which, tab, request):
    tab.show(request.getfixturevalue(which), 1400, "light")
    assert tab.value(LEADING_NOWHERE) == []
    ids = '[...document.querySelectorAll("[id]")].map((e) => e.id)'
    assert len(tab.value(ids)) == len(set(tab.value(ids)))
    named = '[...document.querySelectorAll("nav li a")].map((a) => a.hash.slice(1))'
    sections = '[...document.querySelectorAll("main section")].map((e) => e.id)'
    assert tab.value(named) == tab.value(sections) != []


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


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_disc_that_is_pointed_at_or_gone_to_by_keyboard_shows_its_card(
    width, scheme, clusters_page, tab
):
    tab.show(clusters_page, width, scheme)
    tab.value("document.querySelector('.plane-view').scrollIntoView()")
    assert tab.value(CARDS) == []
    last = tab.value("document.querySelectorAll('.c').length") - 1  # the smallest lies on top
    box = f"{DISC.format(last)}.getBoundingClientRect()"
    x, y = (tab.value(f"{box}.{at}") for at in ("left + " + box + ".width / 2", "top + 2"))
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    (pointed,) = tab.value(CARDS)
    assert pointed in tab.value(f"{DISC.format(last)}.parentElement.ariaLabel + ':'")
    assert tab.value(OFF_SCREEN) == []
    assert tab.value(FAINT) == []
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert tab.value(CARDS) == []
    tab.value("document.querySelector('.by').focus()")
    for key in ["Tab"]:
        tab.call(
            "Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=9
        )
    (reached,) = tab.value(CARDS)
    assert tab.value("document.activeElement.ariaLabel").startswith(f"{reached}:")


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
