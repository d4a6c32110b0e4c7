"""What a page shows of a run and of single rows: facts, values, pictures."""

from typing import Any

import numpy as np

from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, REASON, TEXT, UID, URL
from clipmill.pipeline.explore import asked
from clipmill.pipeline.explore.columns import NOT_YET, Columns
from clipmill.pipeline.explore.lost import ends_of
from clipmill.pipeline.explore.masks import Masks
from clipmill.pipeline.explore.moved import cuts_of
from clipmill.pipeline.ledger.rows.pictures import (
    image_stages,
    last_that_stores,
    pictured,
    pictures_at,
)
from clipmill.pipeline.ledger.rows.stage_row import shown
from clipmill.pipeline.ledger.rows.stored import Place, rows_at
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.report.pictures import small_picture
from clipmill.pipeline.run_folder.state import RunState, summary
from clipmill.pipeline.run_folder.words import in_words

MOST_CHARACTERS = 2000  # of a caption on a page


def run_facts(state: RunState, roots: dict[str, Columns]) -> dict[str, Any]:
    """What a page needs to begin: stages, columns, thresholds, where pictures come from."""
    return {
        "run": str(state.run),
        "recipe": state.plan.recipe.name,
        "roots": [root_facts(columns) for columns in roots.values()],
        "stages": [
            {
                "name": name,
                "uses": stage.planned.uses,
                "is_complete": stage.complete,
                "there": summary(stage),
            }
            for name, stage in state.stages.items()
        ],
    }


def root_facts(columns: Columns) -> dict[str, Any]:
    state, root = columns.state, columns.root
    text = last_that_stores(state, root, TEXT.name)
    return {
        "root": root,
        "rows": len(columns),
        "ends": ends_of(state, root),
        "columns": [
            {
                "id": column.id,
                "stage": column.stage,
                "name": column.name,
                "kind": column.kind,
                "type": column.dtype,
                "doc": column.doc,
                "better": column.better,
                "is_cluster": column.is_cluster,
            }
            for column in columns.stored.values()
        ],
        "thresholds": [vars(cut) for cut in cuts_of(columns)],
        "pictures": next(image_stages(state, root), None),
        "text": ".".join(text) if text else None,
    }


def rows_shown(columns: Columns, masks: Masks, question: asked.Rows) -> list[dict[str, Any]]:
    """uid, caption, link, verdict and the columns asked for of each row, short enough to show."""
    state, root = columns.state, columns.root
    rows = [row for row in question.rows if row < len(columns)]
    places = columns.places(np.array(rows, np.int64))
    wanted: dict[str, Binding] = {"uid": (root, UID.name)}
    for name, column in (("text", TEXT.name), ("url", URL.name)):
        if where := last_that_stores(state, root, column):
            wanted[name] = where
    wanted |= {f"={name}": columns.column(name).where for name in question.columns}
    found = _stored_at(state, wanted, places)
    no_picture = _no_picture(columns, places)
    lost = masks.lost(question.end) if question.end else None
    return [
        {
            "row": row,
            "uid": values["uid"].hex(),
            "text": _short(values.get("text")),
            "url": values.get("url"),
            "picture": why_none is None,
            "no_picture": why_none,
            "verdict": lost.causes[lost.code[row]] if lost else None,
            "values": {n[1:]: _exact(shown(it)) for n, it in values.items() if n.startswith("=")},
        }
        for row, values, why_none in zip(rows, found, no_picture, strict=True)
    ]


def _stored_at(
    state: RunState, wanted: dict[str, Binding], places: list[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Columns at each place; None of what a stage has not done yet."""
    there: dict[int, list[int]] = {}
    for index, (shard, _) in enumerate(places):
        there.setdefault(shard, []).append(index)
    found: list[dict[str, Any]] = [{} for _ in places]
    for shard, indices in there.items():
        bound = {n: at for n, at in wanted.items() if shard in state.stages[at[0]].shards}
        rows = rows_at(state, bound, [places[index] for index in indices])
        for index, row in zip(indices, rows, strict=True):
            found[index] = row | dict.fromkeys(wanted.keys() - bound.keys())
    return found


def _no_picture(columns: Columns, places: list[Place]) -> list[str | None]:
    """Why each row has no picture; None where it has one."""
    state, root = columns.state, columns.root
    stages = pictured(state, root, places)
    values = pictures_at(state, root, places, [IMAGE_BYTES.name, REASON.name])
    return [_why_none(at[0] if at else None, it) for at, it in zip(stages, values, strict=True)]


def _why_none(stage: str | None, values: dict[str, Any]) -> str | None:
    if stage is None:
        return "no stage of these rows stores pictures"
    if values.get(IMAGE_BYTES.name) is not None:
        return None
    reason = (values[REASON.name] or "no picture") if values else NOT_YET
    return f"{stage}: {in_words(reason)}"


def _exact(value: Any) -> Any:
    """A value that a browser takes as it is: its numbers have 53 bits."""
    return str(value) if isinstance(value, int) and abs(value) > 1 << 53 else value


def _short(text: Any) -> str | None:
    if text is None:
        return None
    said = str(text)
    if len(said) <= MOST_CHARACTERS:
        return said
    return f"{said[:MOST_CHARACTERS]}… ({len(said):,} characters)"


def picture_of(columns: Columns, row: int, side: int) -> tuple[str, bytes] | None:
    """Its type and bytes, made anew from the stored picture; None where it shows nothing."""
    if row >= len(columns):
        return None
    places = columns.places(np.array([row], np.int64))
    (values,) = pictures_at(columns.state, columns.root, places, [IMAGE.name])
    made = small_picture(values.get(IMAGE.name), side)
    return (f"image/{made.kind}", made.data) if made else None
