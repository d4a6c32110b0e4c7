"""Whole commands with a worker, start-up included, beside scripts that do the same work.

    python -m tests.benchmarks.as_users [full | WORK:ROWS ...]    20,000 each; full: three sizes

clipmill is `clipmill run … --workers 1` from a file to stored shards, a process of its own with its
worker; the peer is a script that reads the same file and writes its answer. Both have one thread a
process, and are run in turns. CPU seconds are those of the whole tree of processes; `start` is the
same command once all is done, and is in the ratio. A ratio above 1 is the script's time over
clipmill's. Where a size is asked for, also with two workers.

minhash  near captions, against datasketch's MinHashLSH: all planted copies are found by both
kmeans   20 rounds of 500 spherical centres at width 256, float32, against faiss: the same inertia,
         to 1 %
select   a condition, the best third by a score and the list of uids, against Polars: the same uids
exact    equal captions, against DuckDB: the same rows are copies
metaclip concepts and balancing, against pyahocorasick and MetaCLIP's loop: as many rows, to chance
phash    hashes of JPEG, decoded, against imagehash: the same bits
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", POLARS_MAX_THREADS="1")

import cv2
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.side_by_side import begin, rounds_of
from tests.benchmarks.toy import clipmill, scratch, spend

ROUNDS, WIDTH, CLUSTERS = 5, 256, 500
WORDS = [f"{a}{b}" for a in ("red", "dog", "sky", "man", "tree") for b in range(600)]
COPIES = 10  # one caption in so many is a planted copy of the one before it
POOL = """
stages:
  pool:
    uses: ingest.parquet
    path: {pool}
    uid_col: uid
    url_col: url
    caption_col: caption
    shard_rows: 50000
"""
RECIPES = {
    "minhash": """
  minhash: {{uses: dedup.minhash, from: pool, min_jaccard: 0.7}}
""",
    "kmeans": """
    image_embedding_col: vector
    embedding_width: {width}
  kmeans: {{uses: cluster.kmeans, from: pool, clusters: {clusters}, rounds: 20}}
""",
    "select": """
    extra: {{score: float}}
  best:
    uses: select.where
    from: pool
    where: score >= 0.2
    top: {{column: score, rows: {best}}}
  select: {{uses: export.uid_list, from: best}}
""",
    "exact": """
  exact: {{uses: dedup.exact, from: pool, columns: [text]}}
""",
    "metaclip": """
  concepts: {{uses: annotate.concepts, from: pool, concepts: {list}}}
  metaclip: {{uses: select.balance, from: concepts, concepts: {list}, t: 20}}
""",
    "phash": """
    image_col: image
  phash: {{uses: annotate.phash, from: pool}}
""",
}
SCRIPTS = {
    "minhash": """
import sys, pyarrow as pa, pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH
rows = pq.read_table(sys.argv[1], columns=["uid", "caption"])
lsh, found, kept = MinHashLSH(threshold=0.7, num_perm=128), [], {}
texts = rows["caption"].to_pylist()
pieces = ({t[i : i + 5].encode() for i in range(max(1, len(t) - 4))} for t in texts)
for number, signature in enumerate(MinHash.generator(pieces, num_perm=128)):
    near = lsh.query(signature)
    found.append(any(signature.jaccard(kept[other]) >= 0.7 for other in near))
    if not found[-1]:
        lsh.insert(number, signature)
        kept[number] = signature
pq.write_table(pa.table({"uid": rows["uid"], "copy": found}), sys.argv[2])
""",
    "kmeans": """
import sys, faiss, numpy as np, pyarrow as pa, pyarrow.parquet as pq
rows = pq.read_table(sys.argv[1], columns=["uid", "vector"])
width = int(sys.argv[3])
x = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)
x = x / np.linalg.norm(x, axis=1, keepdims=True)
faiss.omp_set_num_threads(1)
settings = {"niter": 20, "spherical": True, "max_points_per_centroid": len(x)}
means = faiss.Kmeans(width, int(sys.argv[4]), **settings)
means.train(x)
cosine, cluster = means.index.search(x, 1)
found = {"uid": rows["uid"], "cosine": cosine[:, 0], "cluster": cluster[:, 0]}
pq.write_table(pa.table(found), sys.argv[2])
""",
    "select": """
import sys, polars as pl
rows = pl.read_parquet(sys.argv[1], columns=["uid", "score"]).filter(pl.col("score") >= 0.2)
best = rows.sort(["score", "uid"], descending=[True, False]).head(int(sys.argv[5]))
best.select("uid").sort("uid").write_parquet(sys.argv[2])
""",
    "exact": """
import sys, duckdb
duckdb.execute("SET threads = 1")
duckdb.execute(
    f"COPY (SELECT uid, min(uid) OVER (PARTITION BY caption) AS keeper FROM '{sys.argv[1]}')"
    f" TO '{sys.argv[2]}' (FORMAT parquet)"
)
""",
    "metaclip": """
