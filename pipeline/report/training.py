"""Draws losses: trainings of one kind in a chart, each with a band over its seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipmill.pipeline.ledger.proof.results import LossCurve
from clipmill.pipeline.report.charts import Band, bands

POINTS = 300  # points of a line: no screen shows more
LINES = 5  # lines of a chart: more colours look alike


def training_charts(curves: Sequence[LossCurve]) -> list[dict[str, Any]]:
    """Returns a chart for every LINES trainings of a kind, in the recipe's order."""
    charts = []
    for uses in dict.fromkeys(curve.uses for curve in curves):
        stages = list(dict.fromkeys(curve.stage for curve in curves if curve.uses == uses))
        for first in range(0, len(stages), LINES):
            drawn = stages[first : first + LINES]
            charts.append(_chart(uses, [curve for curve in curves if curve.stage in drawn]))
    return charts


def _chart(uses: str, curves: Sequence[LossCurve]) -> dict[str, Any]:
    """Returns the mean over each training's seeds with its range, and the final losses."""
    drawn, ends = [], []
    for stage in dict.fromkeys(curve.stage for curve in curves):
        seeds = [curve for curve in curves if curve.stage == stage]
        steps = min(len(curve.step) for curve in seeds)
        if not steps:
            continue
        loss_SN = np.array([curve.loss[:steps] for curve in seeds], np.float64)
        # A training that diverged stores NaN or infinity, which no axis has room for.
        drawn_N = np.flatnonzero(np.isfinite(loss_SN).all(axis=0))[:: max(1, steps // POINTS)]
        mean_N, low_N, high_N = loss_SN.mean(0), loss_SN.min(0), loss_SN.max(0)
        x = np.array(seeds[0].step)[drawn_N].tolist()
        drawn.append(Band(stage, x, *(y_N[drawn_N].tolist() for y_N in (mean_N, low_N, high_N))))
        last = float(mean_N[-max(1, steps // 20) :].mean())
        ends.append({"stage": stage, "seeds": len(seeds), "steps": steps, "last": last})
    return {"uses": uses, "chart": bands(drawn), "ends": ends}
