"""Draws one final select stage: its bars, scores, thresholds, groups and samples.

Rules that rows break together, and related numbers, are marks of a table.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, zip_longest
from typing import Any

from clipmill.pipeline.ledger.rows.stored import Place
from clipmill.pipeline.ledger.selection.causes import KEPT
from clipmill.pipeline.ledger.selection.funnel import End
from clipmill.pipeline.ledger.selection.relations import (
    GroupSpread,
    Quantiles,
    Relations,
    Spread,
)
from clipmill.pipeline.ledger.selection.scores import Score
from clipmill.pipeline.ledger.selection.survey import CutRows, RowValues, Survey, survey
from clipmill.pipeline.report.charts import histogram
from clipmill.pipeline.report.pictures import LARGE
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.state import RunState

BARELY = 10  # kept rows that are shown first: those nearest to a threshold
MOST_SETS = 12  # sets of rules that rows break together
MOST_PAIRS = 12  # pairs of numbers, most correlated first
LEAST_ROWS = 20  # least rows of a group: quantiles of fewer say little
Scale = tuple[float, float]  # values at the ends of a strip
Section = dict[str, Any]  # id, title, template and values of a part of the page
Samples = dict[Place, dict[str, Any]]


def section(name: str, title: str, number: int = 0, **values: Any) -> Section:
    """Returns a part of the page; `number` distinguishes parts of one kind."""
    id_ = f"{name}-{number + 1}" if number else name
    return {"id": id_, "title": title, "template": f"{name}.html", **values}


def drawn_end(end: End, number: int) -> dict[str, Any]:
    """Returns the waterfall, each bar with the id of its samples; `most` has large causes first."""
    left, falls = end.rows, []
    for index, cause in enumerate(end.causes):
        left -= cause.rows
        falls.append({**vars(cause), "left": left, "id": f"{number + 1}-{index + 1}"})
    return {
        "stage": end.stage,
        "rows": end.rows,
        "kept": end.kept,
        "share": end.kept / end.rows if end.rows else 0.0,
        "id": f"{number + 1}-kept",
        "falls": falls,
        "most": sorted(falls, key=lambda fall: -fall["rows"]),
    }


def sections_of(
    state: RunState, end: dict[str, Any], number: int, several: str
) -> Iterator[Section]:
    """Yields the parts for this end; `several` names it in titles if there are more ends."""
    surveyed = survey(state, end["stage"])
    barely = barely_kept(surveyed.cuts)
    places = [row.place for rows in surveyed.samples.values() for row in rows]
    places += [place for cut in surveyed.cuts for place, _ in (*cut.kept, *cut.dropped)]
    seen = samples_at(state, end["stage"], places, LARGE)
    part = partial(section, number=number, end=end)
    if barely:
        samples = [{**seen[place], "values": values} for place, values in barely.items()]
        yield part("barely", f"Kept, nearest to a threshold{several}", samples=samples)
    if surveyed.scores:
        title = f"Scores and thresholds{several}"
        scores = [_score(score, surveyed.cuts) for score in surveyed.scores]
        yield part("scores", title, scores=scores)
    if cuts := [_cut(cut, seen) for cut in surveyed.cuts if cut.dropped]:
        yield part("thresholds", f"At the thresholds{several}", cuts=cuts)
    if related := relation_section(surveyed.relations):
        yield part("relations", f"Rules and numbers together{several}", found=related)
    if surveyed.groups:
        yield part("groups", f"Who is kept{several}", found=surveyed)
    causes = [_cause(KEPT, end["kept"], end["id"], surveyed, seen)]
    causes += [
        _cause((fall["stage"], fall["reason"]), fall["rows"], fall["id"], surveyed, seen)
        for fall in end["falls"]
    ]
    selects = {name for name, planned in state.plan.stages.items() if planned.is_select}
    failed = [
        cause
        for cause in causes
        if cause["stage"] and cause["stage"] not in selects and not cause["has_pictures"]
    ]
    yield part(
        "samples",
        f"Samples{several}",
        causes=[cause for cause in causes if cause not in failed],
        failed=failed,
    )


def barely_kept(cuts: Sequence[CutRows]) -> dict[Place, dict[str, Any]]:
    """Returns kept rows that stand nearest to a threshold, with the rule and their value.

    Each rule in turn gives its nearest row that is not chosen yet, the last rule first: a recipe
    ranks by its best measure last. A row with nothing of what a rule forbids is not near it.
    """
    nearest = [
        [(place, {"rule": cut.cut.text, "value": value}) for place, value in cut.nearest_kept]
        for cut in reversed(cuts)
        if cut.cut.sign != "="
    ]
    found: dict[Place, dict[str, Any]] = {}
    for row in filter(None, chain.from_iterable(zip_longest(*nearest))):
        if len(found) < BARELY:
            found.setdefault(*row)
    return found


def _score(score: Score, cuts: Sequence[CutRows]) -> dict[str, Any]:
    bins = [kept + dropped for kept, dropped in zip(score.kept, score.dropped, strict=True)]
    first = next((i for i, rows in enumerate(bins) if rows), 0)
    return {
        **vars(score),
        "kept": sum(score.kept),
        "dropped": sum(score.dropped),
        "only": sum(map(bool, bins)) < 2 and score.edges[first : first + 2],
        "rows": {(c.cut.stage, c.cut.text): c for c in cuts if c.column == score.name},
        "chart": histogram(
            score.edges,
            score.kept,
            score.dropped,
            [vars(cut) for cut in score.cuts],
            score.is_whole,
        ),
    }


def _cut(rows_at_cut: CutRows, seen: Samples) -> dict[str, Any]:
    """Returns both sides of a threshold, lower values first."""
    sides = [
        {
            "is_kept": is_kept,
            "samples": [
                {**seen[place], "values": {rows_at_cut.column: value}} for place, value in rows
            ],
        }
        for is_kept, rows in ((False, rows_at_cut.dropped), (True, rows_at_cut.kept))
    ]
    return {**vars(rows_at_cut), "sides": sides[::-1] if rows_at_cut.is_upper else sides}


def _cause(
    cause: tuple[str, str], rows: int, id_: str, surveyed: Survey, seen: Samples
) -> dict[str, Any]:
    rows_with_values: Sequence[RowValues] = surveyed.samples.get(cause, ())
    samples = [{**seen[place], "values": values} for place, values in rows_with_values]
    return {
        "stage": cause[0],
        "reason": cause[1],
        "rows": rows,
        "id": id_,
        "samples": samples,
        "has_pictures": any(sample["picture"] for sample in samples),
    }


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
        "pairs": [  # each with a bar from the middle of a strip, to the left if r is below 0
            {**vars(pair), "left": min(50.0, 50.0 + bar), "width": abs(bar)}
            for pair in related.pairs[:MOST_PAIRS]
            if pair.r is not None
            for bar in [round(50 * pair.r, 1)]
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
    """Returns the broken rules, numbered, and the sets of them; None for fewer than two.

    The share of a set is against the largest.
    """
    places = (place for place, rule in enumerate(related.rules) if rule.rows)
    numbers = {place: n for n, place in enumerate(places, start=1)}
    if len(numbers) < 2:
        return None
    free = sum(broken.rows for broken in related.broken if not broken.rules)
    sets = [broken for broken in related.broken if broken.rules]
    return {
        "rules": [{**vars(related.rules[place]), "number": n} for place, n in numbers.items()],
        "unbroken": len(related.rules) - len(numbers),
        "sets": [
            {
                "breaks": [place in broken.rules for place in numbers],
                "rows": broken.rows,
                "share": broken.rows / sets[0].rows,
            }
            for broken in sets[:MOST_SETS]
        ],
        "more": {"sets": len(sets[MOST_SETS:]), "rows": sum(b.rows for b in sets[MOST_SETS:])},
        "several": sum(broken.rows for broken in sets if len(broken.rules) > 1),
        "any": sum(broken.rows for broken in sets),
        "free": free,
        "kept": related.free_kept,
        "else": free - related.free_kept,
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
