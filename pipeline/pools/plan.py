"""Plans the rows of a raw pool from clean drawings, and the faults of each row.

Nothing is drawn here; `render` makes the files. Each decision is a hash of its subject, so adding
or removing a drawing leaves all other rows as they were, except for the source of swapped captions.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipmill.pipeline.pools.captions import boilerplate, caption_forms, garbled, spam, wrapped
from clipmill.pipeline.pools.chance import Chance, fraction, hex_id
from clipmill.pipeline.pools.drawing import Drawing
from clipmill.pipeline.pools.faults import (
    IMAGE_ISSUES,
    LINK_ISSUES,
    NEAR_OPS,
    OVERLAYS,
    PHRASES,
    TEXT_ISSUES,
)
from clipmill.pipeline.pools.picture import MAX_PIXELS, size_px

SITES = 40
FULL_CONCEPTS = 0.25  # share of concepts that keep every image
KEPT_IMAGES = 0.85
REPOSTS = ((0.004, 12), (0.012, 5), (0.050, 2))  # (cumulative share of concepts, reposts per image)
EXACT_COPIES, NEAR_COPIES = 0.06, 0.10  # of images
CONTAMINATION = 0.014  # of all rows
ENGLISH = 0.62  # if there are translations
WRAPPED = 0.05  # of untouched captions


@dataclass
class Row:
    """A sample of the pool with the truth about it; issues are None if there are none."""

    uid: str
    drawing: Drawing
    chance: Chance
    dup_kind: str | None = None
    near_op: str | None = None
    is_evaluation: bool = False
    lang: str | None = None
    text: str = ""
    text_true: str | None = None
    text_issue: str | None = None
    swapped_in_group: bool | None = None
    image_issue: str | None = None
    drawn_script: str | None = None  # of words over the picture
    link_issue: str | None = None

    @property
    def site(self) -> str:
        """Returns the row's site, one of 40; the first have far more rows than the last."""
        return f"s{int(SITES * self.chance.u('site') ** 2.2):02d}"


def pool_rows(
    drawings: Sequence[Drawing],
    evaluation: Sequence[Drawing],
    seed: int,
    oversized: int,
    bombs: int,
    rows: int | None = None,
    overlaid: float = 0.0,
) -> list[list[Row]]:
    """Plans all rows, or `rows`, grouped by drawing: copies need its picture.

    `overlaid` is the share of otherwise clean first rows with words or a mark over the picture.
    """
    drawn = [drawing for drawing in drawings if in_pool(drawing, seed)]
    groups = [list(_rows_of(drawing, seed)) for drawing in drawn]
    if rows is None:
        copies = round(sum(map(len, groups)) * CONTAMINATION / (1 - CONTAMINATION))
    else:
        copies = round(rows * CONTAMINATION)
        groups = _first(groups, rows - copies)
    groups += _contamination(evaluation, copies, seed)
    every = [row for group in groups for row in group]
    _draw_texts(every, drawn)
    _draw_image_issues(groups, oversized, bombs, overlaid)
    for row in every:
        row.link_issue = row.chance.weighted("link", LINK_ISSUES)
    _complete(every)
    return groups


def in_pool(drawing: Drawing, seed: int) -> bool:
    """Returns whether the pool has rows of a drawing."""
    if fraction(str(seed), "full_concept", drawing.concept) < FULL_CONCEPTS:
        return True
    return Chance(seed, drawing.source, drawing.key).u("kept") < KEPT_IMAGES


def _rows_of(drawing: Drawing, seed: int) -> Iterator[Row]:
    """Yields the base row, then reposts, exact and near copies."""

    def row(kind: str | None, number: int = 0) -> Row:
        uid = hex_id(str(seed), drawing.source, drawing.key, kind or "base", str(number))
        return Row(uid, drawing, Chance(seed, drawing.source, uid), dup_kind=kind)

    chance = Chance(seed, drawing.source, drawing.key)
    yield row(None)
    if not drawing.is_svg and _is_bomb(drawing):  # can't be drawn again
        return
    share = fraction(str(seed), "reposts", drawing.concept)
    drawn = next((count for below, count in REPOSTS if share < below), 0)
    for number in range(max(drawn, drawing.least_reposts)):
        yield row("repost", number)
    if chance.u("exact") < EXACT_COPIES:
        yield row("exact")
    if chance.u("near") < NEAR_COPIES:
        near = row("near")
        near.near_op = near.chance.pick("near_op", NEAR_OPS)
        yield near


def _is_bomb(drawing: Drawing) -> bool:
    width, height = size_px(drawing.image)
    return width * height > MAX_PIXELS


def _first(groups: list[list[Row]], rows: int) -> list[list[Row]]:
    """Returns the first groups with exactly `rows` rows; the last group is cut."""
    cut: list[list[Row]] = []
    for group in groups:
        if rows <= 0:
            break
        cut.append(group[:rows])
        rows -= len(group)
    return cut


