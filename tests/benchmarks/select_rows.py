"""where + top + uid list, and exact dedup, against plain Polars scripts: the same uids.

    python -m tests.benchmarks.select_rows [select|ingest|exact] [rows ...]

The pool is DataComp's, with scores, ingested beforehand into shards of 10,000: both sides read the
columns that it stores. `select` keeps the best third by score of the rows with a longer side, and
lists their uids; `ingest` does so from DataComp's files, all of whose columns clipmill stores
first; a plain copy of them into shards, by pyarrow, is beside it. `exact` names the row with the
least uid for each equal caption. clipmill is `clipmill run --workers 0` as a process of its own:
ledger, reasons, digests, journal and checks included, and no pandas, which it does not need.
`start` is the same command once all is done: its imports, plan and scan. Polars' is that of `import
polars`. CPU seconds of all threads, the least of three rounds.

Aim: at most 2.5 times the script's for `select`, 1.3 times for `exact`, clipmill's start apart.
Measured (2026-11-27, EPYC, 2 shared cores; the least of three rounds, of one at 3M); behind them
the ratios of other runs, of which those above 2.5 fell into a busy minute:
             script   clipmill, of it start   ratio
select 300k    0.39       1.34  0.75           1.51
select 1M      0.71       2.16  0.78           1.95   (2.00, 2.14, 2.65)
select 3M      2.05       4.88  0.54           2.12   (2.67)
exact  300k    0.51       1.10  0.48           1.23
exact  1M      1.18       1.98  0.45           1.30   (1.26, 1.33)
exact  3M      3.71       3.46  0.48           0.80   (0.96)
Later that day, at load 8 to 12, without pandas: select 0.98, 1.55 and 2.64, exact 0.88 and 0.99;
ingest 2.36 at 300k, 4.80 and 3.99 at 1M in two runs.
On a machine half as fast, with AVX2 alone and at load 8 to 14, the tree before and this one in
turns, three rounds each: select 2.38 to 1.70 at 1M, 2.78 to 1.79 at 3M, since eight shards are one
unit and a cut sorts few ranks; on a disk where each new file costs the kernel up to 0.9 ms;
ingest 5.41 to 4.74 at 1M, two rounds. Hours later, three rounds each: select 1.54 at
1M, ingest 4.06 and 5.12, a plain copy 1.47 and 1.68. Since batches that fit are stored as they are,
ingest at 1M, the tree before and this one in turns, three rounds each: 4.75, 4.04, 4.32 before and
3.54, 4.15, 4.04; three more of this one 3.73, 4.01, 4.77; a plain copy 1.40 to 1.93.
On 2026-11-28, idle, on a disk in memory and on the machine's own: ingest 3.63 and 3.37, 4.52, 4.40
and 4.26 at 1M, 3.99 and 4.25 at 3M; select 1.44 and 1.38, 1.86 at 1M, 1.63 and 1.71 at 3M; a copy
1.49 to 1.94 and 1.52 to 1.85. Since conditions are put into Polars' words once, hours later: ingest
3.49 and 3.45 on the machine's own, 3.75 and 3.77 in memory. Since a shard costs less beside its
rows, ingest in memory in turns with the tree before: 3.57 and 3.47 at 1M where that had 3.75 and
3.64; at 3M, minutes apart, 4.25 before, 4.11 with half of it and 3.82, and 4.19 and 3.78 on the
machine's own. Since up to eight row groups of a file are one unit, at 3M: 3.90 and 3.50 in memory,
where it was 3.92 an hour before, and 3.53 on the machine's own.
Before: select 3.09 at 1M, when each digit of the cut read and judged all rows again; exact 1.72,
when all rows of a partition were sorted. Of 100,000 rows a ratio is mostly noise of the start.
"""

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.toy import clipmill, clipmill_alone, scratch, spend

SIZES, ROUNDS, FILE_ROWS = (100_000, 300_000, 1_000_000), 3, 100_000
RECIPE = """
stages:
  pool: {{uses: ingest.datacomp, path: {pool}, scores: true}}
  best:
    uses: select.where
    from: pool
    where: original_width >= 300 AND original_height >= 300
    top: {{column: clip_l14_similarity_score, fraction: 0.3}}
  ids: {{uses: export.uid_list, from: best}}
  same: {{uses: dedup.exact, from: pool, columns: [text]}}
"""
BEST = """
import glob, sys
import numpy as np, polars as pl
files = sorted(glob.glob(sys.argv[1] + "/{files}.parquet"))
names = ["uid", "original_width", "original_height", "clip_l14_similarity_score"]
rows = pl.read_parquet(files, columns=names)
wide = (pl.col("original_width") >= 300) & (pl.col("original_height") >= 300)
passing = rows.filter(wide)
ranked = passing.sort(
    ["clip_l14_similarity_score", "uid"], descending=[True, False], nulls_last=True
)
best = ranked.head(int(len(passing) * 0.3)).select("uid").sort("uid")["uid"]
halves = np.frombuffer({uids}, ">u8").astype("<u8")
np.save(sys.argv[2], halves.view("u8,u8"))
"""
SCRIPTS = {
    "select": BEST.format(files="0*", uids='b"".join(best.to_arrow().to_pylist())'),
    "ingest": BEST.format(files="*", uids='bytes.fromhex("".join(best.to_list()))'),
    "exact": """
import glob, sys
import polars as pl
rows = pl.read_parquet(sorted(glob.glob(sys.argv[1] + "/0*.parquet")), columns=["uid", "text"])
least = rows.group_by("text").agg(keeper=pl.col("uid").min())
kept = rows.join(least, on="text", how="left", maintain_order="left")
keeper = pl.when(pl.col("uid") != pl.col("keeper")).then("keeper")
kept.select("uid", duplicate_of=keeper).write_parquet(sys.argv[2])
""",
}
# What any tool pays that keeps the pool in shards of its own: each column read, encoded and hashed.
COPY = """
import glob, hashlib, os, sys
import pyarrow as pa, pyarrow.parquet as pq
for path in sorted(glob.glob(sys.argv[1] + "/*.parquet")):
    for batch in pq.ParquetFile(path).iter_batches(10_000):
        rows = pa.Table.from_batches([batch])
        pq.write_table(
            rows, sys.argv[2], compression="zstd", use_dictionary=["url", "text"],
            write_statistics=False, write_page_checksum=True,
        )
        hashlib.sha256(open(sys.argv[2], "rb").read())
os.remove(sys.argv[2])
"""
STAGES = {"select": ("best", "ids"), "ingest": ("pool", "best", "ids"), "exact": ("same",)}


