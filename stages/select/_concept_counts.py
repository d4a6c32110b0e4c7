"""out/ of a balance: every concept's rows before and after, the size expected and that found."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.concepts.load import ConceptList
from clipmill.pipeline.dataset import State, Task
from clipmill.stages.select._draws import Draw, Pairs, drawing

# Shapes: N rows, M pairs of a row and one of its concepts, E entries of the list.

FIXED = 2.0**24  # sums of probabilities in fixed point: 2^38 rows fit into 64 bits
TABLE, SUMMARY = "concepts.parquet", "balance.json"


def kept_counts(draw: Draw, t: float, rows: pa.Table) -> State:
    """Kept rows of each concept; kept rows, their expected number and its variance."""
    some = drawing(rows)
    pairs = Pairs.of(some)
    keep_N = pairs.least(draw.of(some, pairs)) < t
    chance_N = pairs.keep_probability(draw.probability(t))
    kept_M = pairs.concept[np.repeat(keep_N, pairs.size)]
    return {
        "kept_E": np.bincount(kept_M, minlength=len(draw.weight)),
        "kept": np.array(keep_N.sum()),
        "expected": np.array(in_fixed_point(chance_N).sum()),
        "variance": np.array(in_fixed_point(chance_N * (1 - chance_N)).sum()),
    }


def in_fixed_point(value_N: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(value_N * FIXED).astype(np.int64)  # whose sum no order of rows changes


def put_tables(
    concepts: ConceptList, draw: Draw, sums: dict[str, Any], item: dict[str, Any], task: Task
) -> dict[str, Any]:
    """out/concepts.parquet: every entry's count before and after. out/balance.json: the sizes."""
    summary = {
        "t": item["t"] if item["t"] < np.inf else None,  # JSON has no infinity
        **{name: int(sums[name]) for name in ("rows", "matched", "kept")},
        "entries_dropped": concepts.dropped,
        "expected": float(sums["expected"] / FIXED),
        "sigma": float(np.sqrt(sums["variance"] / FIXED)),
    }
    table = concepts.table.drop_columns(["count"])
    for name, values in (("count", sums["count_E"]), ("kept", sums["kept_E"])):
        table = table.append_column(name, pa.array(values, pa.int64()))
    met_E = sums["count_E"] > 0
    t_E = np.full(len(met_E), np.nan)
    t_E[met_E] = item["t"] * sums["count_E"][met_E] / draw.weight[met_E]  # of its language
    table = table.append_column("t", pa.array(t_E, mask=~met_E))
    pq.write_table(table, task.worker.scratch / TABLE, compression="zstd")
    (task.worker.scratch / SUMMARY).write_text(json.dumps(summary))
    for name in (TABLE, SUMMARY):
        task.put_file(name, task.worker.scratch / name)
    return summary
