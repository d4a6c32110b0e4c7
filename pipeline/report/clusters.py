"""A clustering on the page: discs in a plane, and strips of the clusters most and least pruned."""

from collections.abc import Iterable, Sequence
from math import pi, sqrt
from typing import Any

import numpy as np

from clipmill.metadata.schema import TEXT
from clipmill.pipeline.ledger.findings.cluster_counts import OverSize
from clipmill.pipeline.ledger.findings.clusters import Cluster, ClusterMap, SizeGroup
from clipmill.pipeline.ledger.rows.stored import Place, binding, rows_at
from clipmill.pipeline.report.charts import short
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.state import RunState

CARDS = 400  # discs that show captions, the largest and those of the strips
PICTURED = 120  # of them, those that show pictures
PICTURE_BYTES = 600_000  # of all these pictures together
ON_A_CARD = 3  # rows
SIDE = 72  # pixels of a picture on a card
SHADES = 7  # of a scale
FILLED = 0.15  # of the plane, by all discs together
DISC = 0.5, 9.0  # the least and the greatest diameter, in percent of the plane's width
ASPECT = 1.0, 1.7  # of the plane, width to height
MARGIN = 5.0  # percent of the width that no centre of a disc lies in
FLAT = 1e-9  # an extent that is rounding and nothing else


def cluster_section(state: RunState, found: ClusterMap) -> dict[str, Any]:
    """What the template draws: the answer, its discs and scales, its strips, its shares by size."""
    strips = _strips(state, found)
    discs, height = _discs(found)
    cards = _cards(state, found)
    scales = list(_scales(found))
    for disc, cluster in zip(discs, found.drawn, strict=True):
        disc["shades"] = [scale["of"](cluster) for scale in scales]
        disc["card"] = cards.get(cluster.number)
    return {
        **vars(found),
        "discs": discs,
        "height": height,
        "cards": len(cards),
        "pictured": sum(any(one["picture"] for one in card) for card in cards.values()),
        "scales": scales,
        "strips": strips,
        "shares": [_shares(found.sizes, over) for over in found.over],
    }


def _discs(found: ClusterMap) -> tuple[list[dict[str, Any]], float]:
    """Where each disc stands, in percent of a plane, and how high that is by its width in percent.

    Both axes have one scale. The area of a disc is as its rows, but for the smallest and the
    largest.
    """
    if not found.drawn:
        return [], 100.0
    place_M2 = np.array([(of.x, -of.y) for of in found.drawn])  # up is up
    low_2, high_2 = place_M2.min(axis=0), place_M2.max(axis=0)
    across, up = high_2 - low_2
    aspect = min(max(across / up if up > FLAT else ASPECT[1], ASPECT[0]), ASPECT[1])
    height = 100 / aspect
    room = 100 - 2 * MARGIN, height - 2 * MARGIN
    extents = [extent / space for extent, space in zip((across, up), room, strict=True)]
    scale = 1 / max(extents) if max(extents) > FLAT else 0.0
    from_centre_M2 = (place_M2 - (low_2 + high_2) / 2) * scale
    rows = sum(of.rows for of in found.drawn)
    discs = []
    for (x, y), of in zip(from_centre_M2.tolist(), found.drawn, strict=True):
        wanted = 2 * sqrt(FILLED * 100 * height * of.rows / rows / pi)
        discs.append(
            {
                **vars(of),
                "left": f"{50 + x:.2f}",
                "top": f"{100 * (0.5 + y / height):.2f}",
                "size": f"{min(max(wanted, DISC[0]), DISC[1]):.2f}",
            }
        )
    return discs, height


