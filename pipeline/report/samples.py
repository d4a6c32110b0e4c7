"""What a page shows of a row beside its values: its picture and its caption."""

from collections.abc import Iterable
from typing import Any

from metadata.schema import IMAGE, IMAGE_BYTES, TEXT, UID
from pipeline.ledger.stored import Place, binding, rows_at
from pipeline.report.pictures import picture
from pipeline.run_folder.state import RunState


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
