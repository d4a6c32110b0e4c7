"""The explorer in a real browser: click, filter, drag, keyboard, narrow and dark; hostile words."""

from collections.abc import Iterator

import pytest

from clipmill.pipeline.explore.server import serving
from clipmill.pipeline.explore.session import Session
from tests import numbered
from tests.browser import Tab
from tests.drawn import HOSTILE
from tests.legible import UNFOLD, faults
from tests.pipeline.explore.conftest import asker

READY = """document.querySelector(".card") && !document.querySelector(".card:empty")
  && document.querySelector("#charts rect")"""
COUNT = 'document.querySelector("#count").textContent'
CARDS = 'document.querySelectorAll("[data-part=rows] .card").length'


@pytest.fixture(scope="module")
def address(drawings) -> Iterator[str]:
    with serving(drawings.session) as address:
        yield address


@pytest.fixture
def page(address, tab) -> Tab:
    """The explorer of the drawn run, as it opens."""
    tab.show(address, 1400, "light")
    tab.until(READY)
    return tab


def box(tab: Tab, selector: str) -> tuple[float, float]:
    """The middle of an element."""
    at = f"document.querySelector('{selector}').getBoundingClientRect()"
    return tab.value(f"{at}.left + {at}.width / 2"), tab.value(f"{at}.top + {at}.height / 2")


def drag(tab: Tab, selector: str, by: float) -> None:
    x, y = box(tab, selector)
    tab.mouse("mouseMoved", x, y)
    tab.mouse("mousePressed", x, y)
    for part in (0.5, 1):
        tab.mouse("mouseMoved", x + part * by, y, held=True)
    tab.mouse("mouseReleased", x + by, y)


def test_a_press_on_a_cause_filters_and_another_press_takes_it_away(page):
    assert page.value(COUNT) == "60 of 60 rows"
    x, y = box(page, "#causes li:nth-child(2) button")
    said = page.value('document.querySelector("#causes li:nth-child(2) button").title')
    assert said.startswith("worth: caption_words >= 2: 6 of 6 rows")
    for kind in ("mousePressed", "mouseReleased"):
        page.mouse(kind, x, y)
    page.until(f"{COUNT} === '6 of 60 rows' && {CARDS} === 6 && {READY}")
    captions = '[...document.querySelectorAll(".caption")].map((e) => e.textContent)'
    assert page.value(captions) == ["word"] * 6
    assert page.value('document.querySelectorAll("#chips button").length') == 1
    page.value('document.querySelector("#chips button").click()')
    page.until(f"{COUNT} === '60 of 60 rows' && {READY}")


def test_rounding_makes_no_share_none_or_all(page):
    shares = "window.shares = [0, 1e-5, 0.5, 0.9999, 1].map(made.percent)"
    page.value(f'import("./page/make.js").then((made) => {shares}) && 0')
    page.until("window.shares")
    assert page.value("window.shares") == ["0.0%", "<0.1%", "50.0%", ">99.9%", "100.0%"]


def test_handles_bound_the_rows_by_mouse_and_by_keyboard(page):
    name = page.value('document.querySelector(".chart b").textContent')
    assert name == "caption.caption_words"
    drag(page, ".chart .handle.low", 60)
    page.until(f"{COUNT} !== '60 of 60 rows' && {READY}")
    page.value('document.querySelector(".chart .handle.low").focus()')
    page.key("Home", 36)
    page.until(f"{COUNT} === '60 of 60 rows' && {READY}")
    page.key("ArrowRight", 39)
    page.until(f"{COUNT} === '54 of 60 rows' && {READY}")  # from 2 words up
    assert page.value('document.querySelector("#chips button").textContent').startswith("2 ≤")


def test_values_beyond_the_axis_are_said(page):
    """The outer bars take them in: of 14 rows in 67,000 the axis tells nothing."""
    told = "{edges: [0.5, 5.5], span: [-3, 40], all: [60, 0], left: [60, 0]}"
    of_all = f"Object.fromEntries(v.view.charts.map((id) => [id, {told}]))"
    page.value(
        'Promise.all([import("./page/charts.js"), import("./page/view.js")])'
        f".then(([c, v]) => c.showCharts({{histograms: {of_all}}})) && null"
    )
    page.until("""document.querySelector(".chart .ends").textContent
      === "1 to 5, a few from -3 and up to 40" """)


def test_a_threshold_is_dragged_and_its_recipe_shown(page):
    side = '.chart:has([aria-label^="subset: min_side"]) .handle.flag'
    if not page.value(f"document.querySelector('{side}')"):
        page.value(
            """(() => { const menu = document.querySelector("#add-chart");
            menu.value = "look.min_side"; menu.dispatchEvent(new Event("change")); })()"""
        )
        page.until(f"document.querySelector('{side}')")
    drag(page, f"{side} span", 500)
    page.until('!document.querySelector("#tried").hidden')
    page.until(f"document.querySelector('[data-part=lost] .card') && {READY}")
    said = page.value('document.querySelector("#tried output").textContent')
    assert said.startswith("'subset' with min_side >= ")
    page.value('document.querySelector("#show-recipe").click()')
    page.until('document.querySelector("#tried pre").textContent.includes("seed: 0")')
    assert "clipmill run drawn.yaml" in page.value('document.querySelector("pre").textContent')


