"""What every source gives: a picture, and what people call it in each language."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """What one language calls a picture; captions are made of these (see `captions`)."""

    label: str
    tags: tuple[str, ...] = ()
    character: str = ""
    keywords: tuple[str, ...] = ()
    noun: str = ""  # 'emoji' or 'icon', where "red fox icon" is how people would put it


@dataclass(frozen=True)
class Drawing:
    """One picture of a published package with its true captions."""

    source: str
    key: str  # unique in its source
    concept: str
    group: str  # concepts that are easily taken for each other
    words: Mapping[str, Words]  # by language; empty where the source has no caption
    image: bytes  # SVG, or an encoded bitmap as it was published
    art: str = ""  # pictures of one art are copies of each other; empty: the bytes alone tell
    least_reposts: int = 0
    junk: str | None = None  # what the source itself writes where a caption should stand
    color: str = "#222"  # what `currentColor` becomes
    widths_px: tuple[int, int] = (112, 358)  # of a vector picture that is drawn

    @property
    def is_svg(self) -> bool:
        """Whether `image` is a vector picture; bitmaps open with their magic number."""
        head = self.image[:400].lstrip(b"\xef\xbb\xbf \t\r\n")
        return head.startswith(b"<")
