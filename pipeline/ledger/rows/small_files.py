"""Reads shards of small files by Polars, many at once, with each file's digest checked.

Polars decodes many files faster than Arrow does one by one, but ignores checksums: so a file is
read whole and its SHA-256 compared with its name; on a disk once per process, while size and time
stay the same. Large files are not read this way, as a query may need one narrow column of them.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import digest_in
from clipmill.metadata.schema import POSITION, REASON, SHARD
from clipmill.metadata.storage import Storage
from clipmill.pipeline.ledger.rows.columns import PLACE
from clipmill.pipeline.ledger.rows.query import Query, as_text, is_coded

SMALL_BYTES = 1 << 20  # largest file
AT_ONCE = 8  # shards of the first frame; doubles with each frame
FRAME_BYTES = 32 << 20  # most bytes of files per frame
READERS = 8  # threads for a store
DISK_READERS = 1  # one keeps ahead of Polars, which takes the other cores
MOST_KNOWN = 100_000  # files with cached digests
Files = dict[str, list[Future[str | bytes]]]  # by stage, one per shard


def is_small(query: Query, shard: int) -> bool:
    """Returns whether a shard has one small file per stage and only stored columns are read."""
    if query.condition or any(query.is_loaded(name) for name in query.bound):
        return False
    for name in query.used:
        stage = query.state.stages[name]
        state = stage.shards[shard]
        size = _size(query, name, shard)
        if len(state.files) > 1 or state.mask or state.listed or size > SMALL_BYTES:
            return False
    return True


def frames(
    query: Query, shards: Sequence[int], columns: Sequence[str], predicate: pl.Expr | None
) -> Iterator[pl.DataFrame]:
    """Yields the rows that stay, a few shards at a time; the next ones are read meanwhile.

    DamagedError if a file has changed.
    """
    judged = any(query.by_record(n) != _rows(query, n) for n in shards)
    names = dict.fromkeys(
        [*columns, *(predicate.meta.root_names() if predicate is not None else ())]
    )
    if judged:
        names |= {REASON.name: None}
    stages = list(dict.fromkeys([query.source(name)[0] for name in names]))
    groups = [*_groups(query, stages, shards)]
    states = {stage: query.state.stages[stage] for stage in stages}
    with ThreadPoolExecutor(DISK_READERS if query.state.run.is_local else READERS) as pool:

        def submit(group: Sequence[int]) -> Files:
            return {
                stage: [pool.submit(_sound, s.folder, s.shards[n].files[0]) for n in group]
                for stage, s in states.items()
            }

        following = submit(groups[0])
        for number, group in enumerate(groups):
            files = following
            following = submit(groups[number + 1]) if number + 1 < len(groups) else {}
            rows = _columns(query, group, files, list(names))
            if judged:
                rows = rows.filter(_is_wanted(query))
            rows = rows.with_columns(_shown(query, names))
            if predicate is not None:
                rows = rows.filter(predicate)
            yield rows.select(columns).collect()


def _groups(query: Query, stages: Sequence[str], shards: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yields the shards of each frame: few at first, as the caller waits for them, then up to
    FRAME_BYTES."""
    start, most = 0, AT_ONCE
    while start < len(shards):
        stop, nbytes = start, 0
        while stop < min(start + most, len(shards)) and nbytes < FRAME_BYTES:
            nbytes += sum(_size(query, stage, shards[stop]) for stage in stages)
            stop += 1
        yield shards[start:stop]
        start, most = stop, 2 * most


def _columns(
    query: Query, shards: Sequence[int], files: Files, names: Sequence[str]
) -> pl.LazyFrame:
    """Returns the columns of all rows of the shards, side by side."""
    parts = []
    for stage, read in files.items():
        source_of = {name: query.source(name) for name in names}
        columns = [
            pl.col(column).alias(name)
            for name, (source, column) in source_of.items()
            if source == stage and column not in PLACE
        ]
        if columns:
            sources: Any = [file.result() for file in read]
            scanned = pl.scan_parquet(sources, glob=False, hive_partitioning=False)
            parts.append(scanned.select(columns))
    if any(name in PLACE for name in names):
        parts.append(_places(query, shards).lazy().select(name for name in names if name in PLACE))
    return pl.concat(parts, how="horizontal") if len(parts) > 1 else parts[0]


def _places(query: Query, shards: Sequence[int]) -> pl.DataFrame:
    """Returns the shard and position of each row."""
    rows = [_rows(query, shard) for shard in shards]
    position = np.concatenate([np.arange(count, dtype=np.int32) for count in rows])
    shard = np.repeat(np.array(shards, np.int32), rows)
    return pl.DataFrame({SHARD.name: shard, POSITION.name: position})


def _shown(query: Query, names: Iterable[str]) -> Iterator[pl.Expr]:
    """Yields casts of the columns that are shown as text but stored otherwise."""
    for name in names:
        stage, column = query.source(name)
        if column not in PLACE and is_coded(query.state.plan.schema(stage, column)):
            yield as_text(name, query.state.plan.schema(stage, column))


def _is_wanted(query: Query) -> pl.Expr:
    """Returns an expression: whether the query wants a row, by its reason."""
    codes, are_wanted = query.codes
    if codes == {""}:
        return pl.col(REASON.name).is_null() if are_wanted else pl.col(REASON.name).is_not_null()
    is_listed = pl.col(REASON.name).cast(pl.String).fill_null("").is_in(sorted(codes))
    return is_listed if are_wanted else ~is_listed


def _rows(query: Query, shard: int) -> int:
    return query.state.stages[query.used[0]].shards[shard].rows


def _size(query: Query, stage: str, shard: int) -> int:
    """Returns the bytes of a shard's first file."""
    return query.state.stages[stage].scan.records[shard][0].size_bytes


def _sound(folder: Storage, name: str) -> str | bytes:
    """Returns a file as Polars reads it: its path on a disk, else its bytes.

    DamagedError if its digest does not match its name.
    """
    if folder.is_local:
        path = folder.locate(name)
        status = os.stat(path)
        source: str | bytes = path
        digest = sha256_of(path, status.st_size, status.st_mtime_ns)
    else:
        source = folder.read(name)
        digest = hashlib.sha256(source).hexdigest()
    if not digest.startswith(digest_in(name)):
        raise DamagedError(folder.uri, name, "it cannot be read: its bytes have changed")
    return source


@lru_cache(MOST_KNOWN)
def sha256_of(path: str, size: int, mtime_ns: int) -> str:
    """Returns the digest of a file of this size and time; cached, so that it is read once."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
