"""The uids of a demo pool's rows and trusted pairs that are not of some vendors, one a line.

    python -m tests.benchmarks.strangers POOL FILE VENDOR…

A run keeps them by `select.uid_list`, and what learns there never meets the others, which
`clipmill bench --hold-out` trains on.
"""

import json
from pathlib import Path

import polars as pl

from clipmill.pipeline.pools.chance import hex_id
from clipmill.pipeline.pools.sources import packages
from tests.benchmarks.pools import there
from tests.benchmarks.side_by_side import NeedError, begin


def main(*words: str) -> str:
    if len(words) < 3:
        raise NeedError("POOL FILE VENDOR…: a pool with its truth, and vendors to hold out")
    pool, file, *vendors = words
    truth = pl.read_parquet(there(pool) / "truth.parquet", columns=["uid", "source"])
    home = truth.filter(~pl.col("source").is_in(vendors))["uid"].to_list()
    facts = json.loads((there(pool) / "pool.json").read_text())
    theirs = {  # no pool says whose its trusted pairs are: of these vendors, by their drawings
        hex_id(str(facts["seed"]), drawing.source, drawing.key, "trusted")
        for drawing in packages.drawings(facts["kind"], lambda *_: None)[0]
        if drawing.source in vendors
    }
    trusted = pl.read_parquet(f"{pool}/trusted/metadata/*.parquet")["uid"].to_list()
    home += [uid for uid in trusted if uid not in theirs]
    Path(file).write_text("\n".join(home) + "\n")
    return f"{len(home):,} of {len(truth) + len(trusted):,} rows are not of {', '.join(vendors)}"


if __name__ == "__main__":
    begin(main)
