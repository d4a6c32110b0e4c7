"""Writes a diff as a page (`clipmill diff --html`): two selections, with pictures of moved rows."""

from collections.abc import Sequence
from typing import Any

from clipmill.pipeline.ledger.rows.stored import Place, rows_at
from clipmill.pipeline.ledger.selection.causes import named_in
from clipmill.pipeline.ledger.selection.diff import Diff, Move, Outcome
from clipmill.pipeline.ledger.selection.sides import Side
from clipmill.pipeline.report.page import render
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.variants import Change
from clipmill.pipeline.run_folder.words import apart

SHOWN = 8  # moves of each kind that have pictures
TOLD = 60  # moves in the table


def diff_page(before: Side, after: Side, answer: Diff) -> str:
    """Returns the diff as HTML; rows of one side only are shown as they are there."""
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
        moves=[{**vars(move), "share": move.rows / most} for move in moves[:TOLD]],
        untold=moves[TOLD:],
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
    """Returns a move and its examples: pictures, and the values that decided on the losing side."""
    sides = (before, after)
    places = [[row.before for row in move.examples], [row.after for row in move.examples]]
    which = 1 if move.after.what != "absent" else 0  # the side whose pictures are shown
    if move.kind == "lost":
        which = 0
    seen = samples_at(sides[which].state, sides[which].stage, _there(places[which]))
    values: list[dict[str, Any]] = [{} for _ in move.examples]
    for side, outcome, side_places in zip(sides, (move.before, move.after), places, strict=True):
        for row, deciding in zip(values, _deciding(side, outcome, side_places), strict=True):
            row.update(deciding)
    samples = [
        {**seen[place], "values": row}
        for place, row in zip(places[which], values, strict=True)
        if place is not None
    ]
    return {**vars(move), "samples": samples}


def _deciding(side: Side, outcome: Outcome, places: Sequence[Place | None]) -> list[dict[str, Any]]:
    """Returns each row's values in the columns that the reason names; empty if none decided."""
    if outcome.what != "lost":
        return [{} for _ in places]
    return rows_at(
        side.state, named_in(side.state.plan, outcome.stage, outcome.reason), _there(places)
    )


def _there(places: Sequence[Place | None]) -> list[Place]:
    return [place for place in places if place is not None]
