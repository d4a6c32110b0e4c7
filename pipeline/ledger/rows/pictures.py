"""The pictures of rows: which stage stores them, their bytes, the file that holds one.

Rows of a union have the pictures of its parents' pools.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipmill.metadata.parquet_file import read_file
from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, POSITION, REASON, TEXT, URL
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.rows.columns import column_at
from clipmill.pipeline.ledger.rows.stage_row import StageRow
from clipmill.pipeline.ledger.rows.stored import Place, binding, rows_at
from clipmill.pipeline.ledger.rows.uids import rows_of_uids
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import in_words

Pictured = tuple[str, Place]  # a stage, and the row's place in it


def last_that_stores(state: RunState, root: str, column: str) -> Binding | None:
    """The last stage over a root that stores such a column of some rows."""
    found = None
    for name, stage in state.stages.items():
        if stage.planned.root == root and stage.shards:
            virtual = {it.name for it in getattr(stage.planned.stage, "virtual", ())}
            if column in {it.name for it in stage.planned.stage.writes} - virtual:
                found = name, column
    return found


def image_stages(state: RunState, root: str) -> Iterator[str]:
    """The stages whose pictures the rows of a root have; none where nothing stores any."""
    if own := last_that_stores(state, root, IMAGE.name):
        yield own[0]
        return
    for parent in _joined(state, root):
        yield from image_stages(state, parent)


def pictured(state: RunState, root: str, places: Sequence[Place]) -> list[Pictured | None]:
    """The stage that stores the picture of each row, and its place there; None where none does."""
    images: dict[str, Binding | None] = {}
    found: list[Pictured | None] = []
    for shard, position in places:
        at: str | None = root
        while at is not None:
            if at not in images:
                images[at] = last_that_stores(state, at, IMAGE.name)
            if images[at] is not None:
                break
            at, shard = _taken_from(state, at, shard)
        own = images[at] if at is not None else None
        found.append((own[0], (shard, position)) if own else None)
    return found


def pictures_at(
    state: RunState, root: str, places: Sequence[Place], columns: Sequence[str]
) -> list[dict[str, Any]]:
    """These columns of the stage that stores each row's picture; empty where none does, or has not
    come to its shard."""
    by_stage: dict[str, dict[int, Place]] = {}
    for index, it in enumerate(pictured(state, root, places)):
        if it and it[1][0] in state.stages[it[0]].shards:
            by_stage.setdefault(it[0], {})[index] = it[1]
    found: list[dict[str, Any]] = [{} for _ in places]
    for stage, here in by_stage.items():
        bound = {name: (stage, name) for name in columns}
        rows = rows_at(state, bound, list(here.values()))
        for index, row in zip(here, rows, strict=True):
            found[index] = row
    return found


def _joined(state: RunState, root: str) -> list[str]:
    """The roots of a union's parents, in the order of `from`; none of another root."""
    planned = state.plan.stages[root]
    is_union = getattr(planned.stage, "joins_roots", False)
    return [state.plan.stages[parent].root for parent in planned.parents] if is_union else []


def _taken_from(state: RunState, root: str, shard: int) -> tuple[str | None, int]:
    """The root and shard whose rows, in their order, are those of a union's shard."""
    index = (state.stages[root].shards[shard].source or {}).get("shard", shard)
    for parent in _joined(state, root):
        shards = state.stages[parent].total or 0
        if index < shards:
            return parent, index
        index -= shards
    return None, shard


NO_ROW = "no row has this uid"


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """A row's picture as it is stored and its caption; without one, `missing` says why."""

    uid: str
    image: bytes | None = field(repr=False)
    text: str | None
    missing: str | None


def images(state: RunState, stage: str, uids: Iterable[str]) -> dict[str, StoredImage]:
    """The picture of each uid, as the rows of a stage have it; of equal uids the first row's.

    All are held in memory; only row groups with such rows are read. RecipeError where no stage
    stores pictures of these rows, or a uid has not 32 hex digits.
    """
    source, _ = column_at(state.plan, stage, IMAGE.name)
    asked = list(dict.fromkeys(_digits(uid) for uid in uids))
    places = places_of_uids(state, stage, asked)
    there = sorted({place for place in places.values() if place[0] in state.stages[source].shards})
    text = binding(state, stage, TEXT.name)
    bound = {"image": (source, IMAGE.name), "reason": (source, REASON.name)}
    rows = rows_at(state, bound | ({"text": text} if text else {}), there)
    found = dict(zip(there, rows, strict=True))
    answer = {}
    for uid in asked:
        place = places.get(uid)
        row = found.get(place, {}) if place else {}
        image = row.get("image")
        missing = None
        if place is None:
            missing = NO_ROW
        elif not row:
            missing = f"'{source}' has not come to shard {place[0]}"
        elif image is None:
            missing = in_words(row["reason"]) if row["reason"] else f"'{source}' stored none"
        answer[uid] = StoredImage(uid=uid, image=image, text=row.get("text"), missing=missing)
    return answer


def places_of_uids(state: RunState, stage: str, uids: list[str]) -> dict[str, Place]:
    """Where the first row of each uid stands; those are left out that have none."""
    root = state.plan.stages[stage].root
    places: dict[str, Place] = {}
    for row in rows_of_uids(state, root, map(bytes.fromhex, uids)):
        places.setdefault(row.uid.hex(), row.place)
    return places


def _digits(uid: str) -> str:
    digits = str(uid).strip().lower()
    if len(digits) != 32 or set(digits) - set("0123456789abcdef"):
        raise RecipeError(
            f"{uid!r} is no uid", "uids", "give 32 hex digits, as a table's `uid` has"
        )
    return digits


@dataclass(frozen=True, kw_only=True)
class PicturePlace:
    """The Parquet file and its row, counted from 0, that hold a stored picture; null where the run
    holds none. `url` is its link, or its path, as the pool has it."""

    stage: str | None = None
    file: str | None = None
    row: int | None = None
    bytes: int | None = None
    url: str | None = None


def picture_place(
    state: RunState, rows: Iterable[StageRow], places: dict[str, Place]
) -> PicturePlace:
    """The last stage's picture that a sample has, of its values by stage; `places` by root."""
    found, url = PicturePlace(), None
    for row in rows:
        planned = state.plan.stages[row.stage]
        stage, place = state.stages[row.stage], places[planned.root]
        virtual = {column.name for column in getattr(planned.stage, "virtual", ())}
        has_own = IMAGE.name in {it.name for it in planned.stage.writes} - virtual
        url = row.values.get(URL.name) or url
        if has_own and row.values.get(IMAGE_BYTES.name) is not None:
            name, position = _file(state, row.stage, place)
            found = PicturePlace(
                stage=row.stage,
                file=f"{stage.folder}/{name}",
                row=position,
                bytes=row.values[IMAGE_BYTES.name],
            )
    return PicturePlace(
        stage=found.stage, file=found.file, row=found.row, bytes=found.bytes, url=url
    )


def _file(state: RunState, stage: str, place: Place) -> tuple[str, int]:
    """The file of the newest pass that has the row, and the row's number in it."""
    first, *later = state.stages[stage].shards[place[0]].files
    for name in reversed(later):
        start = 0
        for table in read_file(state.stored[stage].folder, name, [POSITION.name], 65_536):
            at = table[POSITION.name].to_pylist()
            if place[1] in at:
                return name, start + at.index(place[1])
            start += len(at)
    return first, place[1]
