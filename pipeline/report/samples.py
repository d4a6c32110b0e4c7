"""Reads what a page shows of a row beside its values: picture, caption, and link."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from clipmill.metadata.schema import HTTP_STATUS, IMAGE, IMAGE_BYTES, TEXT, UID, URL
from clipmill.pipeline.ledger.rows.pictures import pictures_at
from clipmill.pipeline.ledger.rows.stored import Place, binding, rows_at
from clipmill.pipeline.ledger.rows.unsafe import unsafe_at
from clipmill.pipeline.report.pictures import SMALL, picture
from clipmill.pipeline.run_folder.state import RunState


def samples_at(
    state: RunState, stage: str, places: Iterable[Place], side: int = SMALL
) -> dict[Place, dict[str, Any]]:
    """Returns uid, caption, link and picture of each row under a stage; None if missing.

    `side` is the picture's, in pixels; an unsafe one is blurred.
    """
    image = binding(state, stage, IMAGE_BYTES.name)
    root = state.plan.stages[stage].root or stage
    bound = {
        "uid": (root, UID.name),
        "text": binding(state, stage, TEXT.name),
        "url": binding(state, stage, URL.name),
        "status": binding(state, stage, HTTP_STATUS.name),
        "image": image and (image[0], IMAGE.name),
    }
    sources = {name: source for name, source in bound.items() if source}
    each = sorted(set(places))
    rows = rows_at(state, sources, each)
    if image is None:  # a union's pools may store some
        pictures = pictures_at(state, root, each, [IMAGE.name])
        rows = [{**row, **picture_row} for row, picture_row in zip(rows, pictures, strict=True)]
    return {
        place: {
            "uid": row["uid"].hex(),
            "text": row.get("text"),
            "url": row.get("url"),
            "host": host(row.get("url")),
            "status": row.get("status"),
            "picture": picture(row.get("image"), side, is_unsafe),
        }
        for place, row, is_unsafe in zip(each, rows, unsafe_at(state, root, each), strict=True)
    }


def host(url: str | None) -> str:
    """Returns a link's host with its port; empty without one."""
    try:
        return urlsplit(url or "").netloc.rpartition("@")[2]
    except ValueError:  # a broken IPv6 address
        return ""
