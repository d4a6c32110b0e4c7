"""The record of one finished shard, and how a folder of them is read back.

A stage's folder holds `000123-<digest>.parquet` (data, named by its content) and `000123.json` (its
record, which names one data file, so that two attempts cannot mix). `000123.p1.json` is a later
pass over rows that the first left out. Few objects hold all records again: see fold.py.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from metadata.fold import read_folds
from metadata.storage import Entry, Storage

RECORD_NAME = re.compile(r"(\d{6,})(?:\.p(\d+))?\.json")
FAILED = ".failed.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What one shard of a stage holds, and of what it was made."""

    shard: int
    number: int = 0  # of the pass
    data: str | None  # object name; None for a pass that found nothing to do
    size_bytes: int
    sha256: str  # of the data file
    rows: int  # of the shard
    computed: int  # rows this pass computed
    uid_sha256: str
    parents: dict[str, str]  # stage to the digest of its shard
    mask: str | None = None  # digest of the `only:` shard
    counts: dict[str, int] = field(default_factory=dict)  # reason to rows; "" counts the fine ones
    source: dict[str, Any] | None = None  # of a root's shard
    seconds: float = 0.0
    attempts: int = 1
    page_checksums: bool = False  # of the data file: older ones have none

    @property
    def name(self) -> str:
        return record_name(self.shard, self.number)

    def to_json(self) -> str:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Record":
        try:
            return _DECODER.decode(text)
        except msgspec.DecodeError:  # it knows no NaN, nor half of a surrogate: a source may
            return msgspec.convert(json.loads(text), cls)


_DECODER = msgspec.json.Decoder(Record)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardState:
    """A finished shard as its readers see it: its files by pass, and one digest of them all."""

    rows: int
    files: tuple[str, ...]
    digest: str
    mask: "ShardState | None" = None  # rows outside it read as null, `not_selected`
    source: dict[str, Any] | None = None


@dataclass(frozen=True)
class Failure:
    """Why a shard was set aside: `<shard>.failed.json`."""

    shard: int
    parents: dict[str, str]
    crashed: bool  # ended its worker each time: left alone until asked
    found: str
    where: str
    do: str

    @property
    def name(self) -> str:
        return f"{self.shard:06d}{FAILED}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a run goes by in `manifest.json`: the stage is complete, and made of what."""

    shards: int
    rows: int
    inputs: str
    # Of a dataset stage:
    outside: str = ""
    digest: str = ""
    outputs: tuple[tuple[str, int], ...] = ()  # name and bytes of each file in out/
    output_sha256: dict[str, str] = field(default_factory=dict)  # of each; older ones have none
    page_checksums: bool = False  # of Parquet files in out/
    seconds: float | None = None

    @property
    def made_of(self) -> dict[str, str]:
        """The parents of its records."""
        return {"inputs": self.inputs, **({"outside": self.outside} if self.outside else {})}


@dataclass
class Scan:
    """What a stage's folder holds: records by shard and pass, failures, and the manifest."""

    records: dict[int, list[Record]]
    failures: dict[int, Failure]
    manifest: Manifest | None
    attempts: tuple[str, ...] = ()  # objects that a run left which was killed
    folded: bool = False  # whether the fold holds every record, and all of them
    parts: int = 0  # number of the next part of a fold
    lost: list[Record] = field(default_factory=list)  # whose data is gone, or of another size
    outputs: tuple[tuple[str, int], ...] = ()  # name and bytes of each file in out/

    @property
    def changed(self) -> int:
        """Files that are gone, of another size, or nobody's."""
        held = self.manifest.outputs if self.manifest else ()
        return len(self.lost) + len({name for name, _ in set(held) ^ set(self.outputs)})

    @property
    def unchecked(self) -> frozenset[int]:
        """Lost shards that were written without page checksums: so they are made again."""
        return frozenset(record.shard for record in self.lost if not record.page_checksums)


def record_name(shard: int, number: int = 0) -> str:
    return f"{shard:06d}.json" if number == 0 else f"{shard:06d}.p{number}.json"


def data_name(shard: int, number: int, sha256: str) -> str:
    stem = f"{shard:06d}" if number == 0 else f"{shard:06d}.p{number}"
    return f"{stem}-{sha256[:16]}.parquet"


def digest_in(data: str) -> str:
    """What the SHA-256 of a data file begins with, from its name."""
    return data.rpartition("-")[2].removesuffix(".parquet")


def state_of(records: list[Record], mask: ShardState | None) -> ShardState:
    """How readers see the passes of one shard under today's mask."""
    files = tuple(record.data for record in records if record.data)
    parts = [record.sha256 for record in records if record.data]
    if mask is not None:
        parts.append(mask.digest)
    joined = parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
    return ShardState(
        rows=records[0].rows,
        files=files,
        digest=joined[:32],
        mask=mask,
        source=records[0].source,
    )


def scan(folder: Storage) -> Scan:
    """Everything known about a stage's shards: one listing, the folds, and what is newer than them.

    A record counts only if its data file is listed with the size it states.
    """
    entries = {entry.name: entry for entry in folder.entries()}
    names = [name for name in entries if RECORD_NAME.fullmatch(name)]
    folds = read_folds(folder, entries, _parse)
    parsed = folds.records
    newer = [name for name in names if name not in parsed]
    with ThreadPoolExecutor(16) as pool:  # waits on a disk or a network
        for name, data in zip(newer, pool.map(folder.read_if_there, newer), strict=True):
            if data is not None:
                parsed[name] = _parse(name, data.decode("utf-8", "replace"))
    passes: dict[int, dict[int, Record]] = {}
    lost: list[Record] = []
    for record in parsed.values():
        if record is None:
            continue
        if _is_there(record, entries):
            passes.setdefault(record.shard, {})[record.number] = record
        else:
            lost.append(record)
    records = {shard: _unbroken(found) for shard, found in passes.items() if 0 in found}
    failures = {
        failure.shard: failure
        for name in entries
        if name.endswith(FAILED)
        and (failure := folder.read_json(name, Failure))
        and failure.name == name
    }
    manifest = folder.read_json("manifest.json", Manifest) if "manifest.json" in entries else None
    attempts = tuple(name for name in entries if name.endswith(".attempt"))
    is_folded = folds.are_one and not newer and folds.names == parsed.keys()
    has_outputs = manifest is not None and manifest.outputs
    outputs = folder.entries("out", below=True) if has_outputs else []
    named = tuple(sorted((entry.name, entry.size) for entry in outputs))
    return Scan(records, failures, manifest, attempts, is_folded, folds.parts, lost, named)


def _parse(name: str, text: str) -> Record | None:
    """The record, or None where it is torn."""
    try:
        record = Record.from_json(text)
    except (ValueError, TypeError):
        return None
    return record if record.name == name else None


def _is_there(record: Record, entries: dict[str, Entry]) -> bool:
    """Whether the data is listed as the record says."""
    if record.data is None:
        return True
    entry = entries.get(record.data)
    is_its_name = record.sha256.startswith(digest_in(record.data))
    return is_its_name and entry is not None and entry.size == record.size_bytes


def _unbroken(found: dict[int, Record]) -> list[Record]:
    """Passes 0, 1, 2 … up to the first that is missing."""
    records: list[Record] = []
    while len(records) in found:
        records.append(found[len(records)])
    return records
