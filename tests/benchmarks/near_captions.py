"""dedup.minhash at 0.7 through the engine, one worker: time and memory as the pool grows.

    python -m tests.benchmarks.near_captions [full | MILLIONS[:TEMPLATES] ...]

Captions of 4 to 14 words by Zipf's law, one in ten a copy with a word changed; TEMPLATES of a
thousand (50) of one template. Storage counts: all shuffles write and read files. Copies that are as
near as the floor are looked for among the groups.

Aim: memory that does not grow; a million captions of one template in a worker of 2 GiB.
Measured (2026-11-25, EPYC, 2 shared cores, load 3 to 5), one worker's CPU, its memory in whole, the
most that its journal held:

          1 M     30.9 s     910 MB     662 MB   485 of 485 copies found (27.6 s at load 2)
          3 M     97.8 s     926 MB   2,072 MB   493 of 493
     1 M:1000    185.4 s   1,293 MB   2,711 MB   of one template, 4 rows kept
     0.25:800     29.3 s     761 MB     512 MB   200,000 of one template, 2 kept

Of the first, out/recall.json takes 8%.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import grown, measured

FLOOR, SHARD_ROWS, SAMPLED = 0.7, 250_000, 1_000


def main(*pools: str) -> str:
    said = grown("tests.benchmarks.near_captions", {pool: pool_of(pool) for pool in pools})[-1]
    return "{found} of {near} copies; {peak_mb:.0f} MB of {rows:,} rows".format(**said)


def pool_of(pool: str) -> dict:
    millions, _, templates = pool.partition(":")
    shards = round(float(millions) * 1_000_000 / SHARD_ROWS)
    made = {"uses": "toy.captions", "shards": shards, "shard_rows": SHARD_ROWS}
    return {**made, "templates": int(templates or 50)}


def measure(name: str, folder: Path) -> None:
    """One pool's seconds, and the peak of memory, as JSON."""
    # Libraries are no part of the growth.
    from clipmill.stages.dedup import _hamming, _linkage, _minhash  # noqa: F401

    pool = pool_of(name)
    stored, said = measured(pool, {"uses": "dedup.minhash", "min_jaccard": FLOOR}, folder)
    print(json.dumps(said | checked(Path(stored.path), pool)))


def checked(near: Path, pool: dict) -> dict[str, int]:
    """Rows, how many were joined, and of some copies as near as the floor those that were found."""
    import polars as pl
    from clipmill_own.toy.captions import captions, originals
    from clipmill_own.toy.codes import uids

    files = sorted(near.glob("0*-*.parquet"))
    columns = ["joined_at", "duplicate_of"]
    stored = pl.concat([pl.read_parquet(file, columns=columns) for file in files])
    total = pool["shards"] * pool["shard_rows"]
    number_N = np.arange(total, dtype=np.uint64)
    original_N = originals(number_N, total)
    copy_S = np.random.default_rng(0).choice(np.flatnonzero(original_N != number_N), SAMPLED)
    both_2S = np.stack([number_N[copy_S], original_N[copy_S]])
    text_2S = [captions(row_S, total, pool["templates"]).to_pylist() for row_S in both_2S]
    uid_2S = [uids(row_S).to_pylist() for row_S in both_2S]
    near_S = [len(a & b) / len(a | b) >= FLOOR for a, b in zip(*map(sets, text_2S), strict=True)]
    best_2S = [stored["duplicate_of"].gather(row_S).to_list() for row_S in both_2S]
    group_2S = [
        [best or uid for best, uid in zip(*one, strict=True)]
        for one in zip(best_2S, uid_2S, strict=True)
    ]
    same_S = [a == b for a, b in zip(*group_2S, strict=True)]
    found = sum(near and same for near, same in zip(near_S, same_S, strict=True))
    best_of_template = stored["duplicate_of"].filter(number_N % 1000 < pool["templates"])
    said = {"rows": len(stored), "joined": len(stored) - stored["joined_at"].null_count()}
    return said | {"near": sum(near_S), "found": found, "kept": best_of_template.null_count()}


def sets(texts: list[str]) -> list[set[str]]:
    return [{text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in texts]


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], Path(sys.argv[3]))
    else:
        begin(main, quick=("0.25",), full=("1", "3", "1:1000", "0.25:800"))
