"""Draws rows that a dedup stage compared, side by side: duplicates, evaluation samples."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import IMAGE_BYTES, SHA256, TEXT, URL
from clipmill.pipeline.ledger.findings.duplicates import Duplicates
from clipmill.pipeline.ledger.findings.leaks import Leaks
from clipmill.pipeline.ledger.rows.stored import Place, binding, rows_at
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.state import RunState


def duplicate_strips(state: RunState, found: Duplicates) -> list[dict[str, Any]]:
    """Returns the largest groups: canonical row first, then members from nearest to farthest."""
    columns = [found.near] if found.near else []
    strips = _strips(state, found.stage, [group.places for group in found.groups], columns)
    for strip in strips:
        strip[0]["values"] = dict.fromkeys(columns)  # a canonical row has no nearness here
    return [
        {
            "rows": group.rows,
            "more": group.rows - len(strip),
            "marks": [
                "keeper",
                *("past the cut" if is_past else "" for is_past in group.past_cut[1:]),
            ],
            "samples": strip,
        }
        for group, strip in zip(found.groups, strips, strict=True)
    ]


def leak_strips(state: RunState, found: Leaks) -> list[dict[str, Any]]:
    """Returns rows near an evaluation sample, by its task, from nearest to farthest."""
    columns = [found.cut.column, *([found.sample] if found.sample else [])]
    strips = _strips(state, found.stage, [shown.places for shown in found.shown], columns)
    return [
        {"task": shown.task, "rows": shown.rows, "more": shown.rows - len(strip), "samples": strip}
        for shown, strip in zip(found.shown, strips, strict=True)
    ]


def _strips(
    state: RunState, stage: str, strips: Sequence[Sequence[Place]], columns: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Returns the rows that a stage compared, strip by strip, with `values` of its columns.

    `texts` are those that it compared, or all texts if the run has no pictures; else none.
    """
    places = [place for strip in strips for place in strip]
    seen = samples_at(state, stage, places)
    texts = rows_at(state, _texts(state, stage), places)
    values = rows_at(state, {name: (stage, name) for name in columns}, places)
    samples = (
        {**seen[place], "texts": text, "values": row}
        for place, text, row in zip(places, texts, values, strict=True)
    )
    return [list(islice(samples, len(strip))) for strip in strips]


def _texts(state: RunState, stage: str) -> dict[str, Binding]:
    texts = {
        column: source
        for bound in state.plan.stages[stage].bindings[:1]
        for column, source in bound.items()
        if pa.types.is_string(state.plan.schema(*source)) and source[1] != SHA256.name
    }
    if texts or binding(state, stage, IMAGE_BYTES.name):
        return texts
    bound = {name: binding(state, stage, name) for name in (TEXT.name, URL.name)}
    return {name: source for name, source in bound.items() if source}
