"""Finds the rows of an export that a list of uids or a subset file names.

A list is DataComp's .npy or a text of one uid a line, and a multiset: a uid listed k times counts
k times, in every row that has it. A subset file (metadata/subset_file.py) is joined by place if it
has shard and position, else by uid.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.globs import open_pool
from clipmill.metadata.keys import redacted
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import places_name, read_places, unplaced
from clipmill.metadata.schema import LOSS_WEIGHT, POSITION, REPEATS, SHARD, TEXTS, UID
from clipmill.metadata.storage import Storage
from clipmill.metadata.subset_file import check_subset, read_subset
from clipmill.pipeline.dataset import Mask, Task
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.tables.uid_lists import opened

# Shapes: N rows of an exported file, K entries of a subset.

READERS = 8  # files whose uids are read at a time: the time goes into disk or network
KEY = "key `subset`"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A subset's choice of a file's rows: repeats, and weights and texts that replace its own."""

    times: NDArray[np.int32]  # (N,) repeats; 0 is left out
    weights: NDArray[np.float32] | None = None  # (N,) NaN: the export's weight
    texts: pa.Array | None = None  # (N,) lists of text; null: the export's texts

    @property
    def digest(self) -> str:
        """SHA-256 of repeats, weights and texts."""
        total = hashlib.sha256(self.times.tobytes())
        if self.weights is not None:
            total.update(self.weights.tobytes())
        if self.texts is not None:
            total.update(json.dumps(self.texts.to_pylist()).encode())
        return total.hexdigest()

    def of(self, rows: pa.Table, start: int) -> pa.Table:
        """Applies the choice to rows from `start` on, and drops others; texts are string lists."""
        here = slice(start, start + len(rows))
        columns: dict[str, Any] = {REPEATS.name: pa.array(self.times[here])}
        if self.weights is not None:
            weight = pa.array(self.weights[here], from_pandas=True)  # NaN is null
            columns[LOSS_WEIGHT.name] = pc.coalesce(weight, rows[LOSS_WEIGHT.name])
        if self.texts is not None:
            own = pa.concat_arrays(rows[TEXTS.name].chunks)
            both = pa.concat_arrays([own, self.texts[here]])
            row_N = np.arange(len(rows))
            is_own_N = self.texts[here].is_null().to_numpy(zero_copy_only=False)
            columns[TEXTS.name] = both.take(pa.array(np.where(is_own_N, row_N, row_N + len(rows))))
        for name, values in columns.items():
            rows = rows.set_column(rows.column_names.index(name), name, values)
        return rows.filter(pc.greater(columns[REPEATS.name], 0))


Chooser = Callable[[str], Chosen]  # takes the name of an exported file


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The entries of a list or a subset file, sorted by key."""

    keys: NDArray[Any]  # (K,) uids as S16; or places, shard << 32 | position
    uids: NDArray[np.bytes_]  # (K,)
    times: NDArray[np.int32]  # (K,)
    weights: NDArray[np.float32] | None = None  # (K,)
    texts: pa.Array | None = None  # (K,) lists of text

    def find(self, data: str, file: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Returns (N,) the entry of each row of a file, and (N,) whether it has one."""
        outputs = Outputs(Storage(data))
        with outputs.parquet(file) as parquet:
            uid_N = _as_bytes(parquet.read([UID.name])[UID.name])
        key_N: NDArray[Any] = uid_N
        if self.keys.dtype == np.int64:  # places
            try:
                key_N = place_keys(*read_places(outputs, places_name(file)).T)
            except FileNotFoundError:
                raise StageError(*unplaced(outputs, file)) from None
        if not len(self.keys):
            return np.zeros(len(key_N), np.int64), np.zeros(len(key_N), bool)
        entry_N = np.minimum(np.searchsorted(self.keys, key_N), len(self.keys) - 1)
        is_there_N = self.keys[entry_N] == key_N
        other_N = is_there_N & (self.uids[entry_N] != uid_N)
        if other_N.any():
            row = int(np.flatnonzero(other_N)[0])
            found = f"at a place that the subset names stands another uid, {uid_N[row].hex():0<32}"
            found += f"; the subset says {self.uids[entry_N[row]].hex():0<32}"
            do = "make the subset anew from the pool that this export is of"
            raise StageError(found, f"{KEY}: row {row} of {file}", do)
        return entry_N, is_there_N

    def chosen(self, data: str, file: str) -> Chosen:
        """Returns the choice of a file's rows."""
        entry_N, is_there_N = self.find(data, file)
        times_N = np.zeros(len(entry_N), np.int32)
        times_N[is_there_N] = self.times[entry_N[is_there_N]]
        weight_N = texts = None
        if self.weights is not None:
            weight_N = np.full(len(entry_N), np.nan, np.float32)
            weight_N[is_there_N] = self.weights[entry_N[is_there_N]]
        if self.texts is not None:
            texts = self.texts.take(pa.array(entry_N, mask=~is_there_N))
        return Chosen(times=times_N, weights=weight_N, texts=texts)


