"""A pool of 64-bit codes out of nothing, some of them a few bits apart."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import UID, Column
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage

Kind = Literal["uniform", "equal", "chain", "cube"]
PHASH = Column("phash", pa.uint64(), "64 bits", "Uniform, but for copies.")


@dataclass(frozen=True, kw_only=True)
class Codes(DatasetStage):
    """A code for every row; one row in ten copies another row's, with 0 to 4 bits turned.

    Other kinds are one group: all `equal`; a `chain`, each three bits from the one before and far
    from most others; a `cube`, where few bits vary, so that each code has many within a bit.

    Error: bits may be turned twice, so that fewer differ.
    """

    shards: int
    shard_rows: int
    kind: Kind = "uniform"

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
    code = pa.array(codes(stage.kind, number_N, stage.shards * rows))
    reason = pa.nulls(rows, pa.string()).dictionary_encode()
    yield pa.table({UID.name: uids(number_N), PHASH.name: code, "reason": reason})


def uids(number_N: NDArray[np.uint64]) -> pa.Array:
    """A uid for each row of the pool, by its number; in no order."""
    uid_N2 = np.stack([mixed(number_N ^ np.uint64(2**60)), number_N], axis=1).astype(">u8")
    return pa.FixedSizeBinaryArray.from_buffers(
        UID.dtype, len(number_N), [None, pa.py_buffer(uid_N2)]
    )


def codes(kind: Kind, number_N: NDArray[np.uint64], total: int) -> NDArray[np.uint64]:
    """(N,) the code of each row of the pool, by its number."""
    if kind == "equal":
        return np.zeros_like(number_N)
    if kind == "cube":
        return number_N.copy()
    if kind == "chain":
        step_M = np.zeros(int(number_N[-1]) + 1, np.uint64)
        for turn in range(3):
            bit_M = mixed(np.arange(len(step_M), dtype=np.uint64) ^ np.uint64(turn + 1 << 56))
            step_M ^= np.uint64(1) << bit_M % 64
        return np.bitwise_xor.accumulate(step_M)[number_N.astype(np.int64)]
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
