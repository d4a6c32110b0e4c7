"""What a filter network is worth that learnt from poor trusted pairs, by the truth of a drawn pool.

    python -m tests.benchmarks.bad_trusted RUN POOL

RUN is a finished run of the recipe `dfn` or `selections` on POOL: rows, captions and features are
read from its stage `features`. Trusted pairs are taken by uid from the good rows that a line names;
a network learns from them as `train.filter_network` has it, and scores the rows it has not seen.
AUC: how often a good row scores above one with another's caption; .5 is a coin toss.
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

import clipmill
from pipeline.pools.faults import HARMLESS_LINKS
from stages.models.filter_network import fitted
from stages.ops.vectors import as_matrix

PAIRS = 1_200  # as many as the smallest part has, so that a line differs in one thing
SEEDS = 2
GOOD = pl.col("text_issue").is_null()
ENGLISH = pl.col("lang") == "en"


def rows(run: str, pool: str) -> pl.DataFrame:
    """Rows with features, whose picture is right, and whose caption is right or another's."""
    truth = pl.read_parquet(Path(pool, "truth.parquet"))
    columns = ["text", "image_features", "text_features"]
    features = clipmill.open(run).table("features", columns).collect()
    uid = pl.col("uid")
    if features.schema["uid"] == pl.Binary:
        features = features.with_columns(uid.bin.encode("hex"))
    joined = features.join(truth, on="uid").drop_nulls(columns)
    link, issue = pl.col("link_issue"), pl.col("text_issue")
    fine = pl.col("image_issue").is_null() & (link.is_null() | link.is_in(list(HARMLESS_LINKS)))
    return joined.filter(fine, ~pl.col("eval_near"), issue.is_null() | (issue == "swapped")).sort(
        "uid"
    )


def scores(table: pl.DataFrame, taken_N: NDArray) -> NDArray[np.float32]:
    """(N,) cosine of picture and caption by a network that learnt from the rows taken."""
    image_NI, text_NT = (
        as_matrix(table[name].to_arrow()) for name in ("image_features", "text_features")
    )
    captions = table["text"].to_list()
    taken = [captions[row] for row in taken_N]
    network = fitted(image_NI[taken_N], text_NT[taken_N], taken, 256)
    with torch.inference_mode():
        image_ND = network.embed_images(torch.tensor(image_NI))
        return (image_ND * network.embed_texts(torch.tensor(text_NT), captions)).sum(1).numpy()


def auc(high: NDArray, low: NDArray) -> float:
    """How often one of `high` is above one of `low`; a tie is half."""
    below = np.searchsorted(np.sort(low), high, "left") + np.searchsorted(
        np.sort(low), high, "right"
    )
    return float(below.mean() / 2 / len(low))


def measured(table: pl.DataFrame, learnt: pl.Expr, parts: dict[str, pl.Expr], pairs: int) -> str:
    """A line: AUC of each part, mean of the seeds, of rows that were not learnt from."""
    at = np.flatnonzero(_mask(table, GOOD & learnt))
    found: dict[str, list[float]] = {name: [] for name in parts}
    seen: list[float] = []
    for seed in range(SEEDS):
        taken = np.random.default_rng(seed).permutation(at)[: min(pairs, len(at) * 2 // 3)]
        score_N = scores(table, taken)
        new = np.ones(len(table), bool)
        new[taken] = False
        for name, part in parts.items():
            here = new & _mask(table, part)
            good = _mask(table, GOOD)
            found[name].append(auc(score_N[here & good], score_N[here & ~good]))
        like = _mask(table, GOOD & learnt) & new
        seen.append(auc(score_N[taken], score_N[like]) if like.any() else np.nan)
    told = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in found.items())
    return f"{len(taken):,} | {told} | {np.mean(seen):.3f}"


def _mask(table: pl.DataFrame, part: pl.Expr) -> NDArray[np.bool_]:
    return (
        table.select((part & pl.col("uid").is_not_null()).fill_null(False)).to_series().to_numpy()
    )


def main(run: str, pool: str) -> None:
    torch.set_num_threads(1)  # as the stage has it
    table = rows(run, pool)
    any_row = pl.lit(True)
    print(
        "learnt from | pairs | AUC of swapped captions | a row learnt from above another good one"
    )
    for pairs in (PAIRS, 512, 200, 100, 50):
        print(f"any rows | {measured(table, any_row, {'all': any_row}, pairs)}")
    for source in table["source"].unique().sort():
        home = pl.col("source") == source
        print(
            f"{source} alone | {measured(table, home, {'its own': home, 'others': ~home}, PAIRS)}"
        )
    by_language = {"English": ENGLISH, "other languages": ~ENGLISH}
    print(f"every language | {measured(table, any_row, by_language, PAIRS)}")
    print(f"English alone | {measured(table, ENGLISH, by_language, PAIRS)}")
    score_N = scores(table, np.arange(len(table)))
    good = _mask(table, GOOD)
    told = (
        f"{name} {auc(score_N[good & here], score_N[~good & here]):.3f}"
        for name, part in by_language.items()
        for here in [_mask(table, part)]
    )
    print(f"every row, swapped captions too | {len(table):,} | {', '.join(told)} | all learnt from")
    for name, group in (
        ("people", pl.col("group").str.contains("person|family|hand|body")),
        ("animals and plants", pl.col("group").str.contains("animal|plant")),
        ("flags", pl.col("group").str.contains("flag")),
    ):
        print(
            f"{name} alone | {measured(table, group, {'its own': group, 'others': ~group}, PAIRS)}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
