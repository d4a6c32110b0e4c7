"""Writes rows of a stage as a page of pictures (`clipmill show --html`)."""

from itertools import groupby
from typing import Any

from clipmill.metadata.schema import IMAGE_BYTES, TEXT, URL
from clipmill.pipeline.ledger.rows.stored import Place, binding
from clipmill.pipeline.ledger.rows.table import unfinished_note
from clipmill.pipeline.ledger.selection.show import Lines, Show
from clipmill.pipeline.report.page import render
from clipmill.pipeline.report.pictures import LARGE
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.state import RunState

MOST = 240  # rows on a page: about 4 MB of photographs, 256 pixels wide
ON_CARDS = (TEXT.name,)  # columns with their own place on a card, and on a table's line
ON_LINES = (TEXT.name, URL.name)
AT_ONCE = 32  # stored pictures in memory


def show_page(state: RunState, show: Show, title: str) -> tuple[str, str]:
    """Returns the page as HTML, and a summary of its content."""
    most = max(1, MOST // len(show.groups))
    places = {
        (line.shard, line.position): None for group in show.groups for line in group.lines[:most]
    }
    seen: dict[Place, dict[str, Any]] = {}
    each = sorted(places)
    for start in range(0, len(each), AT_ONCE):
        seen |= samples_at(state, show.stage, each[start : start + AT_ONCE], LARGE)
    groups = [_drawn(group, seen, most) for group in show.groups]
    pictures = sum(sample["picture"] is not None for sample in seen.values())
    stores_some = binding(state, show.stage, IMAGE_BYTES.name) is not None or pictures > 0
    left_out = sum(group["left_out"] for group in groups)
    summary = _summary(len(seen), pictures, stores_some, left_out)
    page = render(
        "show.html",
        title=f"{show.stage}: {title}",
        show=show,
        what=title,
        unfinished=unfinished_note(show.unfinished) if show.unfinished else "",
        parted=[[*group] for _, group in groupby(groups, key=lambda group: group["cut"])],
        said=summary,
        has_pictures=pictures > 0,
    )
    return page, summary


def _drawn(group: Lines, seen: dict[Place, dict[str, Any]], most: int) -> dict[str, Any]:
    """Returns a group with its lines as cards of the page."""
    shown_samples = [seen[line.shard, line.position] for line in group.lines[:most]]
    apart = ON_CARDS if any(sample["picture"] for sample in shown_samples) else ON_LINES
    samples = [
        {**sample, "values": {k: v for k, v in line.values.items() if k not in apart}}
        for sample, line in zip(shown_samples, group.lines, strict=False)
    ]
    return {**vars(group), "samples": samples, "left_out": len(group.lines) - len(samples)}


def _summary(rows: int, pictures: int, has_pictures: bool, left_out: int) -> str:
    """Returns how many pictures there are, and why not more."""
    parts = [f"{rows:,} row{'' if rows == 1 else 's'}"]
    if not has_pictures:
        parts.append("no stage that is done has pictures of them")
    elif pictures < rows:
        parts.append(f"{rows - pictures:,} without a picture that can be decoded")
    if left_out:
        parts.append(f"{left_out:,} more rows are left out, as a page holds {MOST}")
    return "; ".join(parts)
