"""A pool of captions out of nothing: words by Zipf's law, some near copies, some of a template."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import TEXT, UID
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage

from .codes import mixed, uids

# Shapes: N captions, W words of them all in a row.

VOCABULARY, COPIES, MOST_WORDS = 50_000, 10, 15
LETTERS = np.frombuffer(b"eeettaaooiinnsshhrrdllucmfwypbgk", np.uint8)  # 32, common ones twice


@dataclass(frozen=True, kw_only=True)
class Captions(DatasetStage):
    """A caption for every row, 4 to 14 words; one in ten copies another, with a word changed.

    The first `templates` of a thousand rows say the same but for their number.
    """

    shards: int
    shard_rows: int
    templates: int = 50

    version = 1
    determinism = "exact"
    takes = ()
    writes = (TEXT,)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        sources = [{"shard": shard, "digest": str(shard)} for shard in range(self.shards)]
        ctx.create_shards(partial(made, self), sources)


def made(stage: Captions, source: Mapping[str, Any], task: Task) -> Iterator[pa.Table]:
    """The shard's rows, in parts: a shard's words are many."""
    first = source["shard"] * stage.shard_rows
    for start in range(first, first + stage.shard_rows, 10_000):
        stop = min(start + 10_000, first + stage.shard_rows)
        number_N = np.arange(start, stop, dtype=np.uint64)
        text = captions(number_N, stage.shards * stage.shard_rows, stage.templates)
        reason = pa.nulls(len(text), pa.string()).dictionary_encode()
        yield pa.table({UID.name: uids(number_N), TEXT.name: text, "reason": reason})


def captions(number_N: NDArray[np.uint64], total: int, templates: int) -> pa.Array:
    """The caption of each row of the pool, by its number."""
    chance_N = mixed(number_N ^ np.uint64(2**61))
    original_N = originals(number_N, total)
    length_N = 4 + (mixed(original_N ^ np.uint64(2**59)) % np.uint64(11)).astype(np.int64)
    end_N = np.cumsum(length_N)
    place_W = np.arange(end_N[-1]) - np.repeat(end_N - length_N, length_N)
    word_W = np.repeat(original_N, length_N) * np.uint64(MOST_WORDS) + place_W.astype(np.uint64)
    changed_N = end_N - 1 - (chance_N >> np.uint64(8)).astype(np.int64) % length_N
    changed_N = changed_N[original_N != number_N]
    word_W[changed_N] ^= np.uint64(2**58)
    uniform_W = (mixed(word_W) >> np.uint64(11)) * 2.0**-53
    rank_W = (VOCABULARY**uniform_W).astype(np.int32)  # the density of a rank falls as 1 / rank
    words = vocabulary().take(pa.array(rank_W))
    offsets = pa.array(np.append(0, end_N).astype(np.int32))
    plain = pc.binary_join(pa.ListArray.from_arrays(offsets, words), " ")
    number = pa.array(number_N).cast(pa.string())
    template = pc.binary_join_element_wise("photo number", number, "of the city museum", " ")
    return pc.if_else(pa.array(number_N % 1000 < templates), template, plain)


def originals(number_N: NDArray[np.uint64], total: int) -> NDArray[np.uint64]:
    """(N,) the row that each copies; a row that copies none, itself."""
    chance_N = mixed(number_N ^ np.uint64(2**61))
    return np.where(chance_N % COPIES == 0, (chance_N >> np.uint64(4)) % total, number_N)


def vocabulary() -> pa.Array:
    """Words of 2 to 9 letters."""
    number_V = np.arange(VOCABULARY + 1, dtype=np.uint64)
    end_V = np.cumsum(2 + mixed(number_V) % np.uint64(8)).astype(np.int32)
    letter = LETTERS[mixed(np.arange(end_V[-1], dtype=np.uint64) ^ np.uint64(2**57)) % 32]
    bounds = np.append(np.int32(0), end_V)
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(np.ascontiguousarray(letter))]
    return pa.Array.from_buffers(pa.string(), len(end_V), buffers)
