"""`clipmill run --executor ray` beside Ray Data: read Parquet, map batches, write Parquet.

    python -m tests.benchmarks.ray_data [full | WORK:ROWS ...]

20,000 texts and 2,000 images; full: 200,000 and 10,000.

Each is a process of its own that starts a Ray of two CPUs, in turns; seconds by the clock, start
included. Both map the same function over batches of as many rows: `texts` counts words and
characters and finds the language, `images` decodes JPEGs of 256 pixels and describes them. The
script writes uids and the new columns. clipmill stores the pool too, with uids, then the columns by
stage, with digests, records and reasons, and could go on from any shard; values are compared.

Aims: 1.0 of Ray Data with images to move, 1.3 without.
"""

import os
import shutil
import sys
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.as_users import stored, write_pool
from tests.benchmarks.side_by_side import begin, rounds_of
from tests.benchmarks.toy import clipmill, scratch, spend

FILES, ROUNDS = 10, 5
RECIPE = """
stages:
  pool: {{uses: ingest.parquet, path: {pool}, uid_col: uid, url_col: url, caption_col: caption,
         shard_rows: {shard_rows}{image}}}
{stages}
"""
STAGES = {
    "texts": "  caption: {uses: annotate.caption, from: pool}\n"
    "  language: {uses: annotate.language, from: pool}",
    "images": "  look: {uses: annotate.image, from: pool}",
}
COLUMNS = {
    "texts": {
        "caption": ["caption_words", "caption_chars", "caption_tokens"],
        "language": ["language"],
    },
    "images": {"look": ["image_format", "min_side", "mean_luma", "sharpness"]},
}
SCRIPT = """
import sys
import pyarrow as pa, ray, ray.data
from clipmill.pipeline.stage import Worker
from clipmill.stages.annotate.caption import Caption
from clipmill.stages.annotate.image import AnnotateImage
from clipmill.stages.annotate.language import Language
from clipmill.stages.ops.images.pixels import decoded

work, pool, out, rows, *columns = sys.argv[1:]

class Mapped:
    def __init__(self):
        worker = Worker(seed=0, stage="it", device="cpu", threads=1, scratch=None)
        stages = (AnnotateImage(),) if work == "images" else (Caption(), Language())
        self.functions = [stage.open(worker) for stage in stages]

    def __call__(self, batch):
        given = batch.rename_columns({"caption": "text"})
        if work == "images":
            given = given.append_column("pixels", decoded(batch["image"]))
        answers = [function(given) for function in self.functions]
        found = {name: a[name] for a in answers for name in columns if name in a.column_names}
        return pa.table({"uid": batch["uid"], **found})

ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
read = ray.data.read_parquet(pool, columns=["uid", "caption"] + ["image"] * (work == "images"))
mapped = read.map_batches(Mapped, batch_size=int(rows), batch_format="pyarrow", concurrency=(1, 2))
mapped.write_parquet(out)
"""


def main(*works: str) -> str:
    return ", ".join(compared(*work.split(":")) for work in works)


def compared(work: str, size: str) -> str:
    """Returns the script's seconds by clipmill's."""
    rows, columns = int(size), COLUMNS[work]
    names = [name for some in columns.values() for name in some]
    with scratch() as folder:
        make_pool(folder / "pool", rows, work == "images")
        image = ", image_col: image" if work == "images" else ""
        text = RECIPE.format(
            pool=folder / "pool", shard_rows=rows // FILES, image=image, stages=STAGES[work]
        )
        (folder / "recipe.yaml").write_text(text, "utf-8")
        run = ["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]
        run += ["--executor", "ray", "--workers", "2"]
        of_batch = str(64 if work == "images" else 1024)
        script = [sys.executable, "-c", SCRIPT, work, str(folder / "pool"), str(folder / "made")]
        theirs, ours = [], []
        for _ in range(rounds_of(ROUNDS)):
            for made in ("run", "made"):
                shutil.rmtree(folder / made, ignore_errors=True)
            theirs.append(spend(*script, of_batch, *names).wall_s)
            ours.append(clipmill(*run).wall_s)
        again_s = clipmill(*run).wall_s
        made = pl.read_parquet(folder / "made").sort("uid")
        for stage, some in columns.items():
            mine = stored(folder, stage).select("uid", *some).sort("uid")
            same = mine.equals(made.select(pl.col("uid").cast(mine["uid"].dtype), *some))
            assert (same, len(mine)) == (True, rows), stage
    each = [a / b for a, b in zip(theirs, ours, strict=True)]
    print(
        f"{work:<8}{rows:>9,} rows: Ray Data {median(theirs):.1f} s, clipmill {median(ours):.1f} s,"
        f" again {again_s:.1f} s; {median(each):.2f}x ({min(each):.2f} to {max(each):.2f})",
        flush=True,
    )
    return f"{work} {median(each):.2f}x Ray Data"


def make_pool(folder: Path, rows: int, has_images: bool) -> None:
    """Writes Parquet files of captions, perhaps with JPEGs of noise and squares."""
    folder.mkdir()
    write_pool(folder / "all.parquet", rows, "texts")
    table = pq.read_table(folder / "all.parquet")
    os.remove(folder / "all.parquet")
    if has_images:
        rng = np.random.default_rng(0)
        small = rng.integers(0, 255, (50, 16, 16, 3), np.uint8)
        bodies = [cv2.imencode(".jpg", cv2.resize(rgb, (256, 256)))[1].tobytes() for rgb in small]
        images = pa.array([bodies[number % len(bodies)] for number in range(rows)], pa.binary())
        table = table.append_column("image", images)
    for number in range(FILES):
        part = table.slice(number * rows // FILES, rows // FILES)
        pq.write_table(part, folder / f"{number}.parquet")


if __name__ == "__main__":
    begin(main, quick=("texts:20000", "images:2000"), full=("texts:200000", "images:10000"))
