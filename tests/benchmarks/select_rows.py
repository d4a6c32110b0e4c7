"""where + top + uid list, and exact dedup, against plain Polars scripts: the same uids.

    python -m tests.benchmarks.select_rows [full | ROWS ...]    100,000; full: to 3 M

The pool is DataComp's, with scores, ingested beforehand into shards of 10,000: both sides read the
columns that it stores. `select` keeps the best third by score of the rows with a longer side, and
lists their uids; `ingest` does so from DataComp's files, all of whose columns clipmill stores
first; a plain copy of them into shards, by pyarrow, is beside it. `exact` names the row with the
least uid for each equal caption. clipmill is `clipmill run --workers 0` as a process of its own:
ledger, reasons, digests, journal and checks included.
`start` is the same command once all is done: its imports, plan and scan. Polars' is that of `import
polars`. CPU seconds of all threads, the least of three rounds.

Aim: at most 2.5 times the script's for `select`, 1.3 times for `exact`, clipmill's start apart.
Measured (2026-11-27, EPYC, 2 shared cores; the least of three rounds, of one at 3M); docs/scale.md
has the ratios of other hours and machines:
             script   clipmill, of it start   ratio
select 300k    0.39       1.34  0.75           1.51
select 1M      0.71       2.16  0.78           1.95   (2.00, 2.14, 2.65)
select 3M      2.05       4.88  0.54           2.12   (2.67)
exact  300k    0.51       1.10  0.48           1.23
exact  1M      1.18       1.98  0.45           1.30   (1.26, 1.33)
exact  3M      3.71       3.46  0.48           0.80   (0.96)
On 2026-11-28, idle: ingest 3.45 to 4.52 at 1M, 3.50 to 4.25 at 3M, a copy 1.49 to 1.94; select 1.38
to 1.86. Of 100,000 rows a ratio is mostly noise of the start.
"""

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.side_by_side import begin, rounds_of
from tests.benchmarks.toy import clipmill, scratch, spend

ROUNDS, FILE_ROWS = 3, 100_000
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


def main(*sizes: int) -> str:
    for rows in sizes:
        with scratch() as folder:
            recipe = folder / "select.yaml"
            recipe.write_text(RECIPE.format(pool=folder / "metadata"), encoding="utf-8")
            write_pool(folder / "metadata", rows)
            run = ["run", str(recipe), "--out", str(folder / "run"), "--workers", "0"]
            ingest_s = clipmill(*run, "--until", "pool").cpu_s
            begun_s = min(spend(sys.executable, "-c", "import polars").cpu_s for _ in "123")
            print(f"{rows:,} rows; ingest {ingest_s:.2f} s; import polars {begun_s:.2f} s")
            found = {name: compare(name, folder, run) for name in SCRIPTS}
    return ", ".join(f"{name} {ratio:.2f}x" for name, ratio in found.items()) + " a script's CPU"


def compare(name: str, folder: Path, run: list[str]) -> float:
    """Clipmill's CPU by the script's; prints both, and clipmill's start, which is in no ratio."""
    pool = folder / "metadata" if name == "ingest" else stage_folder(folder, "pool")
    made = folder / "by-hand.npy"  # Parquet for `exact`
    until = [*run, "--until", STAGES[name][-1]]
    spent: dict[str, list[float]] = {"script": [], "clipmill": [], "start": []}
    for _ in range(rounds_of(ROUNDS)):
        for stage in STAGES[name]:
            for path in (folder / "run" / "stages").glob(f"{stage}-*"):
                shutil.rmtree(path)
        script = spend(sys.executable, "-c", SCRIPTS[name], str(pool), str(made))
        spent["script"].append(script.cpu_s)
        spent["clipmill"].append(clipmill(*until).cpu_s)
        spent["start"].append(clipmill(*until).cpu_s)
    assert answer(name, folder) == by_hand(name, made)  # a fast wrong answer is none
    script_s, all_s, start_s = (min(times) for times in spent.values())
    print(
        f"  {name:<7} script {script_s:6.2f} s   clipmill {all_s:6.2f} s, of it start {start_s:.2f}"
        f"   {(all_s - start_s) / script_s:5.2f}x",
        flush=True,
    )
    if name == "ingest":
        copy = [sys.executable, "-c", COPY, str(pool), str(folder / "copy.parquet")]
        copy_s = min(spend(*copy).cpu_s for _ in range(rounds_of(ROUNDS)))
        print(f"          of which a plain pyarrow copy into shards takes {copy_s / script_s:.2f}x")
    return (all_s - start_s) / script_s


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
    begin(main, quick=(100_000,), full=(300_000, 1_000_000, 3_000_000))
