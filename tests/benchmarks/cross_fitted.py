"""How heads that met neither a row nor its copies score it, beside heads that learnt from it.

    python -m tests.benchmarks.cross_fitted [full | POOL [FOLDER]]    a drawn pool, fewer rows

The pool's English rows, faults and all; copies are those of the pool's truth. AUC is of fault-free
rows over swapped captions, and over those swapped within a group; `kept` is the share of fault-free
rows above the cut that keeps 70 % of all, by a drawing's rows and by a concept's. Features stay
in FOLDER, as in `filter_abroad`.

`negclip` compares a row with partners, as `score.negclip` does by partitions, at TAU; `groups` is
`fit_rank` of `score.chance` among captions as common.

A second table cuts by `fit_rank` of `score.chance` at one value: the share of fault-free rows kept
of each vendor by heads that met no row of it, and by five folds of the pool; and the faulty among
the kept. A third draws the folds again: how far shares kept are apart, by copies and by concepts.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.stats import t as student_t

from clipmill.metadata.uid import from_hex
from clipmill.stages.models import filter_network as fn
from clipmill.stages.ops.vectors.matrices import from_matrix
from clipmill.stages.score import chance, negclip
from clipmill.stages.train.filter_network import TrainedFilterNetwork
from tests.benchmarks.filter_abroad import (
    KEPT_AT_HOME,
    ROWS,
    Pairs,
    aucs,
    families,
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
FIT = 0.9
TAU, PARTNERS = 0.03, 4096
GROUPS = 1, 4, 8
DRAWS = 8
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
        "concept", copies=pl.len().over("dup_cluster"), rows=pl.len().over("concept")
    )
    print("| heads | AUC | own group |", *(f"kept, copies {it} |" for it in BINS), end=" ")
    print(*(f"concept's rows {it} |" for it in CONCEPTS), "faulty of kept | CPU s |")
    print("|---|" + "---:|" * (len(BINS) + len(CONCEPTS) + 4))
    ways: dict[str, Callable[[], NDArray[np.floating]]] = {
        "learnt from all": lambda: scores(learnt(rows), rows)
    }
    for count in folds:
        ways[f"{count} folds"] = lambda count=count: left_out(rows, count)
        ways[f"{count} folds, copies apart"] = lambda count=count: left_out(rows, count, "uid")
    home = vectors(rows, FOLDS[1])
    ways[f"{FOLDS[1]} folds, negclip"] = lambda: beside_partners(*home[:2])
    for groups in GROUPS if len(folds) > 1 else ():
        ways[f"{groups} groups"] = lambda groups=groups: -fit_rank(rows, *home, groups=groups)
    found = []
    for name, way in ways.items():
        begun = time.process_time()
        score_N = way()
        seconds = time.process_time() - begun
        auc_of = aucs(rows, score_N)
        found.append(auc_of["swapped"])
        good = (rows.rows["fault"] == "").to_numpy()
        is_kept = score_N > np.quantile(score_N, 1 - KEPT_AT_HOME)
        print(
            f"| {name} | {found[-1]:.3f} | {auc_of['own group']:.3f} |",
            *(f"{it:.3f} |" for part in shares(good, is_kept, facts) for it in part),
            end=" ",
        )
        print(f"{(~good)[is_kept].mean():.3f} | {seconds:.0f} |", flush=True)
    print(f"\n| fit_rank < {FIT}: | fault-free kept, unmet | faulty of kept |", end=" ")
    print("folds: kept | faulty |\n|---|---:|---:|---:|---:|")
    vendors = families(rows) if len(folds) > 1 else families(rows)[:1]
    at_home = fit_rank(rows, *home)
    for family in vendors:
        of = rows.of(family)
        heads = learnt_heads(rows.where(~of))
        abroad = fit_rank(rows.where(of), *embedded(heads, rows.where(of)))
        parts = [told(rows.where(of), rank_N) for rank_N in (abroad, at_home[of])]
        print(f"| {family} | {' | '.join(parts)} |", flush=True)
    print(f"| all | | | {told(rows, at_home)} |")
    if len(folds) > 1:
        print(f"| in {GROUPS[-1]} groups | | | {told(rows, fit_rank(rows, *home, GROUPS[-1]))} |")
        draw_again(rows, facts)
    return f"AUC of swapped captions {found[0]:.2f} learnt from, {found[1]:.2f} left out"


def shares(good_N: NDArray, is_kept_N: NDArray, facts: pl.DataFrame) -> list[list[float]]:
    """Shares of the fault-free rows that are kept, by a drawing's rows and by a concept's."""
    return [
        [
            is_kept_N[good_N & facts[column].is_between(*it).to_numpy()].mean()
            for it in bins.values()
        ]
        for column, bins in (("copies", BINS), ("rows", CONCEPTS))
    ]


def draw_again(rows: Pairs, facts: pl.DataFrame) -> None:
    """Prints how far shares kept in GROUPS[-1] groups are apart, by other draws of the folds."""
    good_N = (rows.rows["fault"] == "").to_numpy()
    print(f"\n| {DRAWS} draws | apart by copies | by concepts |\n|---|---:|---:|")
    ranks = [
        fit_rank(rows, *vectors(rows, FOLDS[1], seed=seed), groups=GROUPS[-1])
        for seed in range(DRAWS)
    ]
    for name, cut in (("70 % of all", None), (f"fit_rank < {FIT}", FIT)):
        apart_D2 = [
            [
                np.ptp(part)
                for part in shares(good_N, rank < (cut or np.quantile(rank, KEPT_AT_HOME)), facts)
            ]
            for rank in ranks
        ]
        half_2 = student_t.ppf(0.975, DRAWS - 1) * np.std(apart_D2, 0, ddof=1) / DRAWS**0.5
        both = zip(np.mean(apart_D2, 0), half_2, strict=True)
        print(f"| {name} |", *(f"{mean:.3f} ± {half:.3f} |" for mean, half in both), flush=True)


def beside_partners(image_ND: NDArray, text_ND: NDArray) -> NDArray[np.floating]:
    """score.negclip of each row, with one partition."""
    part_N = np.arange(len(image_ND)) % max(1, round(len(image_ND) / PARTNERS))
    score_N = np.empty(len(image_ND))
    for part in np.unique(part_N):
        of = part_N == part
        score_N[of] = negclip.contrast(image_ND[of], text_ND[of], TAU)
    return score_N


def told(rows: Pairs, rank_N: NDArray[np.floating]) -> str:
    good, is_kept = (rows.rows["fault"] == "").to_numpy(), rank_N < FIT
    return f"{is_kept[good].mean():.3f} | {(~good)[is_kept].mean():.3f}"


def fit_rank(
    rows: Pairs, image_ND: NDArray, text_ND: NDArray, fold_N=None, groups: int = 1
) -> NDArray:
    """score.chance of each row."""
    uid = pa.chunked_array([from_hex(rows.rows["uid"].to_arrow())])
    columns = {"uid": uid, "image_embedding": from_matrix(image_ND)}
    columns |= {"text_embedding": from_matrix(text_ND), "shard": [0] * len(uid)}
    columns |= {"position": range(len(uid)), "text_features": from_matrix(rows.text_ND)}
    if fold_N is not None:
        columns["unmet_fold"] = pa.array(fold_N, pa.int32())
    read = partial(chance.usable, seed=0, stage="chance", grouped=groups > 1)
    table = pa.table(columns)
    shuffled = chance.chance_of(chance.least(chance.drawn_of(groups), read(table)), groups)
    table = chance.measured(table, read=read, chance=shuffled)
    rank_GB = shuffled.ranks(chance.counted(table, groups=groups)["rows"])
    return chance.above(table, chance=shuffled, rank_GB=rank_GB)["fit_rank"].to_numpy()


def learnt_heads(rows: Pairs) -> fn.FilterNetwork:
    return fn.fitted(rows.image_ND, rows.text_ND, rows.captions, TrainedFilterNetwork().width)


def embedded(head: fn.FilterNetwork, rows: Pairs) -> tuple[NDArray, NDArray]:
    with torch.inference_mode():
        image_BD = head.embed_images(torch.tensor(rows.image_ND))
        return image_BD.numpy(), head.embed_texts(torch.tensor(rows.text_ND), rows.captions).numpy()


def left_out(rows: Pairs, folds: int, drawing: str = "dup_cluster") -> NDArray[np.floating]:
    """Each row's score by heads that met no row of its drawing, on one scale over folds."""
    image_ND, text_ND, _ = vectors(rows, folds, drawing)
    return np.vecdot(image_ND, text_ND)


