"""Reads Openclipart (public domain): bitmaps of a Debian package, titles of another's SVG."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from clipmill.pipeline.packages import debian_files
from clipmill.pipeline.pools.chance import keep
from clipmill.pipeline.pools.drawing import Drawing, Words
from clipmill.pipeline.pools.sources.texts import name_words, one_line

SOURCE = "openclipart-png"
TITLES = "openclipart-svg"
MIN_KEEP = 0.10  # a tenth is left out, by hash
PNG, SVG = "usr/share/openclipart/png/", "usr/share/openclipart/svg/"
# Titles of a whole collection.
GENERIC = re.compile(r"collection|theme|cliparts?\b|icons$|symbols$|signs$|maps$", re.IGNORECASE)
NO_KEYWORD = "hash"  # left by a script

# Tolerant on purpose: many files are not well-formed XML.
FIELDS = {
    "title": re.compile(r"<dc:title[^>]*>(.*?)</dc:title>", re.DOTALL),
    "description": re.compile(r"<dc:description[^>]*>(.*?)</dc:description>", re.DOTALL),
    "keyword": re.compile(r"<rdf:li[^>]*>(.*?)</rdf:li>", re.DOTALL),
}


def openclipart() -> Iterator[Drawing]:
    """Yields pictures by title or file name; decompression bombs stay, for a pool to plant."""
    svgs = debian_files(TITLES, lambda path: path.startswith(SVG) and path.endswith(".svg"))
    read = {path.removeprefix(SVG).removesuffix(".svg"): _read(svg) for path, svg in svgs.items()}
    pngs = debian_files(SOURCE, lambda path: path.startswith(PNG) and path.endswith(".png"))
    for path, png in sorted(pngs.items()):
        below = path.removeprefix(PNG)
        name = below.removesuffix(".png")
        if keep(SOURCE, below) < MIN_KEEP or name not in read:
            continue
        fields, place = read[name], PurePosixPath(name)
        titles = [title for title in fields["title"][:1] if not GENERIC.search(title)]
        label = titles[0] if titles else name_words(place.name)
        if label:
            keywords = tuple(word for word in fields["keyword"] if word != NO_KEYWORD)
            words = Words(label, keywords, keywords=tuple(fields["description"][:1]))
            concept = name_words(label) or label
            yield Drawing(SOURCE, below, concept, str(place.parent), {"en": words}, png)


def _read(svg: bytes) -> dict[str, list[str]]:
    """Returns titles, descriptions and keywords, the picture's own first; cut, none empty."""
    head = svg[:200_000].decode("utf-8", "replace")
    fields = {
        name: [one_line(text)[:300] for text in pattern.findall(head)]
        for name, pattern in FIELDS.items()
    }
    # Names of creator and publisher are titles, too: only the first is the picture's.
    return {name: [text for text in texts if text] for name, texts in fields.items()}
