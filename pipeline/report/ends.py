"""Draws one final select stage: its bars, scores, thresholds, groups and samples."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, zip_longest
from typing import Any

from clipmill.pipeline.ledger.rows.stored import Place
from clipmill.pipeline.ledger.selection.causes import KEPT
from clipmill.pipeline.ledger.selection.funnel import End
from clipmill.pipeline.ledger.selection.scores import Score
from clipmill.pipeline.ledger.selection.survey import CutRows, RowValues, Survey, survey
from clipmill.pipeline.report.charts import histogram
from clipmill.pipeline.report.pictures import LARGE
from clipmill.pipeline.report.relations import relation_section
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.state import RunState

BARELY = 10  # kept rows that are shown first: those nearest to a threshold
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
