"""Scans a stage's folder: one listing, the compactions, and the records newer than them.

A large stage that is sealed is not listed (stage_seal.py).
"""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.compaction import read_compacted
from clipmill.metadata.record import FAILED, MANIFEST, Failure, Manifest, Record, digest_in, parsed
from clipmill.metadata.records import RECORD, Records, records_of, table_of
from clipmill.metadata.sealed import read_sealed_as
from clipmill.metadata.stage_seal import Seal, SealedRecords, is_large, read_seal
from clipmill.metadata.storage import Storage

RECORD_NAME = re.compile(r"\d{6,}(\.p\d+)?\.json")
FEW = 64  # files that are read from a disk sooner than threads start
DIGITS = slice(-24, -8)  # of a data file's name: its digest


@dataclass
class Scan:
    """The contents of a stage's folder: records by shard and pass, failures, the manifest."""

    records: Records
    failures: dict[int, Failure]
    manifest: Manifest | None
    attempts: tuple[str, ...] = ()  # objects left by a killed run
    compacted: bool = False  # one whole compaction holds every record
    parts: int = 0  # number of the next part of a compaction
    lost: list[Record] = field(default_factory=list)  # their data is gone or of another size
    torn: tuple[str, ...] = ()  # records and manifest that cannot be parsed, or fail their digest
    outputs: tuple[tuple[str, int], ...] = ()  # name and bytes of each file in out/
    seal: Seal | None = None  # the folder was not listed

    @property
    def changed(self) -> int:
        """Returns the number of files that are gone, of another size, or not in the manifest."""
        listed = self.manifest.outputs if self.manifest else ()
        return len(self.lost) + len({name for name, _ in set(listed) ^ set(self.outputs)})

    @property
    def unchecked(self) -> frozenset[int]:
        """Returns lost shards that had no page checksums; they are rewritten without."""
        return frozenset(record.shard for record in self.lost if not record.page_checksums)


def glance(folder: Storage) -> Scan:
    """Takes the records of a sealed folder from its seal; else scans it."""
    manifest = _manifest(folder)
    seal = read_seal(folder, manifest) if manifest and is_large(manifest) else None
    if manifest is None or seal is None:
        return scan(folder)
    return Scan(
        records=SealedRecords(folder, seal, manifest.shards, lambda: scan(folder).records),
        failures={},
        manifest=manifest,
        compacted=True,
        outputs=_outputs(folder, manifest),
        seal=seal,
    )


def scan(folder: Storage) -> Scan:
    """Scans a stage's folder.

    A record counts only if its data file is listed with the recorded size.
    """
    listing = folder.listing()
    name = listing["name"]
    compacted = read_compacted(folder, listing)
    is_compacted = pc.is_in(name, value_set=compacted.records["name"].combine_chunks())
    is_other = pc.and_not(pc.invert(is_compacted), pc.ends_with(name, ".parquet"))
    others: list[str] = name.filter(is_other).to_pylist()
    newer = [other for other in others if RECORD_NAME.fullmatch(other)]
    read = _read_records(folder, newer)
    torn = [other for other, record in read.items() if record is None]
    table = compacted.records.select(RECORD.names)
    if whole := [record for record in read.values() if record is not None]:
        table = pa.concat_tables([table, _storable(whole)])
    is_there_R = _are_there(table, listing)
    lost = [] if is_there_R.all() else records_of(table.filter(pa.array(~is_there_R)))
    if torn:  # the compaction has their old contents
        is_torn = pc.is_in(compacted.changed["name"], value_set=pa.array(torn, pa.string()))
        lost += records_of(compacted.changed.filter(is_torn).select(RECORD.names))
    failures = {
        other: folder.read_json(other, Failure) for other in others if other.endswith(FAILED)
    }
    manifest = _manifest(folder) if MANIFEST in others else None
    if MANIFEST in others and manifest is None:
        torn.append(MANIFEST)
    return Scan(
        records=Records(table if is_there_R.all() else table.filter(pa.array(is_there_R))),
        failures={held.shard: held for own, held in failures.items() if held and held.name == own},
        manifest=manifest,
        attempts=tuple(other for other in others if other.endswith(".attempt")),
        compacted=compacted.is_single and not newer,
        parts=compacted.parts,
        lost=lost,
        torn=tuple(torn),
        outputs=_outputs(folder, manifest) if manifest else (),
    )


def _manifest(folder: Storage) -> Manifest | None:
    manifest = read_sealed_as(folder, MANIFEST, Manifest)
    is_own = manifest is not None and folder.path.endswith(manifest.fingerprint)
    return manifest if is_own else None


def _outputs(folder: Storage, manifest: Manifest) -> tuple[tuple[str, int], ...]:
    """Returns name and bytes of each file in out/, if the manifest has some."""
    entries = folder.entries("out", below=True) if manifest.outputs else []
    known = {name for name, _ in manifest.outputs}
    # A file manager leaves `.DS_Store` where somebody looks.
    ours = (e for e in entries if e.name in known or "/." not in f"/{e.name}")
    return tuple(sorted((entry.name, entry.size) for entry in ours))


def _read_records(folder: Storage, names: list[str]) -> dict[str, Record | None]:
    """Reads the records that are still there, by name; None for one that is torn."""
    read, is_quick = folder.read_if_there, folder.is_local and len(names) < FEW
    with ThreadPoolExecutor(16) as pool:  # waits on a disk or a network
        texts = map(read, names) if is_quick else pool.map(read, names)
        found = zip(names, texts, strict=True)
        return {name: parsed(name, text) for name, text in found if text is not None}


def _storable(records: list[Record]) -> pa.Table:
    """Returns records as a table, without those that overflow a column (a size of 10^30)."""
    try:
        return table_of(records)
    except (pa.ArrowException, OverflowError, UnicodeError):
        if len(records) == 1:
            return RECORD.empty_table()
        return pa.concat_tables(_storable([record]) for record in records)


def _are_there(records: pa.Table, listing: pa.RecordBatch) -> NDArray[np.bool_]:
    """Returns (R,) whether a record has no data, or its file is listed with size and digest."""
    data, sha256 = (records[column].combine_chunks() for column in ("data", "sha256"))
    entry = pc.index_in(data, value_set=listing["name"])
    listed_R = np.append(listing["size"].to_numpy(), -1)[entry.fill_null(-1).to_numpy()]
    is_size_R = (listed_R == records["size_bytes"].to_numpy()) & np.asarray(entry.is_valid())
    named = pc.utf8_slice_codeunits(data, DIGITS.start, DIGITS.stop)
    is_named = pc.equal(named, pc.utf8_slice_codeunits(sha256, 0, 16))
    is_there_R: NDArray[np.bool_] = is_size_R & np.asarray(is_named.fill_null(False), bool)
    for row in np.flatnonzero(is_size_R & ~is_there_R):
        digest = digest_in(data[row].as_py())  # of another length
        is_there_R[row] = sha256[row].as_py().startswith(digest)
    is_there_R |= np.asarray(data.is_null())
    return is_there_R