def main(asked: list[str]) -> None:
    sizes = [int(text) for text in asked if text.isdigit()] or SIZES
    for rows in sizes:
        with scratch() as folder:
            recipe = folder / "select.yaml"
            recipe.write_text(RECIPE.format(pool=folder / "metadata"), encoding="utf-8")
            write_pool(folder / "metadata", rows)
            run = ["run", str(recipe), "--out", str(folder / "run"), "--workers", "0"]
            ingest_s = clipmill(*run, "--until", "pool").cpu_s
            begun_s = min(spend(sys.executable, "-c", "import polars").cpu_s for _ in "123")
            print(f"{rows:,} rows; ingest {ingest_s:.2f} s; import polars {begun_s:.2f} s")
            for name in [name for name in SCRIPTS if name in asked] or SCRIPTS:
                compare(name, folder, run)


def compare(name: str, folder: Path, run: list[str]) -> None:
    """Prints the CPU seconds of both, and clipmill's start, which stands in no ratio."""
    pool = folder / "metadata" if name == "ingest" else stage_folder(folder, "pool")
    made = folder / "by-hand.npy"  # Parquet for `exact`
    until = [*run, "--until", STAGES[name][-1]]
    spent: dict[str, list[float]] = {"script": [], "clipmill": [], "start": []}
    for _ in range(ROUNDS):
        for stage in STAGES[name]:
            for path in (folder / "run" / "stages").glob(f"{stage}-*"):
                shutil.rmtree(path)
        script = spend(sys.executable, "-c", SCRIPTS[name], str(pool), str(made))
        spent["script"].append(script.cpu_s)
        spent["clipmill"].append(clipmill_alone(*until).cpu_s)
        spent["start"].append(clipmill_alone(*until).cpu_s)
    assert answer(name, folder) == by_hand(name, made)  # a fast wrong answer is none
    script_s, all_s, start_s = (min(times) for times in spent.values())
    print(
        f"  {name:<7} script {script_s:6.2f} s   clipmill {all_s:6.2f} s, of it start {start_s:.2f}"
        f"   {(all_s - start_s) / script_s:5.2f}x",
        flush=True,
    )
    if name == "ingest":
        copy = [sys.executable, "-c", COPY, str(pool), str(folder / "copy.parquet")]
        copy_s = min(spend(*copy).cpu_s for _ in range(ROUNDS))
        print(f"          of which a plain pyarrow copy into shards takes {copy_s / script_s:.2f}x")


def answer(name: str, folder: Path) -> str:
    """A digest of what clipmill found."""
    if name != "exact":
        return of_uids(stage_folder(folder, "ids") / "out" / "uids.npy")
    return of_keepers(sorted(stage_folder(folder, "same").glob("0*.parquet")))


def by_hand(name: str, made: Path) -> str:
    """The same of what the script wrote."""
    return of_keepers([made]) if name == "exact" else of_uids(made)


def of_uids(path: Path) -> str:
    return hashlib.sha256(np.load(path).tobytes()).hexdigest()


def of_keepers(paths: list[Path]) -> str:
    columns = [pq.read_table(path, columns=["duplicate_of"])["duplicate_of"] for path in paths]
    uids = [uid or b"-" for column in columns for uid in column.to_pylist()]
    return hashlib.sha256(b"".join(uids)).hexdigest()


def stage_folder(folder: Path, stage: str) -> Path:
    (path,) = (folder / "run" / "stages").glob(f"{stage}-*")
    return path


def write_pool(folder: Path, rows: int) -> None:
    """One caption in ten is another's; half of the sides are 300 pixels or more."""
    folder.mkdir()
    for start in range(0, rows, FILE_ROWS):
        random = np.random.default_rng(start)
        size = min(FILE_ROWS, rows - start)
        number_N = np.where(random.random(size) < 0.1, 7, start) + np.arange(size)
        pool = {
            "uid": pa.array([random.bytes(16).hex() for _ in range(size)]),
            "url": pa.array([f"https://site-{n % 2000}.test/{n}.jpg" for n in number_N]),
            "text": pa.array([f"a photo of number {n}, taken from afar" for n in number_N]),
            "original_width": random.integers(100, 700, size),
            "original_height": random.integers(100, 700, size),
            "sha256": pa.array([random.bytes(32).hex() for _ in range(size)]),
        }
        for score in ("clip_b32_similarity_score", "clip_l14_similarity_score"):
            pool[score] = random.normal(0.24, 0.05, size).astype(np.float32)
        path = folder / f"{start // FILE_ROWS:08d}.parquet"
        pq.write_table(pa.table(pool), path, row_group_size=10_000)


if __name__ == "__main__":
    main(sys.argv[1:])
