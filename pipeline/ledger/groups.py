"""Keep-rates by group, with a warning where a group loses far more than the pool does."""

from collections import Counter
from math import sqrt
from typing import Any

LARGEST = 12  # groups of each kind that are shown, beside those warned of
Z = 1.96  # of a 95 % interval


def keep_rates(tally: Counter[tuple[str | None, bool]]) -> dict[str, Any]:
    """Rows, kept share and warning of each group, the largest first; the small ones together.

    Warned of is a group that loses more than twice the pool's share, or, where the pool loses so
    much that none can, keeps less than half of it; its 95 % interval (Wilson) must be clear of
    the bound, so that a handful of rows warns of nothing.
    """
    names = {name for name, _ in tally}
    rows = {name: tally[name, True] + tally[name, False] for name in names}
    total = sum(rows.values())
    average = sum(tally[name, True] for name in names) / total if total else 0.0
    ranked = sorted(names, key=lambda name: (-rows[name], name or ""))
    groups = [_group(name, tally[name, True], rows[name], average) for name in ranked]
    warned = [group for group in groups[LARGEST:] if group["warning"]][:LARGEST]
    shown = groups[:LARGEST] + warned
    rest = [group for group in groups[LARGEST:] if group not in warned]
    if rest:
        kept, count = sum(g["kept"] for g in rest), sum(g["rows"] for g in rest)
        shown.append(
            {**_group(None, kept, count, average), "name": f"{len(rest):,} others", "warning": ""}
        )
    return {
        "average": average,
        "groups": shown,
        "warnings": sum(bool(group["warning"]) for group in groups),
    }


def _group(name: str | None, kept: int, rows: int, average: float) -> dict[str, Any]:
    low, high = wilson(kept, rows)
    share = kept / rows if rows else 0.0
    warning = ""
    if 1 - high > 2 * (1 - average):
        warning = f"loses {(1 - share) / (1 - average):.1f} times the average"
    elif high < average / 2:
        warning = f"keeps {share / average:.2f} times the average" if kept else "keeps none"
    return {
        "name": name or "(none)",
        "rows": rows,
        "kept": kept,
        "share": share,
        "low": low,
        "high": high,
        "warning": warning,
    }


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if not trials:
        return 0.0, 1.0
    share, square = hits / trials, Z * Z / trials
    centre = share + square / 2
    half = Z * sqrt(share * (1 - share) / trials + square / (4 * trials))
    return max(0.0, (centre - half) / (1 + square)), min(1.0, (centre + half) / (1 + square))
