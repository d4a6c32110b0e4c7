"""Reads what HTML pages say of their pictures: alt texts, captions, the sentence around."""

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, lookup
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urljoin, urlsplit

KINDS = ("alt", "figcaption", "sentence")
MAX_PAGE_BYTES = 5 << 20  # Common Crawl cuts pages there, too
MAX_SENTENCE = 500  # characters; longer ones are code or tables
DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
DECLARED_WITHIN = 1024  # bytes, by the HTML standard
BLOCKS = frozenset(
    (
        *("article", "aside", "blockquote", "body", "br", "center", "dd", "div", "dl", "dt"),
        *("figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "nav"),
        *("ol", "p", "pre", "section", "table", "td", "th", "tr", "ul"),
    )
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])(?=.)")  # noqa: RUF001
ENDS = tuple(".!?。！？")  # noqa: RUF001
FIGURES = frozenset(("figure", "image", "imageblock"))  # classes of Sphinx, Doxygen, AsciiDoc
BOXES = frozenset(("figure", "div"))
MAX_DEPTH = 512  # of boxes, as in browsers
HOST = "package.invalid"  # a reserved name
SITE = f"http://{HOST}/"


@dataclass
class Use:
    """A use of a picture on a page, and what stands for it there; empty where nothing does."""

    src: str
    alt: str
    figcaption: str = ""
    sentence: str = ""

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yields (kind, text) of what is there."""
        return ((kind, getattr(self, kind)) for kind in KINDS if getattr(self, kind))


@dataclass
class Box:
    """An open `figure` or `div`."""

    tag: str
    is_figure: bool
    first: int  # number of the pictures before
    caption: str = ""


def uses_of(page: bytes) -> list[Use]:
    """Returns the pictures of a page in their order."""
    reader = _Reader()
    # Not closed: the parser would try each `<` of an open tag again, in quadratic time.
    reader.feed(f"{_decoded(page)}<br>")
    reader.end_caption()
    reader.end_block()
    reader.close_boxes(0)
    return reader.uses


def _decoded(page: bytes) -> str:
    """Decodes a page as it declares, else as UTF-8, else as Windows-1252, as browsers do."""
    if page.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):  # which no declaration contradicts
        return page.decode("utf-16", "replace")
    declared = DECLARED.search(page[:DECLARED_WITHIN])
    try:
        name = lookup(declared[1].decode("ascii", "replace") if declared else "utf-8").name
        if name.startswith("utf-16"):  # which could not be read so far
            name = "utf-8"
        elif name in {"iso8859-1", "ascii"}:
            name = "cp1252"
        return page.decode(name, "strict" if name == "utf-8" else "replace")
    except (LookupError, UnicodeError):
        return page.decode("cp1252", "replace")


def path_in_package(page: str, src: str) -> str | None:
    """Returns the path in the package that a link leads to; None for data: and other sites."""
    try:
        parts = urlsplit(urljoin(SITE + quote(page), src.strip()))
    except ValueError:  # http://[
        return None
    path = unquote(parts.path).lstrip("/")
    return path if parts.netloc == HOST and ".." not in path.split("/") else None


class _Reader(HTMLParser):
    """Collects pictures with their texts in one pass; forgives what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.boxes: list[Box] = []
        self.block: list[str] = []
        self.length = 0  # of the block's text
        self.in_block: list[tuple[Use, int]] = []  # with their offset in that text
        self.last_block = ""
        self.caption: list[str] | None = None
        self.caption_tag, self.caption_open = "", Counter[str]()  # tags within, itself included

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in reversed(attrs)}  # the first of a name wins
        if tag == "img":
            use = Use(given.get("src", ""), _line(given.get("alt", "")))
            self.uses.append(use)
            self.in_block.append((use, self.length))
        if self.caption is not None:
            self.caption_open[tag] += 1
            return
        if tag in BLOCKS:
            self.end_block()
        classes = {*given.get("class", "").split()}
        if tag in BOXES and len(self.boxes) < MAX_DEPTH:
            is_figure = tag == "figure" or not classes.isdisjoint(FIGURES)
            self.boxes.append(Box(tag, is_figure, len(self.uses)))
        if (tag == "figcaption" or classes & {"caption", "title"}) and self.figure():
            self.caption, self.caption_tag, self.caption_open = [], tag, Counter([tag])

    def handle_endtag(self, tag: str) -> None:
        if self.caption is not None:
            self.caption_open[tag] -= 1
            ends_box = tag in BOXES and self.caption_open[tag] < 0  # one open before the caption
            if self.caption_open[self.caption_tag] and not ends_box:
                return
            self.end_caption()
        if tag in BLOCKS:
            self.end_block()
        if tag in BOXES:
            places = range(len(self.boxes) - 1, -1, -1)
            opened = next((n for n in places if self.boxes[n].tag == tag), len(self.boxes))
            self.close_boxes(opened)

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is not None:  # a script or a style
            return
        if self.caption is not None:
            self.caption.append(data)
        else:
            self.block.append(data)
            self.length += len(data)

    def figure(self) -> Box | None:
        """Returns the innermost open figure."""
        return next((box for box in reversed(self.boxes) if box.is_figure), None)

    def end_caption(self) -> None:
        figure = self.figure()
        if figure and self.caption is not None:
            figure.caption = figure.caption or _line("".join(self.caption))
        self.caption = None

    def end_block(self) -> None:
        """Gives the block's pictures their sentence; a block without words, the one before it."""
        text = "".join(self.block)
        has_words = bool(text.strip())
        self.last_block = text if has_words else self.last_block
        for use, offset in self.in_block:
            place = offset if has_words else len(self.last_block)
            use.sentence = _sentence(self.last_block, place)
        self.block, self.in_block, self.length = [], [], 0

    def close_boxes(self, outermost: int) -> None:
        """Closes boxes from a number on, and gives figures' captions to their pictures."""
        for box in reversed(self.boxes[outermost:]):
            for use in self.uses[box.first :] if box.caption else ():
                use.figcaption = use.figcaption or box.caption
        del self.boxes[outermost:]


def _sentence(text: str, offset: int) -> str:
    """Returns the sentence at a place in a text, or that which ends there; empty if too long."""
    before = text[max(0, offset - MAX_SENTENCE) : offset].rstrip()
    after = text[offset : offset + MAX_SENTENCE].lstrip()
    last = SENTENCE_END.split(before)[-1]
    whole = last if last.endswith(ENDS) else f"{last} {SENTENCE_END.split(after)[0]}"
    return _line(whole) if len(whole) < MAX_SENTENCE else ""


def _line(text: str) -> str:
    return " ".join(text.split())
