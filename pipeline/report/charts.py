"""Computes the coordinates of charts; the templates draw them."""

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Any, NamedTuple

WIDTH, HEIGHT = 420, 190  # viewBox: no wider, so that text stays legible on a phone
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 16, 34
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
TOWERS = 4  # times the next highest bar: a higher bar is cut off, so that the others are visible
ROOM = 1.25  # height of the axis, by that next highest bar
Line = tuple[str, Sequence[float], Sequence[float]]  # name, x, y


class Band(NamedTuple):
    """A line with a lower and an upper edge at each x."""

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Point(NamedTuple):
    """A value with its interval, at an x above 0; `kind` is the class of its mark."""

    name: str
    kind: str
    x: float
    y: float
    low: float
    high: float


def histogram(
    edges: Sequence[float],
    kept: Sequence[int],
    dropped: Sequence[int],
    cuts: Sequence[dict[str, Any]],
    is_whole: bool = False,
) -> dict[str, Any]:
    """Returns two stacked bars per bin, kept rows below, and a line at each cut.

    One bar that towers over all others is cut off at the top, with its rows as a number.
    """
    height = [k + d for k, d in zip(kept, dropped, strict=True)]
    second, highest = sorted([0, 0, *height])[-2:]
    is_tower = second > 0 and highest > TOWERS * second
    most = (second * ROOM if is_tower else highest) or 1
    low, high = edges[0], edges[-1]
    box = frame(low, high, 0, most)
    box["y_ticks"] = [tick for tick in box["y_ticks"] if "." not in tick["text"]]  # rows
    top = box["y_top"]
    bars, towers = [], []
    for i in range(len(kept)):
        x, right = _x(edges[i], low, high), _x(edges[i + 1], low, high)
        share = min(1.0, top / height[i]) if height[i] else 1.0  # drawn part of a tower
        for kind, base, count in (("kept", 0, kept[i]), ("dropped", kept[i], dropped[i])):
            if count:
                y, bottom = _y(share * (base + count), 0, top), _y(share * base, 0, top)
                gap = 0.6 if right - x > 3 else 0
                bars.append(
                    {
                        "kind": kind,
                        "x": round(x, 2),
                        "y": round(y, 2),
                        "width": round(max(right - x - gap, 0.5), 2),
                        "height": round(bottom - y, 2),
                    }
                )
        if is_tower and height[i] == highest:
            label_x = min(max((x + right) / 2, LEFT + 30), WIDTH - RIGHT - 30)
            mark = {"x": round(x, 2), "width": round(right - x, 2), "at": round(label_x, 2)}
            towers.append({**mark, "text": f"{highest:,}"})
    marks = [{"x": round(_x(cut["value"], low, high), 2), "text": cut["text"]} for cut in cuts]
    if is_whole:
        box["x_ticks"] = [tick for tick in box["x_ticks"] if "." not in tick["text"]]
    return {**box, "bars": bars, "towers": towers, "cuts": marks}


