"""Finds the pictures of rows: the stage and file that store them, and their bytes.

Rows of a union have the pictures of its parents' pools.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clipmill.metadata.parquet_file import read_file
from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, POSITION, REASON, TEXT, URL
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.rows.columns import column_at
from clipmill.pipeline.ledger.rows.stage_row import StageRow
from clipmill.pipeline.ledger.rows.stored import Place, binding, joined, rows_at, taken_from
from clipmill.pipeline.ledger.rows.uids import digits_of, rows_by_digits, rows_of_uids
from clipmill.pipeline.ledger.rows.unsafe import unsafe_at
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import in_words

Pictured = tuple[str, Place]  # the stage that stores a picture, and the row's place there


def last_that_stores(state: RunState, root: str, column: str) -> Binding | None:
    """Returns the last stage over a root that stores this column for some rows."""
    for name, stage in reversed(state.stages.items()):
        written = {own.name for own in stage.planned.stage.writes}
        if stage.planned.root == root and stage.shards and column in written:
            return name, column
    return None


def image_stages(state: RunState, root: str) -> Iterator[str]:
    """Yields the stages that store the pictures of a root's rows, if any."""
    if stored := last_that_stores(state, root, IMAGE.name):
        yield stored[0]
        return
    for parent in joined(state, root):
        yield from image_stages(state, parent)


def pictured(state: RunState, root: str, places: Sequence[Place]) -> list[Pictured | None]:
    """Returns the stage that stores each row's picture, and its place there; None if none does."""
    images: dict[str, Binding | None] = {}
    pictures: list[Pictured | None] = []
    for shard, position in places:
        stage: str | None = root
        while stage is not None:
            if stage not in images:
                images[stage] = last_that_stores(state, stage, IMAGE.name)
            if images[stage] is not None:
                break
            stage, shard = taken_from(state, stage, shard)
        image = images[stage] if stage is not None else None
        pictures.append((image[0], (shard, position)) if image else None)
    return pictures


def pictures_at(
    state: RunState, root: str, places: Sequence[Place], columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns these columns of the stage with each row's picture; empty if there is none yet."""
    by_stage: dict[str, dict[int, Place]] = {}
    for index, picture in enumerate(pictured(state, root, places)):
        if picture and picture[1][0] in state.stages[picture[0]].shards:
            by_stage.setdefault(picture[0], {})[index] = picture[1]
    values: list[dict[str, Any]] = [{} for _ in places]
    for stage, places_there in by_stage.items():
        bound = {name: (stage, name) for name in columns}
        rows = rows_at(state, bound, list(places_there.values()))
        for index, row in zip(places_there, rows, strict=True):
            values[index] = row
    return values


NO_ROW = "no row has this uid"
UID_DIGITS = 32


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """A row's stored picture and its caption; without a picture, `missing` says why.

    A notebook draws an unsafe one blurred.
    """

    uid: str
    image: bytes | None = field(repr=False)
    text: str | None
    missing: str | None
    is_unsafe: bool = False


def images(state: RunState, stage: str, uids: Iterable[str]) -> dict[str, StoredImage]:
    """Returns the picture of each uid over a stage's rows; the first row's for repeated uids.

    Of a uid the first 8 hex digits suffice. All are held in memory; only row groups with these rows
    are read. RecipeError if no stage stores pictures of these rows, or a uid is none, or several.
    """
    source, _ = column_at(state.plan, stage, IMAGE.name)
    whole = {digits: digits for digits in map(_digits, uids)}
    found = rows_by_digits(state, [digits for digits in whole if len(digits) < UID_DIGITS])
    whole |= {digits: rows[0].uid.hex() for digits, rows in found.items() if rows}
    known = [uid for uid in whole.values() if len(uid) == UID_DIGITS]
    places = places_of_uids(state, stage, known)
    stored = sorted({place for place in places.values() if place[0] in state.stages[source].shards})
    text = binding(state, stage, TEXT.name)
    bound = {"image": (source, IMAGE.name), "reason": (source, REASON.name)}
    rows = rows_at(state, bound | ({"text": text} if text else {}), stored)
    unsafe = unsafe_at(state, state.plan.stages[stage].root or stage, stored)
    by_place = dict(zip(stored, zip(rows, unsafe, strict=True), strict=True))
    answer = {}
    for digits, uid in whole.items():
        place = places.get(uid)
        row, is_unsafe = by_place.get(place, ({}, False)) if place else ({}, False)
        image, text, missing = row.get("image"), row.get("text"), None
        if place is None:
            missing = NO_ROW
        elif not row:
            missing = f"'{source}' has not come to shard {place[0]}"
        elif image is None:
            missing = in_words(row["reason"]) if row["reason"] else f"'{source}' stored none"
        answer[digits] = StoredImage(
            uid=uid, image=image, text=text, missing=missing, is_unsafe=is_unsafe
        )
    return answer


def places_of_uids(state: RunState, stage: str, uids: list[str]) -> dict[str, Place]:
    """Returns the place of the first row of each uid; uids without a row are left out."""
    root = state.plan.stages[stage].root
    places: dict[str, Place] = {}
    for row in rows_of_uids(state, root, map(bytes.fromhex, uids)):
        places.setdefault(row.uid.hex(), row.place)
    return places


def _digits(uid: str) -> str:
    digits = digits_of(str(uid))
    if digits is None:
        raise RecipeError(f"{uid!r} is no uid", "uids", "give its 32 hex digits, or 8 or more")
    return digits


@dataclass(frozen=True, kw_only=True)
class PicturePlace:
    """The Parquet file and row, from 0, of a stored picture; null if none is stored.

    `url` is its link or path, as in the pool.
    """

    stage: str | None = None
    file: str | None = None
    row: int | None = None
    bytes: int | None = None
    url: str | None = None


def picture_place(
    state: RunState, rows: Iterable[StageRow], places: dict[str, Place]
) -> PicturePlace:
    """Returns where the last stage with a sample's picture stores it; `places` are by root."""
    stored, url = PicturePlace(), None
    for row in rows:
        planned = state.plan.stages[row.stage]
        stage, place = state.stages[row.stage], places[planned.root]
        has_own = IMAGE.name in {column.name for column in planned.stage.writes}
        url = row.values.get(URL.name) or url
        if has_own and row.values.get(IMAGE_BYTES.name) is not None:
            name, position = _file(state, row.stage, place)
            stored = PicturePlace(
                stage=row.stage,
                file=f"{stage.folder}/{name}",
                row=position,
                bytes=row.values[IMAGE_BYTES.name],
            )
    return replace(stored, url=url)


def _file(state: RunState, stage: str, place: Place) -> tuple[str, int]:
    """Returns the file of the newest pass with the row, and the row's number in it."""
    first, *later = state.stages[stage].shards[place[0]].files
    for name in reversed(later):
        start = 0
        for table in read_file(state.stored[stage].folder, name, [POSITION.name], 65_536):
            positions = table[POSITION.name].to_pylist()
            if place[1] in positions:
                return name, start + positions.index(place[1])
            start += len(positions)
    return first, place[1]
