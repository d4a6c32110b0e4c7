"""The seal of a large stage that is complete: what a start needs of it, without a listing.

`sealed.json` comes last and holds totals of the records. While it lies there, the records are those
of `records.parquet`, which is read where somebody asks for a shard: one row group of it, or all.
Whoever is about to write to the folder or to delete in it breaks the seal first. A start looks at
`records.parquet` and at some shards, other ones each time: where a file of theirs is gone or has
changed, it lists the folder.
"""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.compaction import COMPACTED, LISTED
from clipmill.metadata.damage import DamagedError
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.parquet_file import UNREADABLE
from clipmill.metadata.record import Manifest, Record, ShardState
from clipmill.metadata.records import RECORD, Records
from clipmill.metadata.sealed import put_sealed, read_sealed_as
from clipmill.metadata.storage import Entry, Storage

SEAL = "sealed.json"
LARGE = 4096  # shards of a stage that has a seal; smaller ones are listed whole
DRAWN = 64  # shards that a start looks at: where 5 % are damaged, 96 of 100 starts see it
READERS = 16  # threads that wait for a store


@dataclass(frozen=True, kw_only=True)
class Seal:
    """Totals over all records of a complete stage, and the digests that it stands by."""

    manifest: str  # digest of manifest.json
    made_of: dict[str, str]  # stage to the digest of all its shards, or of its files
    compaction: tuple[int, str]  # bytes and SHA-256 of records.parquet
    group: int  # records in each of its row groups but the last
    records: int
    computed: int
    size_bytes: int
    attempts: int
    seconds: float
    counts: dict[str, int] | None  # rows by reason; None if only the files tell
    codes: list[str]


def put_seal(
    folder: Storage, manifest: Manifest, made_of: dict[str, str], records: pa.Table, **counted: Any
) -> Seal:
    """Seals a complete folder whose compaction has these records; `counted`: counts and codes."""
    data = folder.read(COMPACTED)
    stored = pq.read_metadata(pa.BufferReader(data))
    names = ("computed", "size_bytes", "attempts", "seconds")
    seal = Seal(
        manifest=_digest(manifest),
        made_of=made_of,
        compaction=(len(data), hashlib.sha256(data).hexdigest()),
        group=stored.row_group(0).num_rows,
        records=stored.num_rows,
        **{name: pc.sum(records[name]).as_py() for name in names},
        **counted,
    )
    put_sealed(folder, SEAL, asdict(seal), point="manifest")
    return seal


def read_seal(folder: Storage, manifest: Manifest) -> Seal | None:
    """Returns the seal of a folder; None without one, or where a look finds something changed."""
    seal = read_sealed_as(folder, SEAL, Seal)
    if seal is None or seal.manifest != _digest(manifest):
        return None
    try:
        drawn = _drawn(folder, seal, np.random.default_rng(time.time_ns()))  # changes no result
    except (*UNREADABLE, FileNotFoundError):
        return None
    with ThreadPoolExecutor(READERS) as pool:
        return seal if all(pool.map(partial(_is_there, folder), drawn)) else None


def is_large(manifest: Manifest) -> bool:
    return manifest.shards >= LARGE


def _digest(manifest: Manifest) -> str:
    return digest(asdict(replace(manifest, seconds=None)))


def _is_there(folder: Storage, due: Entry) -> bool:
    try:
        info = folder.fs.get_file_info(folder.locate(due.name))
    except OSError:  # the listing asks again, and waits
        return False
    return bool(info.size == due.size and info.mtime_ns == (due.mtime_ns or info.mtime_ns))


def _drawn(folder: Storage, seal: Seal, rng: "np.random.Generator") -> list[Entry]:
    """Returns the compaction, and data and record of DRAWN passes, as they are due."""
    columns = ["data", "size_bytes", *LISTED.names]
    row_D = np.sort(rng.choice(seal.records, min(DRAWN, seal.records), replace=False))
    with folder.open(COMPACTED) as source, _opened(source) as file:
        groups = np.unique(row_D // seal.group)
        table = file.read_row_groups(groups.tolist(), columns, use_threads=False)
    before_D = np.searchsorted(groups, row_D // seal.group) * seal.group
    drawn = table.take(before_D + row_D % seal.group)
    data = zip(drawn["data"].to_pylist(), drawn["size_bytes"].to_pylist(), strict=True)
    records = zip(*(drawn[name].to_pylist() for name in LISTED.names), strict=True)
    return [
        Entry(COMPACTED, seal.compaction[0], 0),
        *(Entry(name, size, 0) for name, size in data if name),
        *(Entry(*record) for record in records),
    ]


def _opened(source: Any) -> pq.ParquetFile:
    return pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)


def read_group(folder: Storage, size: int, shards: int, group: int) -> Records | None:
    """Reads a row group of the compaction; None where it is not that of its shards."""
    try:
        with folder.open(COMPACTED) as source, _opened(source) as file:
            table = file.read_row_group(group, RECORD.names, use_threads=False).cast(RECORD)
    except (*UNREADABLE, FileNotFoundError):
        return None
    due = np.arange(group * size, min((group + 1) * size, shards))
    return Records(table) if np.array_equal(table["shard"], due) else None


class SealedRecords(Records):
    """The records of a sealed stage, read from its compaction when they are asked for."""

    def __init__(
        self, folder: Storage, seal: Seal, shards: int, listed: Callable[[], Records]
    ) -> None:
        super().__init__(RECORD.empty_table())
        self.folder, self.seal, self.listed = folder, seal, listed
        self._is_read = False
        self._shard_N: NDArray[np.int64] = np.arange(shards)
        self._group = lru_cache(4)(partial(read_group, folder, seal.group, shards))  # no circle

    def __getitem__(self, shard: int) -> list[Record]:
        part = self._part(shard)
        return super().__getitem__(shard) if part is None else part[shard]

    def state(self, shard: int, mask: ShardState | None) -> ShardState:
        part = self._part(shard)
        return super().state(shard, mask) if part is None else part.state(shard, mask)

    def put(self, shard: int, records: list[Record]) -> None:
        self._settle()
        super().put(shard, records)

    @property
    def shards(self) -> NDArray[np.int64]:
        return super().shards if self._is_read else self._shard_N

    def __len__(self) -> int:
        return len(self.shards)

    def _part(self, shard: int) -> Records | None:
        """Returns records around a shard; None once, or where, all are read."""
        if self._is_read or self.seal.records != len(self._shard_N) or shard not in self:
            self._settle()
            return None
        part = self._group(shard // self.seal.group)
        if part is None:
            self._settle()
        return part

    def _settle(self) -> None:
        if not self._is_read:
            self._index(self._whole())
            self._is_read = True
        super()._settle()

    def _whole(self) -> pa.Table:
        """Reads all records, one by one if the compaction is not as it was sealed."""
        data = self.folder.read_if_there(COMPACTED) or b""
        if hashlib.sha256(data).hexdigest() == self.seal.compaction[1]:
            with _opened(pa.BufferReader(data)) as file:
                return file.read(RECORD.names, use_threads=False).cast(RECORD)
        listed = self.listed()
        if len(listed) < len(self._shard_N):
            raise DamagedError(self.folder.uri, SEAL, "shards are gone since it was stored")
        return listed.table(listed.shards)
