"""Draws a balance: the curve of counts, and pictures of its heaviest and rarest concepts."""

from itertools import chain
from math import log10
from typing import Any

from clipmill.metadata.schema import BALANCE_RANK
from clipmill.pipeline.ledger.findings.balances import Balance, ConceptRows, Curve
from clipmill.pipeline.report.charts import lines, short
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.state import RunState


def balance_section(state: RunState, balance: Balance) -> dict[str, Any]:
    """Returns the template's values: the answer, its curve, pictures of both ends."""
    ends = {"heaviest": balance.heaviest, "rarest": balance.rarest}
    concepts = chain.from_iterable(ends.values())
    places = (row.place for concept in concepts for row in concept.rows)
    seen = samples_at(state, balance.stage, places)

    def shown(concept: ConceptRows) -> dict[str, Any]:
        samples = [
            {
                **seen[row.place],
                "values": {
                    BALANCE_RANK.name: row.rank,
                    "by": row.concept,
                    "verdict": "kept" if row.keep else "dropped",
                },
            }
            for row in concept.rows
        ]
        return {**vars(concept), "samples": samples}

    return {
        **vars(balance),
        "chart": curve(balance.before, balance.after, balance.t),
        "ends": {end: list(map(shown, concepts)) for end, concepts in ends.items()},
    }


def curve(before: Curve, after: Curve, t: float | None) -> dict[str, Any]:
    """Returns counts by rank, before and after, both axes logarithmic; t as a horizontal line."""
    series = [
        (name, [log10(rank) for rank, _ in points], [log10(count) for _, count in points])
        for name, points in (("before", before), ("after", after))
    ]
    far = max((x for _, xs, _ in series for x in xs), default=0.0)
    if t is not None and t >= 1:
        series.append(("t", [0.0, far], [log10(t)] * 2))
    high = max((y for _, _, ys in series for y in ys), default=0.0)
    chart = lines(series)
    left, bottom = chart["left"], chart["bottom"]
    across, up = chart["right"] - left, bottom - chart["top"]
    x_ticks = [{"at": round(left + across * x, 2), "text": text} for x, text in _decades(far)]
    y_ticks = [{"at": round(bottom - up * y, 2), "text": text} for y, text in _decades(high)]
    return {**chart, "x_ticks": x_ticks, "y_ticks": y_ticks}


def _decades(high: float) -> list[tuple[float, str]]:
    """Returns powers of ten up to a logarithm, by their share of the axis."""
    return [(power / (high or 1), short(10.0**power)) for power in range(int(high + 1e-9) + 1)]
