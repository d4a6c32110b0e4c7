"""Shards of small whole files, many at once: read by Polars, each file held to its digest.

Polars decodes many files in less time than Arrow does one by one, and passes over checksums: so a
file is read as a whole, and its SHA-256 compared with its name; on a disk once in a process, while
its size and time stay. Large ones are not read so, as a query may ask for one narrow column of
them.
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

SMALL_BYTES = 1 << 20  # of a file
AT_ONCE = 8  # shards, of the first frame; of later ones twice as many each time
FRAME_BYTES = 32 << 20  # of files behind one frame
READERS = 8  # threads, where they wait for a store
DISK_READERS = 1  # it keeps ahead of Polars, which takes the other cores
MOST_KNOWN = 100_000  # files, whose digests are kept
Files = dict[str, list[Future[str | bytes]]]  # by stage, one a shard


def is_small(query: Query, shard: int) -> bool:
    """Whether a shard can be read so: small files, one a stage, and nothing but stored columns."""
    if query.condition or any(query.is_loaded(name) for name in query.bound):
        return False
    for name in query.used:
        stage = query.state.stages[name]
        state = stage.shards[shard]
        size = _size(query, name, shard)
        if len(state.files) > 1 or state.mask is not None or size > SMALL_BYTES:
            return False
    return True


def frames(
    query: Query, shards: Sequence[int], wanted: Sequence[str], predicate: pl.Expr | None
) -> Iterator[pl.DataFrame]:
    """The rows that stay, of a few shards at a time; the next ones are read while these are used.

    DamagedError where a file has changed.
    """
    judged = any(query.by_record(n) != _rows(query, n) for n in shards)
    names = dict.fromkeys(
        [*wanted, *(predicate.meta.root_names() if predicate is not None else ())]
    )
    if judged:
        names |= {REASON.name: None}
    stages = list(dict.fromkeys([query.source(name)[0] for name in names]))
    groups = [*_groups(query, stages, shards)]
    with ThreadPoolExecutor(DISK_READERS if query.state.run.is_local else READERS) as pool:

        def ask(group: Sequence[int]) -> Files:
            return {
                stage: [pool.submit(_sound, *_file(query, stage, shard)) for shard in group]
                for stage in stages
            }

        ahead = ask(groups[0])
        for number, group in enumerate(groups):
            files = ahead
            ahead = ask(groups[number + 1]) if number + 1 < len(groups) else {}
            rows = _columns(query, group, files, list(names))
            if judged:
                rows = rows.filter(_is_wanted(query))
            rows = rows.with_columns(_shown(query, names))
            if predicate is not None:
                rows = rows.filter(predicate)
            yield rows.select(wanted).collect()


def _groups(query: Query, stages: Sequence[str], shards: Sequence[int]) -> Iterator[Sequence[int]]:
    """The shards of each frame: few at first, as the first ones are waited for, then as many as
    are so many bytes."""
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
    """The columns of all rows of the shards, side by side."""
    parts = []
    for stage, read in files.items():
        sought = {name: query.source(name) for name in names}
        columns = [
            pl.col(column).alias(name)
            for name, (source, column) in sought.items()
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
    """The shard and position of each row."""
    rows = [_rows(query, shard) for shard in shards]
    position = np.concatenate([np.arange(count, dtype=np.int32) for count in rows])
    shard = np.repeat(np.array(shards, np.int32), rows)
    return pl.DataFrame({SHARD.name: shard, POSITION.name: position})


def _shown(query: Query, names: Iterable[str]) -> Iterator[pl.Expr]:
    """The columns that are text, where they are stored otherwise."""
    for name in names:
        stage, column = query.source(name)
        if column not in PLACE and is_coded(query.state.plan.schema(stage, column)):
            yield as_text(name, query.state.plan.schema(stage, column))


def _is_wanted(query: Query) -> pl.Expr:
    """Whether a row is asked for, by its reason."""
    codes, are_wanted = query.codes
    if codes == {""}:
        return pl.col(REASON.name).is_null() if are_wanted else pl.col(REASON.name).is_not_null()
    found = pl.col(REASON.name).cast(pl.String).fill_null("").is_in(sorted(codes))
    return found if are_wanted else ~found


def _rows(query: Query, shard: int) -> int:
    return query.state.stages[query.used[0]].shards[shard].rows


def _size(query: Query, stage: str, shard: int) -> int:
    """Bytes of its first file."""
    return query.state.stages[stage].scan.records[shard][0].size_bytes


def _file(query: Query, stage: str, shard: int) -> tuple[Storage, str]:
    at = query.state.stages[stage]
    return at.folder, at.shards[shard].files[0]


def _sound(folder: Storage, name: str) -> str | bytes:
    """A file as Polars reads it: its path, or its bytes where it is elsewhere.

    DamagedError where its digest is not the one in its name.
    """
    if folder.is_local:
        path = folder.locate(name)
        at = os.stat(path)
        found: str | bytes = path
        digest = sha256_of(path, at.st_size, at.st_mtime_ns)
    else:
        found = folder.read(name)
        digest = hashlib.sha256(found).hexdigest()
    if not digest.startswith(digest_in(name)):
        raise DamagedError(folder.uri, name, "it cannot be read: its bytes have changed")
    return found


@lru_cache(MOST_KNOWN)
def sha256_of(path: str, size: int, mtime_ns: int) -> str:
    """The digest of a file that has this size and time: asked again, it is not read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
