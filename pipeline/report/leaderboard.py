"""Writes a bench's leaderboard as one self-contained HTML page."""

from collections.abc import Callable
from typing import Any

from clipmill.metadata.stats import Estimate
from clipmill.pipeline.bench.board import Board, Line
from clipmill.pipeline.bench.spec import RAW
from clipmill.pipeline.bench.tables import (
    SCORES,
    course,
    estimate,
    leaked,
    legend,
    of_oracle,
    share,
    verdict,
    verdicts,
    warnings,
)
from clipmill.pipeline.report.charts import Band, Point, bands, scatter
from clipmill.pipeline.report.page import render
from clipmill.pipeline.report.training import LINES

SIZE = ("score against size", "rows of the arm", lambda line: line.rows)
COST = ("score against cost", "seconds of one training on one worker", lambda line: line.seconds)


def leaderboard(board: Board, title: str) -> str:
    """Returns the page as HTML."""
    return render(
        "leaderboard.html",
        title=title,
        board=board,
        said=legend(board),
        scores=SCORES,
        charts=list(filter(None, (_chart(board, *axis) for axis in (SIZE, COST)))),
        estimate=estimate,
        course=course(board),
        curves=_curves(board),
        of_oracle=of_oracle(board),
        share=share,
        leaked=leaked,
        verdict=verdict,
        verdicts=verdicts(board),
        warned=warnings(board),
        has_cost=any(line.seconds is not None for line in board.lines),
    )


def _curves(board: Board) -> dict[str, Any] | None:
    """Returns the best arms' scores by samples seen, raw's among them, each in its interval."""
    curves = {curve.arm: curve for curve in board.curves}
    if RAW not in curves:
        return None
    names = [line.arm for line in board.lines if line.arm in curves and line.arm != RAW]
    names = [*names[: LINES - 1], RAW]
    drawn = []
    for curve in map(curves.__getitem__, names):
        samples = [share * board.samples_seen for share in curve.share]
        drawn.append(Band(curve.arm, samples, *zip(*map(_points, curve.result), strict=True)))
    has_intervals = any(band.low != band.high for band in drawn)
    return {"names": names, "plot": bands(drawn), "has_intervals": has_intervals}


def _points(result: Estimate) -> tuple[float, float, float]:
    """Returns a mean and the ends of its interval, in points of 100: no share lies beyond."""
    ends = (result.value if end is None else end for end in (result.low, result.high))
    low, high = (100 * min(max(end, 0.0), 1.0) for end in ends)
    return 100 * result.value, low, high


def _chart(
    board: Board, title: str, x_is: str, x_of: Callable[[Line], float | None]
) -> dict[str, Any] | None:
    """Returns a mark for every arm with a score and an x; None without any."""
    points = []
    for line in board.lines:
        x, result = x_of(line), line.result
        if x and result:
            points.append(Point(line.arm, _kind(line.arm), x, *_points(result)))
    if not points:
        return None
    has_intervals = any(line.result and line.result.low is not None for line in board.lines)
    plot = scatter(points)
    return {"title": title, "x_is": x_is, "plot": plot, "has_intervals": has_intervals}


def _kind(arm: str) -> str:
    """Returns the colour class: for raw, for random arms, for the others."""
    return "s2" if arm == "raw" else "s3" if arm.startswith("random_of_") else "s1"
