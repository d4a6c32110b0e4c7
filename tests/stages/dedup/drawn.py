"""A drawn pool as rows of Arrow, hashed, and what was planted in it."""

from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.pools.build import build_pool
from clipmill.stages.annotate.phash import PHash
from clipmill.stages.ops.images.pixels import decoded

LARGEST_BYTES = 1 << 20  # what is planted beyond is a bomb


def drawn_pool(folder: Path, rows: int) -> tuple[pa.Table, pl.DataFrame]:
    """uid, image, pixels, text and phash of every row; the truth."""
    build_pool("generated", folder, rows=rows)
    pool = pq.read_table(folder / "metadata")

    def body(url: str) -> bytes | None:
        file = folder / "www" / urlsplit(url).path.lstrip("/")
        there = file.is_file() and file.stat().st_size < LARGEST_BYTES
        return file.read_bytes() if there else None

    uid = pa.array([bytes.fromhex(text) for text in pool["uid"].to_pylist()], pa.binary(16))
    image = pa.array(map(body, pool["url"].to_pylist()), pa.binary())
    columns = {"uid": uid, "image": image, "pixels": decoded(image), "text": pool["text"]}
    phash = PHash().open(None)(pa.table(columns))["phash"]
    return pa.table({**columns, "phash": phash}), pl.read_parquet(folder / "truth.parquet")
