"""A pool out of nothing: rows whose every value follows from shard and position."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, SHA256, TEXT, UID, Column
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage

NUMBER = Column("number", pa.int64(), "number", "Uniform in 0 to 999,999.")
WORDS = pa.array(
    ["a", "red", "small", "old", "boat", "dog", "house", "street", "photo", "of", "in"]
)


@dataclass(frozen=True, kw_only=True)
class Rows(DatasetStage):
    """A number, a caption of eight words, and `image_bytes` bytes and their digest where asked.

    Error: one image in ten is the first of its shard over again.
    """

    shards: int
    shard_rows: int
    image_bytes: int = 0

    version = 1
    determinism = "exact"
    takes = ()

    @property
    def writes(self) -> tuple[Column, ...]:
        images = (IMAGE, IMAGE_BYTES, SHA256) if self.image_bytes else ()
        return (NUMBER, TEXT, *images)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        sources = [{"shard": shard, "digest": str(shard)} for shard in range(self.shards)]
        ctx.create_shards(partial(made, self), sources)


def made(stage: Rows, source: Mapping[str, Any], task: Task) -> Iterator[pa.Table]:
    """The shard's rows, 1,000 at a time."""
    rng = np.random.default_rng(source["shard"])
    first: bytes = rng.bytes(stage.image_bytes)
    for start in range(0, stage.shard_rows, 1000):
        rows = min(1000, stage.shard_rows - start)
        words = WORDS.take(pa.array(rng.integers(0, len(WORDS), rows * 8)))
        lists = pa.ListArray.from_arrays(np.arange(0, rows * 8 + 1, 8, dtype=np.int32), words)
        columns = {
            UID.name: pa.array([rng.bytes(16) for _ in range(rows)], UID.dtype),
            NUMBER.name: rng.integers(0, 1_000_000, rows),
            TEXT.name: pc.binary_join(lists, " "),
        }
        if stage.image_bytes:
            again_N = rng.random(rows) < 0.1
            images = [first if again else rng.bytes(stage.image_bytes) for again in again_N]
            columns[IMAGE.name] = pa.array(images, IMAGE.dtype)
            columns[IMAGE_BYTES.name] = np.full(rows, stage.image_bytes)
            columns[SHA256.name] = [hashlib.sha256(image).hexdigest() for image in images]
        yield pa.table({**columns, "reason": pa.nulls(rows, pa.string()).dictionary_encode()})
