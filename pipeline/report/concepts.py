"""What balancing did to a pool's concepts: the curve of counts, the ends of it in pictures."""

import json
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metadata.outputs import Outputs
from metadata.schema import (
    BALANCE_RANK,
    CONCEPT_IDS,
    CONCEPT_LIST,
    DECIDING_CONCEPT,
    KEEP,
    LANGUAGE,
    UID,
)
from metadata.uid import coin_hash
from pipeline.ledger.stored import Place, artifacts, binding, rows_at, stored
from pipeline.report.charts import lines, short
from pipeline.report.samples import samples_at
from pipeline.state import RunState

# Shapes: N rows of a shard, E entries of the list.

ENDS = 6  # concepts shown from the heaviest and from the rarest
PICTURES = 4  # rows of each
POINTS = 200  # of a curve, by logarithm


def concepts(state: RunState) -> list[dict[str, Any]]:
    """Every finished balance: its sizes, the curve, the heaviest and rarest concepts, languages."""
    found = []
    for name, stage in state.stages.items():
        counts, sizes = artifacts(stage, "concepts"), artifacts(stage, "balance")
        if counts and sizes and stage.shards:
            found.append(_balanced(state, name, *counts.values(), *sizes.values()))
    return found


def _balanced(state: RunState, name: str, counts: str, sizes: str) -> dict[str, Any]:
    outputs = Outputs(state.stages[name].folder)
    table = pl.read_parquet(outputs.read(counts)).with_row_index("id")
    met = table.filter(pl.col("count") > 0).sort(["count", "id"], descending=[True, False])
    ends = {"heaviest": met.head(ENDS), "rarest": met.tail(ENDS).reverse()}
    shown = dict.fromkeys(row for end in ends.values() for row in end["id"].to_list())
    places, languages = _looked_up(state, name, list(shown))
    samples = _samples(state, name, places)
    summary = json.loads(outputs.read(sizes))
    return {
        "stage": name,
        **summary,
        "entries": len(table),
        "met": len(met),
        "above": len(met.filter(pl.col("count") > pl.col("t"))),
        "chart": curve(met["count"].to_numpy(), met["kept"].to_numpy(), summary["t"]),
        "ends": {
            end: [{**row, "samples": samples[row["id"]]} for row in rows.rows(named=True)]
            for end, rows in ends.items()
        },
        "languages": languages,
    }


def curve(count_E: NDArray[np.int64], kept_E: NDArray[np.int64], t: float | None) -> dict[str, Any]:
    """Counts by rank, before and after, both axes logarithmic; t as a level line."""
    series = [(name, *_ranked(found)) for name, found in (("before", count_E), ("after", kept_E))]
    far = max((x for _, found, _ in series for x in found), default=0.0)
    if t is not None and t >= 1:
        series.append(("t", [0.0, far], [float(np.log10(t))] * 2))
    high = max((y for _, _, found in series for y in found), default=0.0)
    chart = lines(series)
    left, bottom = chart["left"], chart["bottom"]
    across, up = chart["right"] - left, bottom - chart["top"]
    x_ticks = [{"at": round(left + across * x, 2), "text": text} for x, text in _decades(far)]
    y_ticks = [{"at": round(bottom - up * y, 2), "text": text} for y, text in _decades(high)]
    return {**chart, "x_ticks": x_ticks, "y_ticks": y_ticks}


def _ranked(count_E: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Logarithms of rank and count, from the heaviest down, thinned."""
    count = np.sort(count_E[count_E > 0])[::-1]
    if not len(count):
        return [], []
    rank = np.unique(np.geomspace(1, len(count), POINTS).astype(np.int64))
    return np.log10(rank).tolist(), np.log10(count[rank - 1]).tolist()


def _decades(high: float) -> list[tuple[float, str]]:
    """Powers of ten up to a logarithm, by their share of the axis."""
    return [(power / (high or 1), short(10.0**power)) for power in range(int(high + 1e-9) + 1)]


def _looked_up(
    state: RunState, name: str, wanted: list[int]
) -> tuple[dict[int, list[Place]], list[dict[str, Any]]]:
    """A few rows of each concept, by hash; and rows, matched and kept rows of each language."""
    planned = state.plan.stages[name]
    assert planned.root is not None
    language = binding(state, name, LANGUAGE.name)
    bound = {
        "ids": planned.bindings[0][CONCEPT_IDS.name],
        "list": planned.bindings[0][CONCEPT_LIST.name],
        "rank": (name, BALANCE_RANK.name),
        "kept": (name, KEEP.name),
        **({"language": language} if language else {}),
    }
    shards = stored(state, planned.root, bound)
    chosen: dict[int, list[tuple[int, Place]]] = {concept: [] for concept in wanted}
    tally: Counter[tuple[str | None, bool, bool]] = Counter()
    for index, shard in enumerate(sorted(state.stages[planned.root].shards)):
        table = shards.table(index)
        bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=name, purpose="concepts")
        ids = table["ids"].combine_chunks()
        row_M = pc.list_parent_indices(ids).to_numpy()
        concept_M = pc.list_flatten(ids).to_numpy()
        drew_N = table["rank"].is_valid().to_numpy()
        hit_M = np.isin(concept_M, wanted) & drew_N[row_M]
        for concept in np.unique(concept_M[hit_M]).tolist():
            rows = row_M[hit_M & (concept_M == concept)]
            few = rows[np.argsort(bits_N[rows], kind="stable")[:PICTURES]]
            here = [(int(bits_N[row]), (shard, int(row))) for row in few]
            chosen[concept] = sorted(chosen[concept] + here)[:PICTURES]
        if language:
            parts = (table["language"], table["list"].is_valid(), table["kept"])
            named = pa.table(dict(zip(("name", "matched", "kept"), parts, strict=True)))
            for row in (
                named.group_by(named.column_names).aggregate([([], "count_all")]).to_pylist()
            ):
                tally[row["name"], row["matched"], row["kept"]] += row["count_all"]
    places = {concept: [place for _, place in few] for concept, few in chosen.items()}
    return places, _by_language(tally)


def _by_language(tally: Counter[tuple[str | None, bool, bool]]) -> list[dict[str, Any]]:
    """Rows, matched and kept rows, the largest languages first."""
    rows: Counter[str | None] = Counter()
    matched: Counter[str | None] = Counter()
    kept: Counter[str | None] = Counter()
    for (name, is_matched, is_kept), count in tally.items():
        rows[name] += count
        matched[name] += count * is_matched
        kept[name] += count * is_kept
    order = sorted(rows, key=lambda name: (-rows[name], name or ""))
    return [
        {"name": name or "(none)", "rows": rows[name], "matched": matched[name], "kept": kept[name]}
        for name in order[:20]
    ]


def _samples(
    state: RunState, name: str, places: dict[int, list[Place]]
) -> dict[int, list[dict[str, Any]]]:
    """Picture, caption, rank and verdict of each chosen row."""
    every = sorted({place for few in places.values() for place in few})
    seen = samples_at(state, name, every)
    names = (BALANCE_RANK.name, DECIDING_CONCEPT.name, KEEP.name)
    bound = {column: (name, column) for column in names}
    said = dict(zip(every, rows_at(state, bound, every), strict=True))
    return {
        concept: [
            {
                **seen[place],
                "values": {
                    BALANCE_RANK.name: said[place][BALANCE_RANK.name],
                    "by": said[place][DECIDING_CONCEPT.name],
                    "verdict": "kept" if said[place][KEEP.name] else "dropped",
                },
            }
            for place in few
        ]
        for concept, few in places.items()
    }
