"""What a filter network is worth that learnt from poor trusted pairs, by the truth of a drawn pool.

    python -m tests.benchmarks.bad_trusted [RUN POOL]    a drawn pool, fewer lines; demo's for full

RUN is a finished run of the recipe `dfn` or `selections` on POOL: rows, captions and features are
read from its stage `features`. Trusted pairs are taken by uid from the good rows that a line names;
a network learns from them as `train.filter_network` has it, and scores the rows it has not seen.
AUC: how often a good row scores above one with another's caption; .5 is a coin toss.
"""

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

import clipmill
from clipmill.pipeline.pools.faults import HARMLESS_LINKS
from clipmill.stages.models.filter_network import fitted
from clipmill.stages.ops.vectors.matrices import as_matrix
from tests.benchmarks.filter_abroad import file_of, with_features
from tests.benchmarks.pools import auc, drawn, there
from tests.benchmarks.side_by_side import begin, rounds_of
from tests.benchmarks.toy import scratch

PAIRS = 1_200  # as many as the smallest part has, so that a line differs in one thing
SEEDS, ROWS = 2, 1_200
GOOD = pl.col("text_issue").is_null()
ENGLISH = pl.col("lang") == "en"


def rows(run: str, pool: Path) -> pl.DataFrame:
    """Usable rows of a run, with features."""
    columns = ["text", "image_features", "text_features"]
    features = clipmill.open(run).table("features", columns).collect()
    uid = pl.col("uid")
    if features.schema["uid"] == pl.Binary:
        features = features.with_columns(uid.bin.encode("hex"))
    return usable(features.drop_nulls(columns), pool)


def of_pool(pool: Path, cache: Path) -> pl.DataFrame:
    """The same, of the pool's files."""
    file = pl.col("url").map_elements(partial(file_of, pool), pl.String)
    raw = pl.read_parquet(pool / "metadata/*.parquet").with_columns(file=file)
    found = with_features(usable(raw, pool), cache)
    image, text = (pl.Series(vector_ND) for vector_ND in (found.image_ND, found.text_ND))
    return found.rows.with_columns(image_features=image, text_features=text)


def usable(rows: pl.DataFrame, pool: Path) -> pl.DataFrame:
    """Rows whose picture is right, and whose caption is right or another's, with their truth."""
    link, issue = pl.col("link_issue"), pl.col("text_issue")
    fine = pl.col("image_issue").is_null() & (link.is_null() | link.is_in(list(HARMLESS_LINKS)))
    joined = rows.join(pl.read_parquet(pool / "truth.parquet"), on="uid")
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


def measured(
    table: pl.DataFrame, learnt: pl.Expr, parts: dict[str, pl.Expr], pairs: int
) -> tuple[str, float]:
    """A line: AUC of each part, mean of the seeds, of rows not learnt from; the first one."""
    at = np.flatnonzero(_mask(table, GOOD & learnt))
    found: dict[str, list[float]] = {name: [] for name in parts}
    seen: list[float] = []
    for seed in range(rounds_of(SEEDS)):
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
    return f"{len(taken):,} | {told} | {np.mean(seen):.3f}", float(
        np.mean(next(iter(found.values())))
    )


def _mask(table: pl.DataFrame, part: pl.Expr) -> NDArray[np.bool_]:
    return (
        table.select((part & pl.col("uid").is_not_null()).fill_null(False)).to_series().to_numpy()
    )


def main(run: str = "", pool: str = "") -> str:
    torch.set_num_threads(1)  # as the stage has it
    if run:
        return told(rows(run, there(pool)), every=True)
    with scratch() as folder:
        return told(of_pool(drawn(folder / "pool", ROWS), folder / "features.npz"), every=False)


def told(table: pl.DataFrame, every: bool) -> str:
    """What many and few pairs are worth; prints a line of each kind of pairs, or of some."""
    any_row = pl.lit(True)
    by_language = {"English": ENGLISH, "other languages": ~ENGLISH}
    lines = [("any rows", any_row, {"all": any_row}, n) for n in (PAIRS, 50, 512, 200, 100)]
    for source in table["source"].unique().sort():
        home = pl.col("source") == source
        lines.append((f"{source} alone", home, {"its own": home, "others": ~home}, PAIRS))
    lines.append(("every language", any_row, by_language, PAIRS))
    lines.append(("English alone", ENGLISH, by_language, PAIRS))
    for name, words in (
        ("people", "person|family|hand|body"),
        ("animals and plants", "animal|plant"),
        ("flags", "flag"),
    ):
        group = pl.col("group").str.contains(words)
        lines.append((f"{name} alone", group, {"its own": group, "others": ~group}, PAIRS))
    print(
        "learnt from | pairs | AUC of swapped captions | a row learnt from above another good one"
    )
    found = []
    for name, *line in lines if every else lines[:2]:
        cells, first = measured(table, *line)
        print(f"{name} | {cells}", flush=True)
        found.append(first)
    if every:
        score_N, good = scores(table, np.arange(len(table))), _mask(table, GOOD)
        parts = {name: _mask(table, part) for name, part in by_language.items()}
        cells = (f"{n} {auc(score_N[good & p], score_N[~good & p]):.3f}" for n, p in parts.items())
        print(f"every row, swapped captions too | {len(table):,} | {', '.join(cells)} | all")
    assert found[0] > found[1], "few pairs are worth little"
    return f"AUC {found[0]:.2f} by all pairs at hand, {found[1]:.2f} by 50"


if __name__ == "__main__":
    begin(main, full=("demo/dfn", "demo/pool"))
