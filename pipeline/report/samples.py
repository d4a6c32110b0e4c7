"""What a page shows of a row beside its values: its picture and its caption, or texts alone."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from metadata.schema import IMAGE, IMAGE_BYTES, SHA256, TEXT, UID, URL
from pipeline.ledger.stored import Place, binding, rows_at
from pipeline.planned import Binding
from pipeline.report.pictures import picture
from pipeline.state import RunState


def samples_at(state: RunState, stage: str, places: Iterable[Place]) -> dict[Place, dict[str, Any]]:
    """uid, caption and picture of each row under a stage; None where there is none."""
    image = binding(state, stage, IMAGE_BYTES.name)
    bound = {
        "uid": (state.plan.stages[stage].root or stage, UID.name),
        "text": binding(state, stage, TEXT.name),
        "image": image and (image[0], IMAGE.name),
    }
    there = {name: where for name, where in bound.items() if where}
    each = sorted(set(places))
    rows = zip(each, rows_at(state, there, each), strict=True)
    return {
        place: {
            "uid": row["uid"].hex(),
            "text": row.get("text"),
            "picture": picture(row.get("image")),
        }
        for place, row in rows
    }


def strips_of(
    state: RunState, stage: str, strips: Sequence[Sequence[Place]], columns: Iterable[str]
) -> list[list[dict[str, Any]]]:
    """The same of rows that a stage compared, with `values` of its columns, and `texts`: those it
    compared, or all there is where the run has no pictures; else none."""
    places = [place for strip in strips for place in strip]
    seen = samples_at(state, stage, places)
    texts = rows_at(state, _texts(state, stage), places)
    values = rows_at(state, {name: (stage, name) for name in columns}, places)
    samples = (
        {**seen[place], "texts": said, "values": row}
        for place, said, row in zip(places, texts, values, strict=True)
    )
    return [list(islice(samples, len(strip))) for strip in strips]


def _texts(state: RunState, stage: str) -> dict[str, Binding]:
    texts = {
        read: where
        for bound in state.plan.stages[stage].bindings[:1]
        for read, where in bound.items()
        if pa.types.is_string(state.plan.schema(*where)) and where[1] != SHA256.name
    }
    if texts or binding(state, stage, IMAGE_BYTES.name):
        return texts
    found = {name: binding(state, stage, name) for name in (TEXT.name, URL.name)}
    return {name: where for name, where in found.items() if where}