def _contamination(evaluation: Sequence[Drawing], count: int, seed: int) -> list[list[Row]]:
    """Returns copies of so many evaluation pictures, half of them exact."""
    chosen = sorted(evaluation, key=lambda d: Chance(seed, d.source, d.key).u("contamination"))
    groups = []
    for drawing in chosen[:count]:
        uid = hex_id(str(seed), drawing.source, drawing.key, "contamination")
        row = Row(uid, drawing, Chance(seed, drawing.source, uid), is_evaluation=True)
        if row.chance.u("near_evaluation") < 0.5:
            row.near_op = row.chance.pick("near_op", NEAR_OPS)
        groups.append([row])
    return groups


def _draw_texts(rows: Sequence[Row], drawings: Sequence[Drawing]) -> None:
    """Draws language, caption and text issue of every row."""
    captioned = [drawing for drawing in drawings if drawing.words]
    by_group: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in captioned:
        by_group[drawing.group].append(drawing)
    first_text: str | None = None
    for row in rows:
        if not row.drawing.words:
            row.text, row.text_issue = row.drawing.junk or "", "boilerplate"
            continue
        row.lang = language(row.drawing, row.chance)
        # A repost has another caption than the drawing's first row, if there is one.
        taken = first_text if row.dup_kind == "repost" else None
        row.text = row.text_true = _caption(row.drawing, row.lang, row.chance, taken)
        if row.dup_kind is None:
            first_text = row.text_true  # a drawing's first row precedes its copies
        row.text_issue = row.chance.weighted("text_issue", TEXT_ISSUES)
        if row.text_issue == "swapped":
            _swap(row, captioned, by_group)
        elif row.text_issue == "boilerplate":
            row.lang, row.text = None, boilerplate(row.chance)
        elif row.text_issue == "spam":
            row.lang, row.text = "en", spam(row.chance)
        elif row.text_issue == "garbled":
            row.text = garbled(row.text, row.chance)
        elif row.chance.u("wrapped") < WRAPPED:
            row.text = wrapped(row.text, row.chance)


def language(drawing: Drawing, chance: Chance) -> str:
    """Draws a language: English with probability 0.62 if there is a choice, else another."""
    others = sorted(set(drawing.words) - {"en"})
    if "en" in drawing.words and (not others or chance.u("english") < ENGLISH):
        return "en"
    return chance.pick("language", others)


def _caption(drawing: Drawing, lang: str, chance: Chance, taken: str | None = None) -> str:
    forms = caption_forms(drawing.words[lang], lang)
    return chance.pick("caption", [form for form in forms if form != taken] or forms)


def _swap(row: Row, captioned: Sequence[Drawing], by_group: dict[str, list[Drawing]]) -> None:
    """Gives a row the true caption of another concept, half the time of the same group (hard)."""
    own = row.drawing
    hard = by_group[own.group] if row.chance.u("hard") < 0.5 else []
    for candidates in (hard, captioned):
        start = int(row.chance.u("swap_from") * len(candidates))
        for other in (*candidates[start : start + 50], *candidates[:50]):
            if other.concept == own.concept:
                continue
            lang = row.lang if row.lang in other.words else language(other, row.chance)
            assert lang is not None
            text = _caption(other, lang, row.chance)
            if text != row.text_true:
                row.text, row.lang, row.swapped_in_group = text, lang, other.group == own.group
                return
    row.text_issue = None  # a pool of one concept has no swaps


def _draw_image_issues(
    groups: Sequence[list[Row]], oversized: int, bombs: int, overlaid: float
) -> None:
    """Draws the image issues of base rows; exact copies share them, as they have the same bytes."""
    bases = [group[0] for group in groups if not group[0].is_evaluation]
    for row in bases:
        if not row.drawing.is_svg and _is_bomb(row.drawing):
            row.image_issue = "bomb"
        else:
            row.image_issue = row.chance.weighted("image_issue", IMAGE_ISSUES)
    healthy = [row for row in bases if row.image_issue is None]
    healthy.sort(key=lambda row: row.chance.u("huge"))
    for place, row in enumerate(healthy[: oversized + bombs]):
        row.image_issue = "oversized" if place < oversized else "bomb"
    for row in healthy[oversized + bombs :]:
        if row.chance.u("overlaid") < overlaid:
            row.image_issue = row.chance.pick("overlay", OVERLAYS)
        if row.image_issue == "drawn_text":
            row.drawn_script = row.chance.pick("script", [*PHRASES])
    for group in groups:
        for row in group[1:]:
            if row.dup_kind == "exact":
                row.image_issue = group[0].image_issue
                row.drawn_script = group[0].drawn_script


def _complete(rows: Sequence[Row]) -> None:
    """Gives each link issue that was not drawn to a row without one: small pools have all."""
    spare = sorted(
        (row for row in rows if row.link_issue is None), key=lambda row: row.chance.u("spare")
    )
    missing = sorted(LINK_ISSUES.keys() - {row.link_issue for row in rows})
    for row, issue in zip(spare, missing, strict=False):
        row.link_issue = issue
