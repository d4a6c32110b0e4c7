"""Reads icon sets of Iconify's packages: SVG bodies in one JSON file, named by words.

emojione (CC BY 4.0), emojione-v1 (CC BY-SA 4.0), fxemoji (Apache 2.0), game-icons (CC BY 3.0).
"""

import json
from collections.abc import Iterator
from typing import Any

from clipmill.pipeline.packages import npm_files
from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.drawing import Drawing, Words
from clipmill.pipeline.pools.sources.emoji_svg import emoji_drawing
from clipmill.pipeline.pools.sources.emojibase import emojibase, squashed

EMOJIONE = ("@iconify-json/emojione", "1.2.3")
EMOJIONE_V1 = ("@iconify-json/emojione-v1", "1.2.3")
FXEMOJI = ("@iconify-json/fxemoji", "1.2.2")
GAME_ICONS = ("@iconify-json/game-icons", "1.2.4")
INKS = ("#000000", "#222222", "#1b3a5c", "#5a1f1f", "#2d4a2b", "#4a3b63", "#6b4a1e")


def emoji_icons(package: tuple[str, str], drop_unmatched: bool = False) -> Iterator[Drawing]:
    """Yields an emoji set, named by Emojibase; a name it lacks is its own caption, or dropped."""
    hex_by_name = emojibase().hex_by_name
    for name, svg in _icons(package):
        hexcode = hex_by_name.get(squashed(name))
        if hexcode is not None:
            yield emoji_drawing(package[0], name, hexcode, svg)
        elif not drop_unmatched:
            label = name.replace("-", " ")
            words = {"en": Words(label, noun="emoji")}
            yield Drawing(package[0], name, label, "unmatched emoji", words, svg)


def game_icons() -> Iterator[Drawing]:
    """Yields one-colour icons; the last word of a name is the concept."""
    for name, svg in _icons(GAME_ICONS):
        yield Drawing(
            source=GAME_ICONS[0],
            key=name,
            concept=name.rpartition("-")[2],
            group="game icons",
            words={"en": Words(name.replace("-", " "), noun="icon")},
            image=svg,
            color=Chance(0, GAME_ICONS[0], name).pick("ink", INKS),
        )


def _icons(package: tuple[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yields name and whole SVG of every icon."""
    (data,) = npm_files(*package, lambda path: path == "icons.json").values()
    icons: dict[str, Any] = json.loads(data)
    for name, icon in sorted(icons["icons"].items()):
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = f'{head} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        yield name, svg.encode()
