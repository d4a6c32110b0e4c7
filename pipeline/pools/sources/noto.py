"""Reads the evaluation pictures: Noto emojis of emoji-datasource-google, in no pool.

They make the sets that a benchmark scores on, and the flagged contamination of a pool.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipmill.pipeline.packages import npm_files
from clipmill.pipeline.pools.drawing import Drawing
from clipmill.pipeline.pools.evaluation import EvaluationSet
from clipmill.pipeline.pools.sources.emoji_svg import emoji_drawing
from clipmill.pipeline.pools.sources.emojibase import emojibase, normal_hex

PACKAGE = ("emoji-datasource-google", "16.0.0")
IMAGES = "img/google/64/"
FINE_SETS = {
    "emoji_nature": ("animals-nature",),
    "emoji_food": ("food-drink",),
    "emoji_objects": ("objects", "activities", "travel-places"),
}


@dataclass(frozen=True)
class Vendor:
    """Noto's drawings without skin-tone variants, and the sets made from them."""

    drawings: Sequence[Drawing]
    sets: Sequence[EvaluationSet]


def evaluation() -> Vendor:
    """Reads all drawings, about 1,900 of 64 px with alpha, and makes the sets."""
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
    return Vendor(drawings, _sets(drawings, versions))


def _sets(drawings: Sequence[Drawing], versions: Mapping[str, float]) -> list[EvaluationSet]:
    def in_groups(*groups: str) -> list[Drawing]:
        return [drawing for drawing in drawings if group_of(drawing) in groups]

    def group_of(drawing: Drawing) -> str:
        return emojibase().by_hex[drawing.key].group

    countries = [drawing for drawing in drawings if drawing.group == "country-flag"]
    grouped = [drawing for drawing in drawings if group_of(drawing) != "component"]
    names = sorted({group_of(drawing) for drawing in grouped})
    return [
        EvaluationSet(
            "emoji_groups",
            {drawing.key: drawing.image for drawing in grouped},
            {drawing.key: names.index(group_of(drawing)) for drawing in grouped},
            [name.replace("-", " and ") for name in names],
        ),
        *(EvaluationSet.one_each(name, in_groups(*groups)) for name, groups in FINE_SETS.items()),
        EvaluationSet.one_each("emoji_flags", _distinct(countries, versions)),
        EvaluationSet.retrieval("emoji_retrieval", drawings),
    ]


def _distinct(drawings: Sequence[Drawing], versions: Mapping[str, float]) -> list[Drawing]:
    """Keeps one drawing a picture: the oldest, then the shortest label: France, not Clipperton."""
    by_image: dict[bytes, Drawing] = {}
    for drawing in sorted(drawings, key=lambda d: (versions[d.key], len(d.words["en"].label))):
        by_image.setdefault(drawing.image, drawing)
    return sorted(by_image.values(), key=lambda drawing: drawing.key)