def test_a_row_is_opened_by_keyboard_told_and_closed(page):
    page.value('document.querySelector(".card").focus()')
    page.key("Enter", 13)
    page.until('document.querySelector("#row .mono")')
    told = page.value('document.querySelector("#row").textContent')
    assert "dropped by" in told or "kept by" in told
    page.until('document.querySelector("#row img").naturalWidth > 50')
    page.key("Escape", 27)
    page.until('document.querySelector("#row").hidden')
    assert page.value("document.activeElement.className").startswith("card")


def test_what_cannot_be_asked_is_said_and_taken_back(page):
    page.value(
        """(() => { document.querySelector("#searched").value = "uid";
        document.querySelector("#words").value = "xyz";
        document.querySelector("#find").requestSubmit(); })()"""
    )
    page.until('!document.querySelector("#trouble").hidden')
    assert "'xyz' begins no uid" in page.value('document.querySelector("#trouble").textContent')
    page.value('document.querySelector("#causes li button").click()')
    page.until(f"{COUNT} !== '60 of 60 rows' && {READY}")
    assert page.value('document.querySelector("#trouble").hidden')


def test_words_of_strangers_stay_text(page):
    page.value(
        """(() => { document.querySelector("#words").value = "a tale of <script>";
        document.querySelector("#find").requestSubmit(); })()"""
    )
    page.until(f"{COUNT} !== '60 of 60 rows' && {READY}")
    assert page.value('document.querySelector(".caption").textContent') == HOSTILE
    assert page.value('document.querySelectorAll("main script, main img[src=x]").length') == 0
    page.value('document.querySelector(".card").click()')
    page.until('document.querySelector("#row .mono")')
    assert page.value('document.querySelector("#row bdi").textContent') == HOSTILE


@pytest.fixture(scope="module")
def strange(own_stages, tmp_path_factory):
    """Rows that turn lines about, are a million letters long, are a script."""
    folder = tmp_path_factory.mktemp("strange")
    texts = ["\u202egnp.exe", "x" * 1_000_000, "<script>document.title = 'taken'</script>"]
    more = [{"url": f"javascript:alert({i})", "text": text} for i, text in enumerate(texts)]
    numbered.write_pool(folder, more)
    return asker(numbered.run(folder), folder)


def test_strange_captions_and_links_do_nothing(strange, tab):
    with serving(strange.session) as address:
        tab.show(address, 1400, "light")
        tab.until(READY)
        said = tab.value('[...document.querySelectorAll(".caption")].map((e) => e.textContent)')
        assert [said[20], said[22]] == ["·gnp.exe", "<script>document.title = 'taken'</script>"]
        assert len(said[21]) < 2100
        assert said[21].endswith("(1,000,000 characters)")
        assert "explore" in tab.value("document.title")
        tab.value('document.querySelectorAll(".card")[20].click()')
        tab.until('document.querySelector("#row .mono")')
        assert tab.value('document.querySelector("#row").textContent').count("javascript:") >= 1
        assert tab.value('document.querySelectorAll("#row a").length') == 0
        assert tab.value('document.querySelector("#unfinished").textContent').startswith(
            " No stage"
        )


def test_nothing_is_off_screen_and_all_is_legible(address, tab):
    bad = []
    for width, schemes in ((1400, ["dark"]), (420, ["light", "dark"])):
        tab.show(address, width, schemes[0])
        tab.until(READY)
        tab.value(UNFOLD)
        tab.value('document.querySelector("#show-relations").click()')
        tab.until('document.querySelectorAll("#relations table").length >= 2')
        tab.value('document.querySelector("#beside").click()')
        tab.until(f"document.querySelector('[data-part=kept]') && {READY}")
        tab.value('document.querySelector("#columns").open = false')
        for scheme in schemes:
            tab.look(width, scheme)
            bad += faults(tab)
    assert bad == []


def test_a_disc_of_the_map_filters_by_its_cluster(clusters, tab):
    with serving(clusters.session) as address:
        tab.show(address, 1400, "light")
        tab.until(READY)
        tab.value('document.querySelector("#show-map").click()')
        tab.until('document.querySelector(".plane circle")')
        said = tab.value('document.querySelector(".plane circle").getAttribute("aria-label")')
        tab.value('document.querySelector(".plane circle").dispatchEvent(new Event("click"))')
        rows = said.split()[2]
        tab.until(f"{COUNT} === '{rows} of 60 rows' && {READY}")


def test_another_recipe_of_the_folder_is_set_against_this_one(several, tab):
    with serving(Session(str(several / "run"), several / "run.yaml")) as address:
        tab.show(address, 1400, "light")
        tab.until(READY)
        tab.value(
            """(() => { const menu = document.querySelector("#variants");
            menu.value = "1"; menu.dispatchEvent(new Event("change")); })()"""
        )
        tab.until(f"document.querySelector('[data-part=gained] .card') && {READY}")
        said = tab.value('document.querySelector("#tried output").textContent')
        assert "'last' of variant 1 kept" in said
        tab.value('document.querySelector("#tried button").click()')
        tab.until(f"document.querySelector('[data-part=rows] .card') && {READY}")
