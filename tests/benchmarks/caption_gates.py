"""What score.caption's checks catch, what they reject wrongly, and what they cost.

    python -m tests.benchmarks.caption_gates [full | POOL]    a drawn pool; full: demo/pool

Recall of each fault at the default cuts, on the half of the labelled set that nobody tuned on, and
false rejects among its good captions. With the folder of a pool, as `clipmill pool demo` makes it:
false rejects among 1,000 of its captions that have no fault, drawn by the hash of their uid, and
among 1,000 that stand for another true caption of the same picture, as a rewrite would.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import process_time

import polars as pl

from clipmill.stages.select._captions import CUTS, first_failed
from tests.benchmarks.pools import pool_at
from tests.benchmarks.side_by_side import begin, rounds_of
from tests.stages.score.judged import recall, values_of
from tests.stages.score.planted import Labelled, labelled, u

REAL, ROWS = 1000, 1_500


def rejected(captions: Sequence[Labelled], as_own: bool) -> str:
    reasons = first_failed(values_of(captions, as_own), CUTS).to_pylist()
    by_cut = Counter(it for it in reasons if it is not None)
    causes = ", ".join(f"{name} {count}" for name, count in by_cut.most_common())
    return f"{by_cut.total() / len(captions):6.2%} of {len(captions):,}   {causes}"


def real(pool: Path) -> tuple[list[Labelled], list[Labelled]]:
    """Captions without a fault, and pairs of different ones of a picture, in one language."""
    truth = pl.read_parquet(pool / "truth.parquet").filter(pl.col("text_issue").is_null())
    rows = pl.read_parquet(pool / "metadata/*.parquet").join(truth, on="uid").sort("uid")
    drawn = rows.with_columns(by=pl.Series([u("real", uid) for uid in rows["uid"]])).sort("by")
    alone = [Labelled(None, text, text, True) for text in drawn["text"].head(REAL)]
    keys = ["source", "image_key", "lang"]
    pairs = drawn.join(drawn.select(*keys, other="text_true"), on=keys, maintain_order="left")
    words = [
        pl.col(name).str.to_lowercase().str.extract_all(r"\w+") for name in ("text_true", "other")
    ]
    pairs = pairs.filter(words[0] != words[1]).unique("uid", keep="first", maintain_order=True)
    both = pairs.select("other", "text_true").head(REAL).iter_rows()
    return alone, [Labelled(None, other, text, True) for other, text in both]


def main(pool: str = "") -> str:
    held = [it for it in labelled() if it.held]
    print(f"{'fault':<12}{'captions':>9}{'by its own value':>18}{'by any':>9}")
    found = recall(held)
    for fault, (own, any_) in found.items():
        size = sum(it.fault == fault for it in held)
        print(f"{fault:<12}{size:>9}{own:>18.1%}{any_:>9.1%}")
    good = [it for it in held if it.fault is None]
    print(f"good, labelled, as a rewrite of its source: {rejected(good, False)}")
    with pool_at(pool, ROWS) as folder:
        alone, pairs = real(folder)
    print(f"good, real, as the pool's own caption:      {rejected(alone, True)}")
    print(f"good, real, as a rewrite of another:        {rejected(pairs, False)}")
    batch = [it for it in labelled() if it.fault is None][:1024]
    seconds = []
    for _ in range(rounds_of(7)):
        start = process_time()
        values_of(batch)
        seconds.append(process_time() - start)
    print(f"speed: {2 * len(batch) / median(seconds):,.0f} captions in a second of one core")
    least = min(any_ for _, any_ in found.values())
    return f"{least:.0%} to 100 % of each fault, {rejected(good, False).split()[0]} of good ones"


if __name__ == "__main__":
    begin(main, full=("demo/pool",))
