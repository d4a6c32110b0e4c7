"""Collects what a page shows of a run and of single rows: facts, values, pictures."""

from typing import Any

import numpy as np

from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, REASON, TEXT, UID, URL
from clipmill.pipeline.explore import questions
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
from clipmill.pipeline.ledger.rows.unsafe import unsafe_at
from clipmill.pipeline.ledger.summary import texts_if_few
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.report.pictures import small_picture
from clipmill.pipeline.run_folder.state import RunState, summary
from clipmill.pipeline.run_folder.words import in_words

MOST_CHARACTERS = 2000  # most characters of a caption on a page


def run_facts(state: RunState, roots: dict[str, Columns]) -> dict[str, Any]:
    """Returns a page's initial facts: stages, columns, thresholds, sources of pictures."""
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
        "texts": [texts.sentence for texts in texts_if_few(state) or () if texts.lost],
    }


def root_facts(columns: Columns) -> dict[str, Any]:
    state, root = columns.state, columns.root
    text = last_that_stores(state, root, TEXT.name)
    return {
        "root": root,
        "rows": len(columns),
        "ends": ends_of(state, root),
        "columns": [{"id": name, **vars(column)} for name, column in columns.stored.items()],
        "thresholds": [vars(cut) for cut in cuts_of(columns)],
        "pictures": next(image_stages(state, root), None),
        "text": ".".join(text) if text else None,
    }


def rows_shown(columns: Columns, masks: Masks, question: questions.Rows) -> list[dict[str, Any]]:
    """Returns uid, caption, link, verdict and the requested columns of each row, shortened."""
    state, root = columns.state, columns.root
    rows = [row for row in question.rows if row < len(columns)]
    places = columns.places(np.array(rows, np.int64))
    bound: dict[str, Binding] = {"uid": (root, UID.name)}
    for name, column in (("text", TEXT.name), ("url", URL.name)):
        if source := last_that_stores(state, root, column):
            bound[name] = source
    bound |= {f"={name}": columns.column(name).where for name in question.columns}
    stored = _stored_at(state, bound, places)
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
            "values": {n[1:]: _exact(shown(v)) for n, v in values.items() if n.startswith("=")},
        }
        for row, values, why_none in zip(rows, stored, no_picture, strict=True)
    ]


def _stored_at(
    state: RunState, sources: dict[str, Binding], places: list[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Returns columns at each place; None if a stage has not finished the shard."""
    by_shard: dict[int, list[int]] = {}
    for index, (shard, _) in enumerate(places):
        by_shard.setdefault(shard, []).append(index)
    values: list[dict[str, Any]] = [{} for _ in places]
    for shard, indices in by_shard.items():
        bound = {n: s for n, s in sources.items() if shard in state.stages[s[0]].shards}
        rows = rows_at(state, bound, [places[index] for index in indices])
        for index, row in zip(indices, rows, strict=True):
            values[index] = row | dict.fromkeys(sources.keys() - bound.keys())
    return values


def _no_picture(columns: Columns, places: list[Place]) -> list[str | None]:
    """Returns why each row has no picture; None if it has one."""
    state, root = columns.state, columns.root
    stages = pictured(state, root, places)
    values = pictures_at(state, root, places, [IMAGE_BYTES.name, REASON.name])
    return [_why_none(p[0] if p else None, row) for p, row in zip(stages, values, strict=True)]


def _why_none(stage: str | None, values: dict[str, Any]) -> str | None:
    if stage is None:
        return "no stage of these rows stores pictures"
    if values.get(IMAGE_BYTES.name) is not None:
        return None
    reason = (values[REASON.name] or "no picture") if values else NOT_YET
    return f"{stage}: {in_words(reason)}"


def _exact(value: Any) -> Any:
    """Returns a value that JavaScript holds exactly: its numbers have 53 bits."""
    return str(value) if isinstance(value, int) and abs(value) > 1 << 53 else value


def _short(text: Any) -> str | None:
    if text is None:
        return None
    caption = str(text)
    if len(caption) <= MOST_CHARACTERS:
        return caption
    return f"{caption[:MOST_CHARACTERS]}… ({len(caption):,} characters)"


def picture_of(columns: Columns, row: int, side: int) -> tuple[str, bytes] | None:
    """Returns a small picture's type and bytes; None if the stored one cannot be shown."""
    if row >= len(columns):
        return None
    places = columns.places(np.array([row], np.int64))
    (values,) = pictures_at(columns.state, columns.root, places, [IMAGE.name])
    (is_unsafe,) = unsafe_at(columns.state, columns.root, places)
    small = small_picture(values.get(IMAGE.name), side, is_unsafe)
    return (f"image/{small.kind}", small.data) if small else None
