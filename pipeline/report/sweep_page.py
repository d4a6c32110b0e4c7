"""Writes a sweep as a page (`clipmill sweep --html`): plots, and pictures of rows won and lost."""

from typing import Any

from clipmill.pipeline.ledger.selection.sweep import Sample, Sweep
from clipmill.pipeline.report.charts import Line, lines
from clipmill.pipeline.report.page import render
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.state import RunState

LINES = 3  # groups in a plot


def sweep_page(state: RunState, sweep: Sweep) -> str:
    """Returns the sweep as HTML."""
    points = sweep.points
    value = [point.value for point in points]
    counts = {
        name: [getattr(p, name) for p in points] for name in ("kept", "common", "lost", "won")
    }
    is_on_axis = sweep.today_value is not None and value[0] <= sweep.today_value <= value[-1]
    today = [{"value": sweep.today_value, "text": f"today: {sweep.today}"}] if is_on_axis else []
    varied = [
        by
        for by in sweep.groups
        if len({name for point in points for name in point.groups[by]}) > 1
    ]
    return render(
        "sweep.html",
        title=f"{sweep.vary} of {sweep.stage}",
        found={**vars(sweep), "points": _with_pictures(state, sweep)},
        varied=varied,
        kept=lines([("kept", value, counts["kept"])], today),
        overlap=lines([(n, value, counts[n]) for n in ("common", "lost", "won")], today),
        shares=[{"by": by, "chart": lines(_shares(by, sweep), today)} for by in varied],
    )


def _shares(by: str, sweep: Sweep) -> list[Line]:
    """Returns the percentage of kept rows in each of the currently largest groups."""
    value = [point.value for point in sweep.points]
    return [
        (name, value, [100 * p.groups[by].get(name, 0) / max(1, p.kept) for p in sweep.points])
        for name in list(sweep.groups[by])[:LINES]
    ]


def _with_pictures(state: RunState, sweep: Sweep) -> list[dict[str, Any]]:
    """Returns the points, each sample with its picture and the varied value."""
    seen = samples_at(state, sweep.stage, {sample.place for sample in sweep.samples})

    def shown(sample: Sample) -> dict[str, Any]:
        values = {sweep.column: sample.value}
        return {**vars(sample), "picture": seen[sample.place]["picture"], "values": values}

    return [
        {
            **vars(point),
            "samples": {
                "won": [shown(sample) for sample in point.samples.won],
                "lost": [shown(sample) for sample in point.samples.lost],
            },
        }
        for point in sweep.points
    ]
