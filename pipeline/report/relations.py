"""Rules that rows break together, and numbers that go together: counts as marks of a table."""

from collections.abc import Sequence
from typing import Any

from clipmill.pipeline.ledger.selection.relations import (
    Broken,
    Five,
    GroupSpread,
    Relations,
    Spread,
)

MOST_SETS = 12  # of rules that rows break together
MOST_PAIRS = 12  # of numbers, the most alike first
LEAST_ROWS = 20  # of a group: quantiles of fewer say little
Scale = tuple[float, float]  # what the ends of a strip stand for


def relation_section(found: Relations) -> dict[str, Any] | None:
    """What its template draws; None where a pool has neither rules that overlap nor numbers.

    A number that is the same nearly everywhere has no strip; `alike` names it.
    """
    scales = {place: _scale(spread) for place, spread in enumerate(found.spreads) if spread.pool}
    alike = [found.spreads[place].name for place, (low, high) in scales.items() if low == high]
    scales = {place: scale for place, scale in scales.items() if scale[0] < scale[1]}
    spreads = [(place, found.spreads[place]) for place in scales]
    overlap = _overlap(found)
    if not overlap and not spreads:
        return None
    return {
        "overlap": overlap,
        "pairs": [
            {**vars(pair), **_from_middle(pair.r)}
            for pair in found.pairs[:MOST_PAIRS]
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
            for by, groups in found.by.items()
            if len(drawn := _groups(groups, scales)) > 1
        },
        "rows": found.rows,
        "sampled": found.sampled,
    }


def _overlap(found: Relations) -> dict[str, Any] | None:
    """The rules that rows break, numbered, and the sets of them; None of fewer than two."""
    numbers = {place: n for n, place in enumerate(_broken(found), start=1)}
    if len(numbers) < 2:
        return None
    free = sum(of.rows for of in found.broken if not of.rules)
    sets = [of for of in found.broken if of.rules]
    return {
        "rules": [{**vars(found.rules[place]), "number": n} for place, n in numbers.items()],
        "unbroken": len(found.rules) - len(numbers),
        "sets": [_set(of, list(numbers), sets[0].rows) for of in sets[:MOST_SETS]],
        "more": {"sets": len(sets[MOST_SETS:]), "rows": sum(of.rows for of in sets[MOST_SETS:])},
        "several": sum(of.rows for of in sets if len(of.rules) > 1),
        "any": sum(of.rows for of in sets),
        "free": free,
        "kept": found.free_kept,
        "else": free - found.free_kept,
    }


def _broken(found: Relations) -> list[int]:
    return [place for place, rule in enumerate(found.rules) if rule.rows]


def _set(of: Broken, places: Sequence[int], most: int) -> dict[str, Any]:
    """A line: which of the rules it breaks, and its rows against those of the largest set."""
    return {
        "breaks": [place in of.rules for place in places],
        "rows": of.rows,
        "share": of.rows / most,
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
    """From the lowest to the highest of the outer quantiles, of all rows and of the kept."""
    outer = [five[at] for five in (spread.pool, spread.kept) if five for at in (0, -1)]
    return min(outer), max(outer)


def _strip(five: Five | None, scale: Scale) -> dict[str, Any] | None:
    """The values, and where they lie in percent of the strip; what is past an end lies on it."""
    if five is None:
        return None
    low, high = scale
    ends = [min(max((value - low) / (high - low), 0.0), 1.0) for value in five]
    least, first, middle, third, most = (round(100 * end, 1) for end in ends)
    return {
        "median": five[2],
        "first": five[1],
        "third": five[3],
        "tail": (least, round(most - least, 1)),
        "half": (first, round(max(third - first, 1.0), 1)),
        "middle": middle,
    }


def _from_middle(r: float | None) -> dict[str, Any]:
    """A bar from the middle of a strip, to the left where r is below 0."""
    width = round(50 * abs(r or 0.0), 1)
    return {"left": 50.0 if (r or 0) >= 0 else 50.0 - width, "width": width}
