"""What keeps a page from being read: parts off screen, faint text, links that lead nowhere."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from tests.browser import Tab

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


LOOK = """[document.title, innerWidth,
  matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"]"""
WIDER = """[document.documentElement.scrollWidth].filter((wide) => wide > innerWidth)"""


def looks(tab: Tab, page: Path | str) -> Iterator[tuple[int, str]]:
    """Each width and scheme that the page is then seen in, all of it unfolded."""
    tab.show(page, 1400, "light")
    tab.value(UNFOLD)
    for width, scheme in product((1400, 420), ("light", "dark")):
        tab.look(width, scheme)
        assert tab.value(LOOK)[1:] == [width, scheme]
        yield width, scheme


def faults(tab: Tab) -> list[Any]:
    """All that is off screen or faint as the tab shows it, and in which look."""
    return [
        (*tab.value(LOOK), bad) for each in (WIDER, OFF_SCREEN, FAINT) for bad in tab.value(each)
    ]
