"""How heads that met neither a row nor its copies score it, beside heads that learnt from it.

    python -m tests.benchmarks.cross_fitted [full | POOL [FOLDER]]    a drawn pool, fewer rows

The pool's English rows, faults and all; copies are those of the pool's truth. AUC is of fault-free
rows over swapped captions; `kept` is the share of fault-free rows above the cut that keeps 70 % of
all rows, by a drawing's rows and by a concept's. Features stay in FOLDER, as in `filter_abroad`.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clipmill.metadata.uid import from_hex
from clipmill.stages.models import filter_network as fn
from clipmill.stages.train.filter_network import TrainedFilterNetwork
from tests.benchmarks.filter_abroad import (
    KEPT_AT_HOME,
    ROWS,
    Pairs,
    aucs,
    learnt,
    rows_of,
    scores,
    with_features,
)
from tests.benchmarks.pools import drawn, there
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import scratch

# Shapes: N rows, K folds.

FOLDS = 2, 5, 10
BINS = {"1": (1, 1), "2": (2, 2), "3 or more": (3, 10**9)}
CONCEPTS = {"1": (1, 1), "2-5": (2, 5), "6-20": (6, 20), "more": (21, 10**9)}


def main(pool: str = "", cache: str = "") -> str:
    torch.set_num_threads(1)
    if pool:
        return compare(there(pool), Path(cache or Path(pool).parent / "filter_abroad"), FOLDS)
    with scratch() as folder:
        return compare(drawn(folder / "pool", ROWS), folder / "features", FOLDS[:1])


def compare(pool: Path, cache: Path, folds: tuple[int, ...]) -> str:
    """AUC of heads that learnt from all rows and of those that did not; prints a line of each."""
    cache.mkdir(parents=True, exist_ok=True)
    rows = with_features(rows_of(pool), cache / "rows.npz")
    truth = pl.read_parquet(pool / "truth.parquet").select("uid", "concept")
    facts = rows.rows.join(truth, on="uid", how="left", maintain_order="left").select(
        copies=pl.len().over("dup_cluster"), concept=pl.len().over("concept")
    )
    print("| heads | AUC |", *(f"kept, copies {it} |" for it in BINS), end=" ")
    print(*(f"concept's rows {it} |" for it in CONCEPTS), "CPU s |")
    print("|---|" + "---:|" * (len(BINS) + len(CONCEPTS) + 2))
    ways: dict[str, Callable[[], NDArray[np.floating]]] = {
        "learnt from all": lambda: scores(learnt(rows), rows)
    }
    for count in folds:
        ways[f"{count} folds"] = lambda count=count: left_out(rows, count)
        ways[f"{count} folds, copies apart"] = lambda count=count: left_out(rows, count, "uid")
    found = []
    for name, way in ways.items():
        begun = time.process_time()
        score_N = way()
        seconds = time.process_time() - begun
        found.append(aucs(rows, score_N)["swapped"])
        good = (rows.rows["fault"] == "").to_numpy()
        is_kept = score_N > np.quantile(score_N, 1 - KEPT_AT_HOME)
        kept = [
            is_kept[good & facts[column].is_between(*bounds).to_numpy()].mean()
            for column, bins in (("copies", BINS), ("concept", CONCEPTS))
            for bounds in bins.values()
        ]
        print(f"| {name} | {found[-1]:.3f} |", *(f"{it:.3f} |" for it in kept), end=" ")
        print(f"{seconds:.0f} |", flush=True)
    return f"AUC of swapped captions {found[0]:.2f} learnt from, {found[1]:.2f} left out"


def left_out(rows: Pairs, folds: int, drawing: str = "dup_cluster") -> NDArray[np.floating]:
    """Each row's score by heads that met no row of its drawing, on one scale over folds."""
    fold_N = fn.fold_of(from_hex(rows.rows[drawing].to_arrow()), folds, 0)
    weight_N = 1 / rows.rows.select(pl.len().over(drawing)).to_series().to_numpy()
    captions = pa.chunked_array([rows.rows["text"].fill_null("").to_arrow()])
    width = TrainedFilterNetwork().width
    network = fn.cross_fitted(rows.image_ND, rows.text_ND, captions, width, fold_N, weight_N)
    score_N = np.empty(len(fold_N))
    for fold, (head, line) in enumerate(zip(network.heads, network.line_K2, strict=True)):
        here = rows.where(fold_N == fold)
        with torch.inference_mode():
            image_BD = head.embed_images(torch.tensor(here.image_ND))
            text_BD = head.embed_texts(torch.tensor(here.text_ND), here.captions)
        slope, intercept = line.tolist()
        score_N[fold_N == fold] = slope * (image_BD * text_BD).sum(1).numpy() + intercept
    return score_N


if __name__ == "__main__":
    begin(main, full=("demo/pool",))
