"""A pool of 64-bit codes out of nothing, some of them a few bits apart."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metadata.schema import UID, Column
from pipeline.dataset import Context, Inputs, Task
from pipeline.stage import DatasetStage

PHASH = Column("phash", pa.uint64(), "64 bits", "Uniform, but for copies.")


@dataclass(frozen=True, kw_only=True)
class Codes(DatasetStage):
    """A code for every row; one row in ten copies another row's, with 0 to 4 bits turned.

    Error: bits may be turned twice, so that fewer differ.
    """

    shards: int
    shard_rows: int

    version = 1
    determinism = "exact"
    takes = ()
    writes = (PHASH,)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        sources = [{"shard": shard, "digest": str(shard)} for shard in range(self.shards)]
        ctx.create_shards(partial(made, self), sources)


def made(stage: Codes, source: Mapping[str, Any], task: Task) -> Iterator[pa.Table]:
    """The shard's rows."""
    rows = stage.shard_rows
    number_N = np.arange(rows, dtype=np.uint64) + np.uint64(source["shard"] * rows)
    uid = np.stack([mixed(number_N ^ np.uint64(2**60)), number_N], axis=1).astype(">u8")
    uids = pa.FixedSizeBinaryArray.from_buffers(UID.dtype, rows, [None, pa.py_buffer(uid)])
    code = pa.array(codes(number_N, stage.shards * rows))
    reason = pa.nulls(rows, pa.string()).dictionary_encode()
    yield pa.table({UID.name: uids, PHASH.name: code, "reason": reason})


def codes(number_N: NDArray[np.uint64], total: int) -> NDArray[np.uint64]:
    """(N,) the code of each row of the pool, by its number."""
    chance_N = mixed(number_N ^ np.uint64(2**61))
    original_N = np.where(chance_N % 10 == 0, (chance_N >> np.uint64(4)) % total, number_N)
    code_N = mixed(original_N)
    is_copy_N = original_N != number_N
    for turn in range(4):
        bit_N = mixed(number_N ^ np.uint64(turn + 1) << np.uint64(56))
        turns_N = is_copy_N & (chance_N >> np.uint64(48 + turn) & np.uint64(1) == 1)
        code_N = np.where(turns_N, code_N ^ np.uint64(1) << bit_N % 64, code_N)
    return code_N


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64."""
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
