"""Writes a diff as a page (`clipmill diff --html`): two selections, with pictures of moved rows."""

from typing import Any

from clipmill.pipeline.ledger.rows.stored import rows_at
from clipmill.pipeline.ledger.selection.causes import named_in
from clipmill.pipeline.ledger.selection.diff import Diff, Move
from clipmill.pipeline.ledger.selection.sides import Side
from clipmill.pipeline.report.page import render
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.variants import Change
from clipmill.pipeline.run_folder.words import apart

SHOWN = 8  # moves of each kind that have pictures
TABLE_ROWS = 60  # moves in the table


def diff_page(before: Side, after: Side, answer: Diff) -> str:
    """Returns the diff as HTML."""
    kinds = {
        kind: [m for m in answer.moves if m.kind == kind] for kind in ("gained", "lost", "moved")
    }
    moves = [move for kind in kinds.values() for move in kind]
    most = max((move.rows for move in moves), default=1)
    return render(
        "diff.html",
        title=f"{answer.before.asked} and {answer.after.asked}",
        found=answer,
        sides=[("A", answer.before), ("B", answer.after)],
        settings=[_setting(change) for change in answer.changes.settings],
        moves=[{**vars(move), "share": move.rows / most} for move in moves[:TABLE_ROWS]],
        untold=moves[TABLE_ROWS:],
        kinds={
            kind: [_shown(before, after, move) for move in moves_of_kind[:SHOWN]]
            for kind, moves_of_kind in kinds.items()
        },
        groups={
            name: [group for group in groups if group.gained or group.lost]
            for name, groups in answer.groups.items()
            if len(groups) > 1
        },
    )


def _setting(change: Change) -> dict[str, Any]:
    """Returns its key and both values; for long rules the parts that differ."""
    both = (change.before, change.after)
    parts = apart(*both) if all(isinstance(value, str) for value in both) else None
    return {"key": change.key, "values": parts or both, "has_more": parts is not None}


def _shown(before: Side, after: Side, move: Move) -> dict[str, Any]:
    """Returns a move and its examples: pictures, and the values for which a side lost them."""
    places_before = [row.before for row in move.examples if row.before is not None]
    places_after = [row.after for row in move.examples if row.after is not None]
    if move.kind == "lost" or move.after.what == "absent":
        pictured, places = before, places_before
    else:
        pictured, places = after, places_after
    seen = samples_at(pictured.state, pictured.stage, places)
    samples = [{**seen[place], "values": {}} for place in places]
    for side, outcome, side_places in (
        (before, move.before, places_before),
        (after, move.after, places_after),
    ):
        if outcome.what == "lost":
            columns = named_in(side.state.plan, outcome.stage, outcome.reason)
            rows = rows_at(side.state, columns, side_places)
            for sample, row in zip(samples, rows, strict=True):
                sample["values"].update(row)
    return {**vars(move), "samples": samples}
