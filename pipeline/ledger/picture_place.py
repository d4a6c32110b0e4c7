"""Where a row's picture lies: in which file of the run, and under which link."""

from collections.abc import Iterable
from dataclasses import dataclass

from clipmill.metadata.parquet_file import read_file
from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, POSITION, URL
from clipmill.pipeline.ledger.at_row import StageRow
from clipmill.pipeline.ledger.stored import Place
from clipmill.pipeline.run_folder.state import RunState


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
