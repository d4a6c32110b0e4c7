"""A picture of any source, with its captions' words in each language."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """The words of one language for a picture; `captions` makes captions of them."""

    label: str
    tags: tuple[str, ...] = ()
    character: str = ""
    keywords: tuple[str, ...] = ()
    noun: str = ""  # 'emoji' or 'icon', if people would write "red fox icon"


@dataclass(frozen=True)
class Drawing:
    """A picture of a published package with its true captions."""

    source: str
    key: str  # unique in its source
    concept: str
    group: str  # concepts that are easily confused
    words: Mapping[str, Words]  # by language; empty if the source has no caption
    image: bytes  # SVG, or an encoded bitmap as published
    art: str = ""  # pictures of one art are copies; empty: equal bytes alone are
    least_reposts: int = 0
    junk: str | None = None  # the source's own filler in place of a caption
    color: str = "#222"  # value of `currentColor`
    widths_px: tuple[int, int] = (112, 358)  # range for drawing a vector picture

    @property
    def is_svg(self) -> bool:
        """Returns whether `image` is a vector picture; bitmaps begin with a magic number."""
        head = self.image[:400].lstrip(b"\xef\xbb\xbf \t\r\n")
        return head.startswith(b"<")
