"""Where the marks of a chart stand: numbers in, coordinates out; the templates draw them."""

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Any

WIDTH, HEIGHT = 420, 190  # of the viewBox: no wider, so that text stays legible on a phone
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
Line = tuple[str, Sequence[float], Sequence[float]]  # name, x, y


def histogram(
    edges: Sequence[float],
    kept: Sequence[int],
    dropped: Sequence[int],
    cuts: Sequence[dict[str, Any]],
    is_whole: bool = False,
) -> dict[str, Any]:
    """Two stacked bars a bin, the kept rows below, and a line at each cut."""
    most = max([k + d for k, d in zip(kept, dropped, strict=True)], default=0) or 1
    low, high = edges[0], edges[-1]
    bars = []
    for i in range(len(kept)):
        x, right = _x(edges[i], low, high), _x(edges[i + 1], low, high)
        for kind, base, count in (("kept", 0, kept[i]), ("dropped", kept[i], dropped[i])):
            if count:
                y, bottom = _y(base + count, 0, most), _y(base, 0, most)
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
    marks = [{"x": round(_x(cut["value"], low, high), 2), "text": cut["text"]} for cut in cuts]
    box = frame(low, high, 0, most)
    if is_whole:
        box["x_ticks"] = [tick for tick in box["x_ticks"] if "." not in tick["text"]]
    return {**box, "bars": bars, "cuts": marks}


def lines(
    series: Sequence[Line], marks: Sequence[dict[str, Any]] = (), from_zero: bool = True
) -> dict[str, Any]:
    """A line a series over one x axis, with vertical marks."""
    xs = [x for _, values, _ in series for x in values] + [mark["value"] for mark in marks]
    ys = [y for _, _, values in series for y in values]
    if not xs or not ys:
        xs, ys = xs or [0.0], ys or [0.0]
    low, high = min(xs), max(xs)
    if low == high:
        low, high = low - 0.5, high + 0.5
    least, most = (0.0 if from_zero else min(ys)), max(ys)
    if least == most:
        most = least + 1
    drawn = [
        {
            "name": name,
            "dots": [
                {"x": round(_x(x, low, high), 2), "y": round(_y(y, least, most), 2)}
                for x, y in zip(x_values, y_values, strict=True)
            ],
        }
        for name, x_values, y_values in series
    ]
    at = [{"x": round(_x(mark["value"], low, high), 2), "text": mark["text"]} for mark in marks]
    return {**frame(low, high, least, most), "lines": drawn, "cuts": at}


def frame(low: float, high: float, least: float, most: float) -> dict[str, Any]:
    """The plot's box and the ticks of both axes."""
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "x_ticks": [{"at": round(_x(v, low, high), 2), "text": short(v)} for v in ticks(low, high)],
        "y_ticks": [
            {"at": round(_y(v, least, most), 2), "text": short(v)} for v in ticks(least, most, 4)
        ],
    }


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers inside the range, some `about` of them."""
    raw = (high - low) / about
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * (1 - 1e-9))
    return [i * step for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in few characters: 12.3k, 0.25, 4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def _x(value: float, low: float, high: float) -> float:
    return LEFT + PLOT_WIDTH * (value - low) / (high - low)


def _y(value: float, least: float, most: float) -> float:
    return TOP + PLOT_HEIGHT * (1 - (value - least) / (most - least))
