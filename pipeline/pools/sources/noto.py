"""Reads the evaluation pictures: Noto emojis of two packages, in no pool.

Today's, of emoji-datasource-google, make the sets that a benchmark scores on, and the flagged
contamination of a pool. Older ones, of noto-v1 (Apache 2.0), are more pictures of the sets alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from clipmill.pipeline.packages import npm_files
from clipmill.pipeline.pools.drawing import Drawing
from clipmill.pipeline.pools.evaluation import EvaluationSet
from clipmill.pipeline.pools.picture import encode, on_background, picture_of
from clipmill.pipeline.pools.sources.emoji_svg import emoji_drawing
from clipmill.pipeline.pools.sources.emojibase import emojibase, normal_hex, squashed
from clipmill.pipeline.pools.sources.iconify import emoji_icons

PACKAGE = ("emoji-datasource-google", "16.0.0")
OLDER = ("@iconify-json/noto-v1", "1.2.5")
SIDE_PX = 64
ALIKE = 6  # of 255, the mean difference of grey thumbnails: a drawing that hardly changed
IMAGES = "img/google/64/"
FINE_SETS = {
    "emoji_nature": ("animals-nature",),
    "emoji_food": ("food-drink",),
    "emoji_objects": ("objects", "activities", "travel-places"),
}


def evaluation() -> tuple[list[Drawing], list[EvaluationSet]]:
    """Returns all drawings without skin tones, about 1,900 of 64 px with alpha, and their sets."""
    files = npm_files(*PACKAGE, lambda path: path.startswith(IMAGES) or path == "emoji.json")
    known = emojibase().by_hex
    drawings, versions = [], {}
    for entry in json.loads(files["emoji.json"]):
        hexcode = normal_hex(entry["unified"])
        image = files.get(IMAGES + entry["image"])
        if entry["has_img_google"] and image is not None and hexcode in known:
            drawings.append(emoji_drawing(PACKAGE[0], hexcode, hexcode, image))
            versions[hexcode] = float(entry["added_in"])
    drawings.sort(key=lambda drawing: drawing.key)
    return drawings, _sets(drawings, versions)


def _older(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Draws the older version of each drawing, as large and with alpha, where it is another one."""
    older: dict[str, Drawing] = {}
    today = {drawing.key: drawing for drawing in drawings}
    for icon in emoji_icons(OLDER, drop_unmatched=True):
        hexcode = emojibase().hex_by_name[squashed(icon.key)]
        if hexcode in today:
            picture = picture_of(icon, SIDE_PX)
            newer = picture_of(today[hexcode], SIDE_PX)
            if np.abs(_thumbnail(picture) - _thumbnail(newer)).mean() >= ALIKE:
                file = encode(picture, "png", "", 0)
                older.setdefault(hexcode, replace(icon, key=hexcode, image=file))
    return list(older.values())


def _thumbnail(picture: Image.Image) -> np.ndarray:
    return np.asarray(on_background(picture).convert("L").resize((16, 16)), np.float64)


def _sets(drawings: Sequence[Drawing], versions: Mapping[str, float]) -> list[EvaluationSet]:
    def in_groups(*groups: str) -> list[Drawing]:
        return [drawing for drawing in drawings if group_of(drawing) in groups]

    def group_of(drawing: Drawing) -> str:
        return emojibase().by_hex[drawing.key].group

    countries = [drawing for drawing in drawings if drawing.group == "country-flag"]
    grouped = [drawing for drawing in drawings if group_of(drawing) != "component"]
    names = sorted({group_of(drawing) for drawing in grouped})
    older = _distinct(_older(drawings), versions)
    classified = [
        EvaluationSet(
            "emoji_groups",
            {drawing.key: drawing.image for drawing in grouped},
            {drawing.key: names.index(group_of(drawing)) for drawing in grouped},
            [name.replace("-", " and ") for name in names],
        ),
        *(EvaluationSet.one_each(name, in_groups(*groups)) for name, groups in FINE_SETS.items()),
        EvaluationSet.one_each("emoji_flags", _distinct(countries, versions)),
    ]
    # Apart: two pictures of a caption would be false answers of each other.
    return [
        *(evaluation.with_more(older) for evaluation in classified),
        EvaluationSet.retrieval("emoji_retrieval", drawings),
        EvaluationSet.retrieval("emoji_retrieval_v1", older),
    ]


def _distinct(drawings: Sequence[Drawing], versions: Mapping[str, float]) -> list[Drawing]:
    """Keeps one drawing a picture: the oldest, then the shortest label: France, not Clipperton."""
    by_image: dict[bytes, Drawing] = {}
    for drawing in sorted(drawings, key=lambda d: (versions[d.key], len(d.words["en"].label))):
        by_image.setdefault(drawing.image, drawing)
    return sorted(by_image.values(), key=lambda drawing: drawing.key)