def lines(series: Sequence[Line], marks: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Returns a line per series over one x axis, from zero up, with vertical marks."""
    level = [Band(name, x, y, y, y) for name, x, y in series]
    return {**bands(level, marks, from_zero=True), "bands": []}


def bands(
    series: Sequence[Band], marks: Sequence[dict[str, Any]] = (), from_zero: bool = False
) -> dict[str, Any]:
    """Returns a line per series, each in a band, over one x axis, with vertical marks."""
    xs = [x for band in series for x in band.x] + [mark["value"] for mark in marks] or [0.0]
    ys = [y for band in series for y in (*band.low, *band.high)] or [0.0]
    low, high = min(xs), max(xs)
    if low == high:
        low, high = low - 0.5, high + 0.5
    box = frame(low, high, 0.0 if from_zero else min(ys), max(ys), from_zero)

    def dots(x_values: Sequence[float], y_values: Sequence[float]) -> list[dict[str, float]]:
        return [
            {"x": round(_x(x, low, high), 2), "y": round(_y(y, box["y_bottom"], box["y_top"]), 2)}
            for x, y in zip(x_values, y_values, strict=True)
        ]

    return {
        **box,
        "lines": [{"name": band.name, "dots": dots(band.x, band.mean)} for band in series],
        "bands": [
            {"dots": dots(band.x, band.low) + dots(band.x, band.high)[::-1]} for band in series
        ],
        "cuts": [{"x": round(_x(m["value"], low, high), 2), "text": m["text"]} for m in marks],
    }


def scatter(points: Sequence[Point]) -> dict[str, Any]:
    """Returns a named mark with its interval at each point, the x axis by powers of ten.

    Names are right of their marks, or left for lack of space; of two overlapping names the later is
    left out: the table has it.
    """
    xs = [log10(point.x) for point in points] or [0.0]
    ys = [y for point in points for y in (point.low, point.y, point.high)] or [0.0]
    room = max((max(xs) - min(xs)) / 8, 0.1)
    low, high = min(xs) - room, max(xs) + room
    box = frame(low, high, min(ys), max(ys), from_zero=False)
    scale = (box["y_bottom"], box["y_top"])
    marks: list[dict[str, Any]] = []
    taken: list[tuple[float, float, float]] = []  # left, right and height of the names
    positions = [(_x(log10(point.x), low, high), _y(point.y, *scale)) for point in points]
    spots = [(x - 4, x + 4, y) for x, y in positions]
    for point, (x, y) in zip(points, positions, strict=True):
        wide = 6.2 * len(point.name)
        side = "start" if x + 7 + wide <= WIDTH else "end"
        left = x + 7 if side == "start" else x - 7 - wide
        is_free = left > LEFT and all(
            left > end or left + wide < begin or abs(y - height) > 11
            for begin, end, height in (*taken, *spots)
            if (begin, height) != (x - 4, y)
        )
        taken += [(left, left + wide, y)] if is_free else []
        marks.append(
            {
                "name": point.name,
                "kind": point.kind,
                "x": round(x, 2),
                "y": round(y, 2),
                "low": round(_y(point.low, *scale), 2),
                "high": round(_y(point.high, *scale), 2),
                "label": point.name if is_free else "",
                "label_x": round(x + (7 if side == "start" else -7), 2),
                "anchor": side,
            }
        )
    values = [step * 10.0**n for n in range(floor(low), ceil(high) + 1) for step in (1, 2, 5)]
    shown = [value for value in values if low <= log10(value) <= high]
    if len(shown) > 7:
        shown = [value for value in shown if log10(value) % 1 < 1e-9]
    if len(shown) < 3:
        shown = ticks(10.0**low, 10.0**high, 4)
    x_ticks = [{"at": round(_x(log10(v), low, high), 2), "text": short(v)} for v in shown]
    return {**box, "x_ticks": x_ticks, "marks": marks}


def frame(
    low: float, high: float, least: float, most: float, from_zero: bool = True
) -> dict[str, Any]:
    """Returns the plot's box and the ticks of both axes; the y axis ends at a tick, and begins
    at one unless it begins at zero."""
    if most - least <= 1e-12 * max(abs(least), abs(most)):  # equal, but for rounding
        most = least + max(1.0, abs(least) / 2**20)
    y_ticks = ticks(least, most, 4)
    step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else most - least
    top = step * ceil(most / step - 1e-9)
    bottom = least if from_zero else step * floor(least / step + 1e-9)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "y_bottom": bottom,
        "y_top": top,
        "x_ticks": [{"at": round(_x(v, low, high), 2), "text": short(v)} for v in ticks(low, high)],
        "y_ticks": [
            {"at": round(_y(v, bottom, top), 2), "text": short(v)}
            for v in ticks(bottom, top, max(2, round((top - bottom) / step)))
        ],
    }


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Returns round numbers inside the range, roughly `about` of them."""
    raw = (high - low) / about
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * (1 - 1e-9))
    return [i * step for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Returns a number in few characters: 12.3k, 0.25, 4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def _x(value: float, low: float, high: float) -> float:
    return LEFT + PLOT_WIDTH * (value - low) / (high - low)


def _y(value: float, least: float, most: float) -> float:
    return TOP + PLOT_HEIGHT * (1 - (value - least) / (most - least))
