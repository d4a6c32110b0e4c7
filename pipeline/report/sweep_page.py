"""`clipmill sweep --html`: the sweep as a page with plots, and pictures of what is won and lost."""

from typing import Any

from metadata.schema import IMAGE, IMAGE_BYTES
from pipeline.ledger.stored import binding, rows_at
from pipeline.ledger.sweep import every_sample
from pipeline.report.charts import Line, lines
from pipeline.report.page import render
from pipeline.report.pictures import picture
from pipeline.state import RunState

LINES = 3  # groups in a plot


def sweep_page(state: RunState, found: dict[str, Any]) -> str:
    """The page of what `sweep` found, as HTML."""
    points = found["points"]
    value = [point["value"] for point in points]
    counts = {name: [point[name] for point in points] for name in ("kept", "common", "lost", "won")}
    today = [{"value": found["today_value"], "text": f"today: {found['today']}"}]
    if found["today_value"] is None or not value[0] <= found["today_value"] <= value[-1]:
        today = []
    varied = [
        by
        for by in found["groups"]
        if len({name for point in points for name in point["groups"][by]}) > 1
    ]
    return render(
        "sweep.html",
        title=f"{found['vary']} of {found['stage']}",
        found={**found, "points": _with_pictures(state, found)},
        varied=varied,
        kept=lines([("kept", value, counts["kept"])], today),
        overlap=lines([(n, value, counts[n]) for n in ("common", "lost", "won")], today),
        shares=[{"by": by, "chart": lines(_shares(by, found), today)} for by in varied],
    )


def _shares(by: str, found: dict[str, Any]) -> list[Line]:
    """Percent of the kept rows that are of each of the groups largest today."""
    value = [point["value"] for point in found["points"]]
    return [
        (
            name,
            value,
            [100 * p["groups"][by].get(name, 0) / max(1, p["kept"]) for p in found["points"]],
        )
        for name in list(found["groups"][by])[:LINES]
    ]


def _with_pictures(state: RunState, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The points, each sample with its picture and the value that is varied."""
    size = binding(state, found["stage"], IMAGE_BYTES.name)
    bound = {"image": (size[0], IMAGE.name)} if size else {}
    places = sorted({(s["shard"], s["position"]) for s in every_sample(found["points"])})
    rows = rows_at(state, bound, places)
    seen = {at: picture(row.get("image")) for at, row in zip(places, rows, strict=True)}
    return [
        {
            **point,
            "samples": {
                kind: [
                    {
                        **sample,
                        "picture": seen[sample["shard"], sample["position"]],
                        "values": {found["column"]: sample["value"]},
                    }
                    for sample in samples
                ]
                for kind, samples in point["samples"].items()
            },
        }
        for point in found["points"]
    ]
