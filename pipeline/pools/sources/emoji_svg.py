"""Reads OpenMoji (CC BY-SA 4.0) and Twemoji (CC BY 4.0): SVGs named by an emoji's code."""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from clipmill.pipeline.packages import npm_files
from clipmill.pipeline.pools.drawing import Drawing, Words
from clipmill.pipeline.pools.sources.emojibase import emojibase, normal_hex

OPENMOJI = ("openmoji", "17.0.0")
TWEMOJI = ("@twemoji/svg", "15.0.0")


def openmoji() -> Iterator[Drawing]:
    """Yields OpenMoji, with its own emojis beyond Unicode, in English by its labels and tags."""
    files = npm_files(
        *OPENMOJI, lambda path: path.startswith("color/svg/") or path == "data/openmoji.json"
    )
    extra = {entry["hexcode"]: entry for entry in json.loads(files.pop("data/openmoji.json"))}
    known = emojibase().by_hex
    for path, svg in sorted(files.items()):
        spelling = PurePosixPath(path).stem
        hexcode = normal_hex(spelling)
        if hexcode in known:
            yield emoji_drawing(OPENMOJI[0], spelling, hexcode, svg)
        elif spelling in extra:
            yield _own_emoji(extra[spelling], svg)


def twemoji() -> Iterator[Drawing]:
    """Yields Twemoji; a package of bitmaps has the same art, so rows of both are copies."""
    files = npm_files(*TWEMOJI, lambda path: path.endswith(".svg"))
    known = emojibase().by_hex
    for path, svg in sorted(files.items()):
        spelling = PurePosixPath(path).stem
        hexcode = normal_hex(spelling)
        if hexcode in known:
            yield emoji_drawing(TWEMOJI[0], spelling, hexcode, svg, art=f"twemoji {hexcode}")


def emoji_drawing(source: str, key: str, hexcode: str, image: bytes, art: str = "") -> Drawing:
    """Makes a drawing of a known emoji."""
    emoji = emojibase().by_hex[hexcode]
    return Drawing(source, key, emoji.concept, emoji.subgroup, emoji.words, image, art)


def _own_emoji(entry: dict[str, Any], svg: bytes) -> Drawing:
    tags = [tag.strip() for tag in f"{entry['tags']},{entry['openmoji_tags']}".split(",")]
    label = entry["annotation"]
    words = Words(label, tuple(dict.fromkeys(filter(None, tags))), noun="emoji")
    concept = label.partition(":")[0]
    return Drawing(OPENMOJI[0], entry["hexcode"], concept, entry["subgroups"], {"en": words}, svg)