def chooser_of(data: str, mask: Mask | None, subset: str | None) -> Chooser | None:
    """Returns the chooser of a select stage or a subset file; None for all rows. Picklable."""
    if mask is not None:
        return partial(_kept, mask)
    return partial(_listed, subset, subset_digest(subset), data) if subset is not None else None


def _kept(mask: Mask, file: str) -> Chosen:
    return Chosen(times=mask.times(file))


def _listed(path: str, digest: str, data: str, file: str) -> Chosen:
    return read(path, digest).chosen(data, file)


def subset_digest(path: str) -> str:
    """Returns the SHA-256 of a subset's file."""
    storage, name = open_pool(path)
    return storage.sha256(name)


@lru_cache(1)  # a worker reads it for many files
def read(path: str, digest: str) -> Subset:
    """Reads a subset; raises StageError if the file is none. Memory: 36 bytes an entry, and texts.

    `digest` is the cache's key: a changed file is read again.
    """
    storage, name = open_pool(path)
    if not _is_parquet(storage, name):
        listed = opened(path, KEY)
        uid_L = np.concatenate([np.empty(0, "S16"), *(_as_bytes(t[UID.name]) for t in listed)])
        uid_K, times_K = np.unique(uid_L, return_counts=True)
        return Subset(keys=uid_K, uids=uid_K, times=times_K.astype(np.int32))
    try:
        with storage.open(name) as source, pq.ParquetFile(source) as file:
            return _sorted(read_subset(file).combine_chunks())
    except (ValueError, pa.ArrowException) as error:
        raise _unfit(path, error) from None


def _sorted(rows: pa.Table) -> Subset:
    """Sorts the rows of a subset file by key; raises ValueError if a key repeats."""
    uid_K = _as_bytes(rows[UID.name])
    key_K: NDArray[Any] = uid_K
    if SHARD.name in rows.column_names:
        key_K = place_keys(rows[SHARD.name].to_numpy(), rows[POSITION.name].to_numpy())
    order_K = np.argsort(key_K, kind="stable")
    key_K = key_K[order_K]
    if (twice := int(np.count_nonzero(key_K[1:] == key_K[:-1]))) > 0:
        raise ValueError(f"{twice} rows named twice; `repeats` says how often a row counts")

    def column(name: str, otherwise: float) -> NDArray[Any]:
        if name not in rows.column_names:
            return np.full(len(rows), otherwise)
        return rows[name].fill_null(otherwise).to_numpy()[order_K]

    has_weights = LOSS_WEIGHT.name in rows.column_names
    has_texts = TEXTS.name in rows.column_names
    return Subset(
        keys=key_K,
        uids=uid_K[order_K],
        times=column(REPEATS.name, 1).astype(np.int32),
        weights=column(LOSS_WEIGHT.name, np.nan).astype(np.float32) if has_weights else None,
        texts=text_lists(rows[TEXTS.name]).take(pa.array(order_K)) if has_texts else None,
    )


def look_at(path: str) -> bool:
    """Returns whether a subset replaces texts; raises StageError if it is neither list nor file."""
    storage, name = open_pool(path)
    try:
        if _is_parquet(storage, name):
            with storage.open(name) as source:
                schema = pq.read_schema(source)
            check_subset(schema)
            return TEXTS.name in schema.names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unfit(path, error) from None
    opened(path, KEY)
    return False


def _is_parquet(storage: Storage, name: str) -> bool:
    return storage.read_at(name, 0, 4) == b"PAR1"


def _unfit(path: str, error: Exception) -> StageError:
    do = "give a .npy of dtype u8,u8, a text of one uid a line, or a subset file (docs/training.md)"
    return StageError(f"no subset: {error}", f"{KEY}: {redacted(path)}", do)


def counted(
    path: str, digest: str, data: str, files: Sequence[str], item: int, task: Task
) -> dict[str, int]:
    """Counts a subset's entries, those that the export has no row for, and the rows chosen."""
    subset = read(path, digest)
    is_met_K = np.zeros(len(subset.keys), bool)
    rows = 0
    with ThreadPoolExecutor(READERS) as readers:
        for entry_N, is_there_N in readers.map(partial(subset.find, data), files):
            is_met_K[entry_N[is_there_N]] = True
            rows += int(np.count_nonzero(subset.times[entry_N[is_there_N]]))
    return {"listed": len(is_met_K), "not_there": int((~is_met_K).sum()), "rows": rows}


def _as_bytes(uid: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Converts uids to (N,) S16, which sorts by bytes."""
    array = pa.concat_arrays(uid.chunks) if uid.num_chunks else pa.array([], UID.dtype)
    data = np.frombuffer(array.buffers()[1] or b"", np.uint8)[16 * array.offset :]
    return data[: 16 * len(array)].view("S16")


def place_keys(shard_N: NDArray[np.int32], position_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns (N,) one number for each place (shard and position) in the pool."""
    return shard_N.astype(np.int64) << 32 | position_N.astype(np.int64)


def text_lists(texts: pa.ChunkedArray) -> pa.Array:
    """Converts a TEXT_LIST to (N,) lists of strings; null lists stay null."""
    text = pl.element().struct.field("text").cast(pl.String)
    return pl.Series(texts).list.eval(text).to_arrow().cast(pa.list_(pa.string()))
