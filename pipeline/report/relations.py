"""Draws rules that rows break together, and related numbers, as marks of a table."""

from collections.abc import Sequence
from typing import Any

from clipmill.pipeline.ledger.selection.relations import (
    Broken,
    GroupSpread,
    Quantiles,
    Relations,
    Spread,
)

MOST_SETS = 12  # sets of rules that rows break together
MOST_PAIRS = 12  # pairs of numbers, most correlated first
LEAST_ROWS = 20  # least rows of a group: quantiles of fewer say little
Scale = tuple[float, float]  # values at the ends of a strip


def relation_section(related: Relations) -> dict[str, Any] | None:
    """Returns the template's values; None without overlapping rules or numbers.

    A number that is nearly constant has no strip; `alike` names it.
    """
    scales = {place: _scale(spread) for place, spread in enumerate(related.spreads) if spread.pool}
    alike = [related.spreads[place].name for place, (low, high) in scales.items() if low == high]
    scales = {place: scale for place, scale in scales.items() if scale[0] < scale[1]}
    spreads = [(place, related.spreads[place]) for place in scales]
    overlap = _overlap(related)
    if not overlap and not spreads:
        return None
    return {
        "overlap": overlap,
        "pairs": [
            {**vars(pair), **_from_middle(pair.r)}
            for pair in related.pairs[:MOST_PAIRS]
            if pair.r is not None
        ],
        "spreads": [
            {
                "name": spread.name,
                "stage": spread.stage,
                "pool": _strip(spread.pool, scales[place]),
                "kept": _strip(spread.kept, scales[place]),
            }
            for place, spread in spreads
        ],
        "alike": alike,
        "by": {
            by: drawn
            for by, groups in related.by.items()
            if len(drawn := _groups(groups, scales)) > 1
        },
        "rows": related.rows,
        "sampled": related.sampled,
    }


def _overlap(related: Relations) -> dict[str, Any] | None:
    """Returns the broken rules, numbered, and the sets of them; None for fewer than two."""
    numbers = {place: n for n, place in enumerate(_broken(related), start=1)}
    if len(numbers) < 2:
        return None
    free = sum(broken.rows for broken in related.broken if not broken.rules)
    sets = [broken for broken in related.broken if broken.rules]
    return {
        "rules": [{**vars(related.rules[place]), "number": n} for place, n in numbers.items()],
        "unbroken": len(related.rules) - len(numbers),
        "sets": [_set(broken, list(numbers), sets[0].rows) for broken in sets[:MOST_SETS]],
        "more": {"sets": len(sets[MOST_SETS:]), "rows": sum(b.rows for b in sets[MOST_SETS:])},
        "several": sum(broken.rows for broken in sets if len(broken.rules) > 1),
        "any": sum(broken.rows for broken in sets),
        "free": free,
        "kept": related.free_kept,
        "else": free - related.free_kept,
    }


def _broken(related: Relations) -> list[int]:
    return [place for place, rule in enumerate(related.rules) if rule.rows]


def _set(broken: Broken, places: Sequence[int], most: int) -> dict[str, Any]:
    """Returns a line: which of the rules it breaks, and its rows against the largest set's."""
    return {
        "breaks": [place in broken.rules for place in places],
        "rows": broken.rows,
        "share": broken.rows / most,
    }


def _groups(groups: Sequence[GroupSpread], scales: dict[int, Scale]) -> list[dict[str, Any]]:
    return [
        {
            "name": group.name or "(none)",
            "rows": group.rows,
            "strips": [_strip(group.numbers[place], scale) for place, scale in scales.items()],
        }
        for group in groups
        if group.rows >= LEAST_ROWS
    ]


def _scale(spread: Spread) -> Scale:
    """Returns the range of the outer quantiles, of all rows and of the kept."""
    outer = [found[end] for found in (spread.pool, spread.kept) if found for end in (0, -1)]
    return min(outer), max(outer)


def _strip(quantiles: Quantiles | None, scale: Scale) -> dict[str, Any] | None:
    """Returns the values with positions in percent of the strip; clipped at its ends."""
    if quantiles is None:
        return None
    low, high = scale
    ends = [min(max((value - low) / (high - low), 0.0), 1.0) for value in quantiles]
    least, first, middle, third, most = (round(100 * end, 1) for end in ends)
    return {
        "median": quantiles[2],
        "first": quantiles[1],
        "third": quantiles[3],
        "tail": (least, round(most - least, 1)),
        "half": (first, round(max(third - first, 1.0), 1)),
        "middle": middle,
    }


def _from_middle(r: float | None) -> dict[str, Any]:
    """Returns a bar from the middle of a strip, to the left if r is below 0."""
    width = round(50 * abs(r or 0.0), 1)
    return {"left": 50.0 if (r or 0) >= 0 else 50.0 - width, "width": width}
