"""Draws a clustering: discs in a plane, and strips of the most and least pruned clusters."""

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

CARDS = 400  # discs with captions: those of the strips, then the largest
PICTURED = 120  # of these, discs with pictures
PICTURE_BYTES = 600_000  # limit for all these pictures together
ON_A_CARD = 3  # rows of a card
SIDE = 72  # pixels of a picture on a card
SHADES = 7  # steps of a scale
FILLED = 0.15  # share of the plane that all discs fill
DISC = 0.5, 9.0  # least and greatest diameter, in percent of the plane's width
ASPECT = 1.0, 1.7  # least and greatest ratio of the plane's width to height
MARGIN = 5.0  # percent of the width without centres of discs
FLAT = 1e-9  # smaller extents are rounding


def cluster_section(state: RunState, map_: ClusterMap) -> dict[str, Any]:
    """Returns the template's values: discs and scales, strips, and shares by size."""
    strips = _strips(state, map_)
    discs, height = _discs(map_)
    cards = _cards(state, map_)
    scales = list(_scales(map_))
    for disc, cluster in zip(discs, map_.drawn, strict=True):
        disc["shades"] = [scale["of"](cluster) for scale in scales]
        disc["card"] = cards.get(cluster.number)
    return {
        **vars(map_),
        "discs": discs,
        "height": height,
        "cards": len(cards),
        "pictured": sum(any(row["picture"] for row in card) for card in cards.values()),
        "scales": scales,
        "strips": strips,
        "shares": [_shares(map_.sizes, over) for over in map_.over],
    }


def _discs(map_: ClusterMap) -> tuple[list[dict[str, Any]], float]:
    """Returns each disc's position in percent of the plane, and the plane's height by its width.

    Both axes have one scale; the height is in percent. A disc's area is proportional to its rows,
    within DISC.
    """
    if not map_.drawn:
        return [], 100.0
    place_M2 = np.array([(cluster.x, -cluster.y) for cluster in map_.drawn])  # up is up
    low_2, high_2 = place_M2.min(axis=0), place_M2.max(axis=0)
    across, up = high_2 - low_2
    aspect = min(max(across / up if up > FLAT else ASPECT[1], ASPECT[0]), ASPECT[1])
    height = 100 / aspect
    extent = max(across / (100 - 2 * MARGIN), up / (height - 2 * MARGIN))
    scale = 1 / extent if extent > FLAT else 0.0
    from_centre_M2 = (place_M2 - (low_2 + high_2) / 2) * scale
    rows = sum(cluster.rows for cluster in map_.drawn)
    discs = []
    for (x, y), cluster in zip(from_centre_M2.tolist(), map_.drawn, strict=True):
        diameter = 2 * sqrt(FILLED * 100 * height * cluster.rows / rows / pi)
        discs.append(
            {
                **vars(cluster),
                "left": f"{50 + x:.2f}",
                "top": f"{100 * (0.5 + y / height):.2f}",
                "size": f"{min(max(diameter, DISC[0]), DISC[1]):.2f}",
            }
        )
    return discs, height


def _scales(map_: ClusterMap) -> Iterable[dict[str, Any]]:
    """Yields the meanings of a disc's shade: the share that each select keeps, and the density."""
    for number, end in enumerate(map_.ends):

        def share(cluster: Cluster, number: int = number) -> float:
            return cluster.kept[number] / cluster.rows

        most = max((share(cluster) for cluster in map_.drawn), default=0.0) or 1.0
        yield {
            "name": f"share kept by {end}",
            "low": "0 %",
            "high": f"{100 * most:.3g} %",
            "of": _shade(share, 0.0, most),
        }
    spreads = [cluster.spread for cluster in map_.drawn if cluster.spread is not None]
    if spreads:
        low, high = (float(end) for end in np.quantile(spreads, [0.02, 0.98]))
        yield {
            "name": "density",
            "low": f"{short(low)}, dense",
            "high": f"{short(high)}, loose",
            "of": _shade(
                lambda cluster: low if cluster.spread is None else cluster.spread, low, high
            ),
        }


def _shade(value: Any, low: float, high: float) -> Any:
    def of(cluster: Cluster) -> int:
        part = (value(cluster) - low) / (high - low) if high > low else 0.0
        return min(SHADES - 1, max(0, int(SHADES * part)))

    return of


def _cards(state: RunState, map_: ClusterMap) -> dict[int, list[dict[str, Any]]]:
    """Returns by cluster some rows with captions, the first clusters also with pictures."""
    in_strips = [cluster for pruned in map_.pruned for cluster in (*pruned.most, *pruned.least)]
    order = {cluster.number: cluster for cluster in (*in_strips, *map_.drawn)}
    carded = list(order.values())[:CARDS]
    pictured = carded[:PICTURED]
    seen = samples_at(state, map_.stage, _places(pictured), SIDE)
    text = binding(state, map_.stage, TEXT.name)
    places = _places(carded[PICTURED:])
    rows = rows_at(state, {"text": text} if text else {}, places)
    texts = {place: row.get("text") for place, row in zip(places, rows, strict=True)}
    left = PICTURE_BYTES
    cards: dict[int, list[dict[str, Any]]] = {}
    for cluster in carded:
        cards[cluster.number] = []
        for row in cluster.few[:ON_A_CARD]:
            shown = seen.get(row.place, {"text": texts.get(row.place), "picture": None, "uid": ""})
            size = len(shown["picture"]["src"]) if shown["picture"] else 0
            picture = shown["picture"] if size <= left else None
            left -= size if picture else 0
            cards[cluster.number].append({**shown, "picture": picture})
    return cards


def _places(clusters: Iterable[Cluster]) -> list[Place]:
    return [row.place for cluster in clusters for row in cluster.few[:ON_A_CARD]]


def _strips(state: RunState, map_: ClusterMap) -> list[dict[str, Any]]:
    """Returns both ends of each pruning select as strips."""
    ends = list(map_.ends)
    extremes = [cluster for pruned in map_.pruned for cluster in (*pruned.most, *pruned.least)]
    seen = samples_at(state, map_.stage, (row.place for cluster in extremes for row in cluster.few))
    has_pictures = any(sample["picture"] for sample in seen.values())

    def strip(cluster: Cluster, end: int) -> dict[str, Any]:
        rows = [seen[row.place] for row in cluster.few]
        return {
            **vars(cluster),
            "kept": cluster.kept[end],
            "share": cluster.kept[end] / cluster.rows,
            "marks": ["kept" if row.kept[end] else "" for row in cluster.few],
            "samples": [
                {**row, "values": {}, "texts": {} if has_pictures else {"caption": row["text"]}}
                for row in rows
            ],
        }

    return [
        {
            "stage": pruned.stage,
            "sides": {
                side: [strip(cluster, ends.index(pruned.stage)) for cluster in clusters]
                for side, clusters in (("most", pruned.most), ("least", pruned.least))
            },
        }
        for pruned in map_.pruned
    ]


def _shares(sizes: Sequence[SizeGroup], over: OverSize) -> dict[str, Any]:
    """Returns the share kept of each group at each size, with its shade."""
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