def _scales(found: ClusterMap) -> Iterable[dict[str, Any]]:
    """What a disc's shade can stand for: the share that each select keeps, and the density."""
    for number, end in enumerate(found.ends):

        def share(of: Cluster, number: int = number) -> float:
            return of.kept[number] / of.rows

        most = max((share(of) for of in found.drawn), default=0.0) or 1.0
        yield {
            "name": f"share kept by {end}",
            "low": "0 %",
            "high": f"{100 * most:.3g} %",
            "of": _shade(share, 0.0, most),
        }
    spreads = [of.spread for of in found.drawn if of.spread is not None]
    if spreads:
        low, high = (float(end) for end in np.quantile(spreads, [0.02, 0.98]))
        yield {
            "name": "density",
            "low": f"{short(low)}, dense",
            "high": f"{short(high)}, loose",
            "of": _shade(lambda of: low if of.spread is None else of.spread, low, high),
        }


def _shade(value: Any, low: float, high: float) -> Any:
    def of(cluster: Cluster) -> int:
        part = (value(cluster) - low) / (high - low) if high > low else 0.0
        return min(SHADES - 1, max(0, int(SHADES * part)))

    return of


def _cards(state: RunState, found: ClusterMap) -> dict[int, list[dict[str, Any]]]:
    """By cluster, a few of its rows with captions, the first of them with pictures too."""
    in_strips = [of for some in found.pruned for of in (*some.most, *some.least)]
    order = {of.number: of for of in (*in_strips, *found.drawn)}
    carded = list(order.values())[:CARDS]
    pictured = carded[:PICTURED]
    seen = samples_at(state, found.stage, _places(pictured), SIDE)
    text = binding(state, found.stage, TEXT.name)
    places = _places(carded[PICTURED:])
    rows = rows_at(state, {"text": text} if text else {}, places)
    texts = {place: row.get("text") for place, row in zip(places, rows, strict=True)}
    left = PICTURE_BYTES
    cards: dict[int, list[dict[str, Any]]] = {}
    for of in carded:
        cards[of.number] = []
        for row in of.few[:ON_A_CARD]:
            shown = seen.get(row.place, {"text": texts.get(row.place), "picture": None, "uid": ""})
            size = len(shown["picture"]["src"]) if shown["picture"] else 0
            picture = shown["picture"] if size <= left else None
            left -= size if picture else 0
            cards[of.number].append({**shown, "picture": picture})
    return cards


def _places(clusters: Iterable[Cluster]) -> list[Place]:
    return [row.place for of in clusters for row in of.few[:ON_A_CARD]]


def _strips(state: RunState, found: ClusterMap) -> list[dict[str, Any]]:
    """Of each select that decides by the clusters, both ends as strips."""
    ends = list(found.ends)
    every = [of for some in found.pruned for of in (*some.most, *some.least)]
    seen = samples_at(state, found.stage, (row.place for of in every for row in of.few))
    has_pictures = any(sample["picture"] for sample in seen.values())

    def strip(of: Cluster, end: int) -> dict[str, Any]:
        rows = [seen[row.place] for row in of.few]
        return {
            **vars(of),
            "kept": of.kept[end],
            "share": of.kept[end] / of.rows,
            "marks": ["kept" if row.kept[end] else "" for row in of.few],
            "samples": [
                {**row, "values": {}, "texts": {} if has_pictures else {"caption": row["text"]}}
                for row in rows
            ],
        }

    return [
        {
            "stage": some.stage,
            "sides": {
                side: [strip(of, ends.index(some.stage)) for of in clusters]
                for side, clusters in (("most", some.most), ("least", some.least))
            },
        }
        for some in found.pruned
    ]


def _shares(sizes: Sequence[SizeGroup], over: OverSize) -> dict[str, Any]:
    """The share kept of each group at each size, with its shade."""
    lines = []
    for number, group in enumerate(sizes):
        shares = [point.kept[number] / group.rows for point in over.points]
        cells = [
            {
                "share": share,
                "kept": point.kept[number],
                "shade": min(SHADES - 1, int(SHADES * share)),
                "is_today": point.is_today,
            }
            for share, point in zip(shares, over.points, strict=True)
        ]
        lines.append({**vars(group), "cells": cells})
    return {**vars(over), "lines": lines}