def vectors(
    rows: Pairs, folds: int, drawing: str = "dup_cluster", seed: int = 0
) -> tuple[NDArray, NDArray, NDArray[np.int64]]:
    """Each row's vectors by the heads of its fold, and the fold."""
    fold_N = fn.fold_of(from_hex(rows.rows[drawing].to_arrow()), folds, seed)
    weight_N = 1 / rows.rows.select(pl.len().over(drawing)).to_series().to_numpy()
    captions = pa.chunked_array([rows.rows["text"].fill_null("").to_arrow()])
    width = TrainedFilterNetwork().width
    network = fn.cross_fitted(rows.image_ND, rows.text_ND, captions, width, fold_N, weight_N)
    slope_K = network.line_K2[:, 0].sqrt().numpy()
    out = [np.empty((len(fold_N), width), np.float32) for _ in range(2)]
    for fold, head in enumerate(network.heads):
        of = fold_N == fold
        ends = fn.ends(network.line_K2.numpy())
        parts = zip(out, embedded(head, rows.where(of)), ends, strict=True)
        for out_ND, part_ND, end_K2 in parts:
            out_ND[of] = np.hstack(
                [part_ND * slope_K[fold], np.repeat(end_K2[[fold]], len(part_ND), axis=0)]
            )
    return out[0], out[1], fold_N


if __name__ == "__main__":
    begin(main, full=("demo/pool",))
