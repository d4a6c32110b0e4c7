"""Reads Oxygen icons (LGPL-3+) and Twemoji bitmaps, emoji-datasource-twitter (CC BY 4.0)."""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from clipmill.pipeline.packages import debian_files, npm_files
from clipmill.pipeline.pools.drawing import Drawing, Words
from clipmill.pipeline.pools.sources.emoji_svg import emoji_drawing
from clipmill.pipeline.pools.sources.emojibase import emojibase, normal_hex
from clipmill.pipeline.pools.sources.texts import name_words

OXYGEN = "oxygen-icon-theme"
OXYGEN_ROOT = "usr/share/icons/oxygen/base/"
MIN_OXYGEN_PX = 22
TWITTER = ("emoji-datasource-twitter", "16.0.0")
TWITTER_IMAGES = "img/twitter/64/"


def oxygen() -> Iterator[Drawing]:
    """Yields each icon in up to eight sizes, which are copies of each other."""
    files = debian_files(
        OXYGEN, lambda path: path.startswith(OXYGEN_ROOT) and path.endswith(".png")
    )
    for path, png in sorted(files.items()):
        size, *between, file = path.removeprefix(OXYGEN_ROOT).split("/")
        label = name_words(file.removesuffix(".png"))
        if int(size.partition("x")[0]) < MIN_OXYGEN_PX or not label:
            continue
        context = "/".join(between)
        yield Drawing(
            source=OXYGEN,
            key=path.removeprefix(OXYGEN_ROOT),
            concept=label,
            group=f"oxygen {context}",
            words={"en": Words(label, (context,), noun="icon")},
            image=png,
            art=f"oxygen {context}/{PurePosixPath(file).stem}",
        )


def twitter() -> Iterator[Drawing]:
    """Yields the art of @twemoji/svg as bitmaps of 64 px."""
    files = npm_files(
        *TWITTER, lambda path: path.startswith(TWITTER_IMAGES) or path == "emoji.json"
    )
    known = emojibase().by_hex
    for base in json.loads(files["emoji.json"]):
        for entry in (base, *base.get("skin_variations", {}).values()):
            hexcode = normal_hex(entry["unified"])
            image = files.get(TWITTER_IMAGES + entry["image"])
            if entry["has_img_twitter"] and image is not None and hexcode in known:
                yield emoji_drawing(TWITTER[0], hexcode, hexcode, image, art=f"twemoji {hexcode}")
