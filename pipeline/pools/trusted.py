"""Trusted pairs, as if checked by hand, from which a filter network learns."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from clipmill.pipeline.pools.captions import indirect_forms
from clipmill.pipeline.pools.chance import Chance, hex_id
from clipmill.pipeline.pools.drawing import Drawing
from clipmill.pipeline.pools.picture import encode, picture_of
from clipmill.pipeline.pools.plan import in_pool


@dataclass(frozen=True)
class TrustedPair:
    """A drawing with one of its true English captions."""

    uid: str
    drawing: Drawing
    text: str
    chance: Chance


def trusted_pairs(
    drawings: Sequence[Drawing],
    sources: frozenset[str],
    count: int,
    evaluation_captions: frozenset[str],
    seed: int,
) -> list[TrustedPair]:
    """Returns at most `count` pairs, first those that the pool leaves out, then by hash.

    Captions are tags and keywords, never an evaluation caption: else training on the trusted pairs
    alone would beat every filter for the wrong reason.
    """
    order: list[tuple[bool, float, TrustedPair]] = []
    for drawing in drawings:
        if drawing.source not in sources or "en" not in drawing.words:
            continue
        forms = [
            form for form in indirect_forms(drawing.words["en"]) if form not in evaluation_captions
        ]
        if forms:
            chance = Chance(seed, drawing.source, drawing.key)
            uid = hex_id(str(seed), drawing.source, drawing.key, "trusted")
            pair = TrustedPair(uid, drawing, chance.pick("trusted_caption", forms), chance)
            order.append((in_pool(drawing, seed), chance.u("trusted"), pair))
    order.sort(key=lambda entry: entry[:2])
    return [pair for _, _, pair in order[:count]]


def without(drawings: Sequence[Drawing], taken: Sequence[Drawing]) -> list[Drawing]:
    """Returns the drawings that copy no taken one, by art or by bytes."""
    arts = {drawing.art for drawing in taken} - {""}
    images = {sha256(drawing.image).digest() for drawing in taken}
    return [
        drawing
        for drawing in drawings
        if drawing.art not in arts and sha256(drawing.image).digest() not in images
    ]


def write_trusted(pair: TrustedPair, www: Path, port: int) -> dict[str, object] | None:
    """Writes the picture on white and returns its metadata; None if it cannot be drawn."""
    try:
        picture = picture_of(pair.drawing, pair.chance.between("trusted_width", 128, 256))
    except (ValueError, OSError):
        return None
    how, suffix = pair.chance.pick("trusted_format", (("jpeg", "jpg"), ("webp", "webp")))
    file = encode(picture, how, "#ffffff", 92)
    path = f"trusted/{pair.uid[:2]}/{pair.uid[2:14]}.{suffix}"
    (www / path).parent.mkdir(parents=True, exist_ok=True)
    (www / path).write_bytes(file)
    return {
        "uid": pair.uid,
        "url": f"http://127.0.0.1:{port}/{path}",
        "text": pair.text,
        "original_width": picture.width,
        "original_height": picture.height,
        "sha256": sha256(file).hexdigest(),
    }