import json, random, sys, ahocorasick, numpy as np, pyarrow as pa, pyarrow.parquet as pq
def spaced(text):
    text = f" {text} "
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    for blank in "\\t\\n\\r":
        text = text.replace(blank, " ")
    return text
rows = pq.read_table(sys.argv[1], columns=["uid", "caption"])
entries = json.load(open(sys.argv[6]))
automaton = ahocorasick.Automaton()
for place, entry in enumerate(entries):
    automaton.add_word(f" {entry} ", place)
automaton.make_automaton()
ids = [list({i for _, i in automaton.iter(spaced(t))}) for t in rows["caption"].to_pylist()]
count = np.zeros(len(entries), np.uint64)
for matched in ids:
    for entry in matched:
        count[entry] += 1
prob = 20 / np.maximum(count, 20)
keep = [any(random.random() < prob[entry] for entry in matched) for matched in ids]
pq.write_table(pa.table({"uid": rows["uid"], "keep": keep}), sys.argv[2])
""",
    "phash": """
import io, sys, imagehash, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
rows = pq.read_table(sys.argv[1], columns=["uid", "image"])
hashes = [str(imagehash.phash(Image.open(io.BytesIO(b.as_py())))) for b in rows["image"]]
pq.write_table(pa.table({"uid": rows["uid"], "phash": hashes}), sys.argv[2])
""",
}


def main(*works: str) -> str:
    print("CPU seconds, wall seconds in brackets")
    with scratch() as folder:
        print_start(folder)
    found = []
    for work in works:
        name, _, size = work.partition(":")
        rows = int(size)
        with scratch() as folder:
            write_pool(folder / "pool.parquet", rows, name)
            pool, best, entries = folder / "pool.parquet", rows // 3, folder / "list.json"
            entries.write_text(json.dumps(WORDS), "utf-8")
            of = {"pool": pool, "width": WIDTH, "clusters": CLUSTERS, "best": best, "list": entries}
            text = (POOL + RECIPES[name]).format(**of)
            (folder / "recipe.yaml").write_text(text, "utf-8")
            found.append(f"{work} {compared(name, rows, folder, best):.2f}x")
    return ", ".join(found)


def print_start(folder: Path) -> None:
    """Prints the least CPU of the shortest commands: a plan of three rows, their run, and again."""
    write_pool(folder / "pool.parquet", 3, "")
    (folder / "recipe.yaml").write_text(POOL.format(pool=folder / "pool.parquet"), "utf-8")
    recipe, to = str(folder / "recipe.yaml"), ["--out", str(folder / "run")]
    spent: dict[str, list[float]] = {"plan": [], "run": [], "again": []}
    for _ in range(rounds_of(ROUNDS)):
        shutil.rmtree(folder / "run", ignore_errors=True)
        spent["plan"].append(clipmill("plan", recipe).cpu_s)
        for name in ("run", "again"):
            spent[name].append(clipmill("run", recipe, *to, "--workers", "1").cpu_s)
    print("  three rows:", ", ".join(f"{name} {min(cpu):.2f}" for name, cpu in spent.items()))


def compared(name: str, rows: int, folder: Path, best: int) -> float:
    """Returns the script's CPU by clipmill's; prints both, the spread, and clipmill's start."""
    made = folder / f"{name}.parquet"
    numbers = map(str, (WIDTH, CLUSTERS, best))
    arguments = [str(folder / "pool.parquet"), str(made), *numbers, str(folder / "list.json")]
    run = ["run", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--workers"]
    clipmill(*run, "1")  # compiles, as the first use of an install does
    script, ours, start, two = [], [], [], []
    for _ in range(rounds_of(ROUNDS)):
        shutil.rmtree(folder / "run", ignore_errors=True)
        if rounds_of(ROUNDS) == ROUNDS:
            two.append(clipmill(*run, "2"))
            shutil.rmtree(folder / "run")
        script.append(spend(sys.executable, "-c", SCRIPTS[name], *arguments))
        ours.append(clipmill(*run, "1"))
        start.append(clipmill(*run, "1"))
    CHECKS[name](pl.read_parquet(made), folder)
    each = [s.cpu_s / o.cpu_s for s, o in zip(script, ours, strict=True)]
    cpu = [median(it.cpu_s for it in spent) for spent in (script, ours, start)]
    wall = [median(it.wall_s for it in spent) for spent in (script, ours)]
    also = [median(getattr(it, key) for it in two) for key in ("cpu_s", "wall_s") if two]
    of_two = ", by two workers {:.2f} ({:.2f})".format(*also) if two else ""
    spread = f"{median(each):.2f}x ({min(each):.2f} to {max(each):.2f})"
    print(
        f"  {name:<8}{rows:>10,} script {cpu[0]:6.2f} ({wall[0]:.2f})"
        f"  clipmill {cpu[1]:6.2f} ({wall[1]:.2f}), of it start {cpu[2]:.2f}{of_two}  {spread}",
        flush=True,
    )
    return median(each)


def write_pool(path: Path, rows: int, name: str) -> None:
    """Writes captions by Zipf's law, one in ten a copy, with scores; clustered vectors or JPEG."""
    rng = np.random.default_rng(0)
    share_W = 1 / np.arange(1, len(WORDS) + 1)
    length_N = rng.integers(6, 15, rows)
    of_all = np.array(WORDS)[rng.choice(len(WORDS), length_N.sum(), p=share_W / share_W.sum())]
    stop_N = np.cumsum(length_N)
    caption = [" ".join(of_all[a:b]) for a, b in zip(stop_N - length_N, stop_N, strict=True)]
    for number in range(COPIES, rows, COPIES):
        more = " x" if number % (2 * COPIES) else ""  # near, and equal
        caption[number] = caption[number - 1] + more
    table = {
        "uid": pa.array([rng.bytes(16) for _ in range(rows)], pa.binary(16)),
        "url": [f"http://example.org/{number}.jpg" for number in range(rows)],
        "caption": caption,
        "score": pa.array(rng.random(rows, np.float32)),
    }
    if name == "phash":
        small_M = rng.integers(0, 256, (100, 12, 12, 3), np.uint8)
        large_M = [cv2.resize(small_HW3, (256, 192)) for small_HW3 in small_M]
        shift_N = rng.integers(0, 192, rows)
        drawn = (np.roll(large_M[row % 100], shift, 0) for row, shift in enumerate(shift_N))
        table["image"] = [cv2.imencode(".jpg", image)[1].tobytes() for image in drawn]
    if name == "kmeans":
        centre_KD = rng.standard_normal((300, WIDTH), np.float32)
        vector_ND = 0.5 * rng.standard_normal((rows, WIDTH), np.float32)
        vector_ND += centre_KD[rng.integers(0, 300, rows)]
        values = pa.array(vector_ND.reshape(-1))
        table["vector"] = pa.FixedSizeListArray.from_arrays(values, WIDTH)
    pq.write_table(pa.table(table), path, row_group_size=50_000 if name != "phash" else 2_000)


def stored(folder: Path, stage: str) -> pl.DataFrame:
    """What clipmill stored."""
    (found,) = (folder / "run" / "stages").glob(f"{stage}-*")
    return pl.concat(pl.read_parquet(file) for file in sorted(found.glob("0*-*.parquet")))


def check_minhash(theirs: pl.DataFrame, folder: Path) -> None:
    copies = theirs["copy"].to_numpy()[COPIES::COPIES]
    ours = stored(folder, "minhash").select("uid", "duplicate_of", "joined_at")
    both = theirs.select("uid").join(ours, on="uid", maintain_order="left")
    keepers = both["duplicate_of"].to_numpy()
    uids = both["uid"].to_numpy()
    is_joined = [
        (keepers[i] or uids[i]) == (keepers[i - 1] or uids[i - 1])
        for i in range(COPIES, len(both), COPIES)
    ]
    assert np.mean(is_joined) > 0.99
    assert np.mean(copies) > 0.99


def check_kmeans(theirs: pl.DataFrame, folder: Path) -> None:
    ours = float((1 - stored(folder, "kmeans")["centroid_cosine"].cast(pl.Float64)).sum())
    other = float((1 - theirs["cosine"].cast(pl.Float64)).sum())
    assert ours < 1.01 * other, (ours, other)


def check_select(theirs: pl.DataFrame, folder: Path) -> None:
    (file,) = (folder / "run" / "stages").glob("select-*/out/*.npy")
    halves = np.load(file)
    ours = np.stack([halves["f0"], halves["f1"]], axis=1).astype(">u8").tobytes()
    assert ours == b"".join(theirs["uid"].to_list())


def check_exact(theirs: pl.DataFrame, folder: Path) -> None:
    ours = stored(folder, "exact").select("uid", "duplicate_of")
    keeper = pl.coalesce("duplicate_of", "uid")
    both = theirs.join(ours.select("uid", ours=keeper), on="uid")
    assert (both["keeper"] == both["ours"]).all()


def check_metaclip(theirs: pl.DataFrame, folder: Path) -> None:
    ours = stored(folder, "metaclip")["keep"].sum()
    assert abs(ours - theirs["keep"].sum()) < 7 * len(theirs) ** 0.5 / 2, ours


def check_phash(theirs: pl.DataFrame, folder: Path) -> None:
    both = theirs.join(stored(folder, "phash").select("uid", ours="phash"), on="uid")
    bits = both["ours"].to_numpy().view(np.uint64)
    assert [f"{value:016x}" for value in bits] == both["phash"].to_list()


CHECKS: dict[str, Callable[[pl.DataFrame, Path], None]] = {
    "minhash": check_minhash,
    "kmeans": check_kmeans,
    "select": check_select,
    "exact": check_exact,
    "metaclip": check_metaclip,
    "phash": check_phash,
}

if __name__ == "__main__":
    few = tuple(f"{name}:20000" for name in SCRIPTS if name != "phash")
    more = *(f"{name}:200000" for name in SCRIPTS if name != "phash"), "kmeans:60000", "phash:20000"
    begin(main, quick=(*few, "phash:2000"), full=(*few, *more, "select:1000000", "exact:1000000"))
