"""What a stage's folder holds: one listing, the compactions, and what is newer than them."""

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
from clipmill.metadata.storage import Storage

RECORD_NAME = re.compile(r"\d{6,}(\.p\d+)?\.json")
FEW = 64  # files that a disk gives sooner than threads start
DIGITS = slice(-24, -8)  # of a data file's name: those of its digest


@dataclass
class Scan:
    """What a stage's folder holds: records by shard and pass, failures, and the manifest."""

    records: Records
    failures: dict[int, Failure]
    manifest: Manifest | None
    attempts: tuple[str, ...] = ()  # objects that a run left which was killed
    compacted: bool = False  # whether the compaction holds every record, and all of them
    parts: int = 0  # number of the next part of a compaction
    lost: list[Record] = field(default_factory=list)  # whose data is gone, or of another size
    torn: tuple[str, ...] = ()  # records, and the manifest, that are not as they were stored
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


def scan(folder: Storage) -> Scan:
    """Everything known about a stage's shards.

    A record counts only if its data file is listed with the size it states.
    """
    listing = folder.listing()
    name = listing["name"]
    compacted = read_compacted(folder, listing)
    is_compacted = pc.is_in(name, value_set=compacted.records["name"].combine_chunks())
    is_other = pc.and_not(pc.invert(is_compacted), pc.ends_with(name, ".parquet"))
    others: list[str] = name.filter(is_other).to_pylist()
    newer = [it for it in others if RECORD_NAME.fullmatch(it)]
    with ThreadPoolExecutor(16) as pool:  # waits on a disk or a network
        are_soon = folder.is_local and len(newer) < FEW
        texts = (map if are_soon else pool.map)(folder.read_if_there, newer)
        there = zip(newer, texts, strict=True)
        read = {it: parsed(it, text) for it, text in there if text is not None}
    torn = [it for it, record in read.items() if record is None]
    table = compacted.records.select(RECORD.names)
    if newest := [record for record in read.values() if record is not None]:
        table = pa.concat_tables([table, _that_fit(newest)])
    is_there_R = _are_there(table, listing)
    lost = [] if is_there_R.all() else records_of(table.filter(pa.array(~is_there_R)))
    if torn:  # the compaction tells of what they were
        is_torn = pc.is_in(compacted.changed["name"], value_set=pa.array(torn, pa.string()))
        lost += records_of(compacted.changed.filter(is_torn).select(RECORD.names))
    failures = {it: folder.read_json(it, Failure) for it in others if it.endswith(FAILED)}
    manifest = None
    if MANIFEST in others:
        manifest = read_sealed_as(folder, MANIFEST, Manifest)
        if manifest is None or not folder.path.endswith(manifest.fingerprint):  # another stage's
            manifest = None
            torn.append(MANIFEST)
    has_outputs = manifest is not None and manifest.outputs
    outputs = folder.entries("out", below=True) if has_outputs else []
    return Scan(
        records=Records(table if is_there_R.all() else table.filter(pa.array(is_there_R))),
        failures={it.shard: it for own, it in failures.items() if it and it.name == own},
        manifest=manifest,
        attempts=tuple(it for it in others if it.endswith(".attempt")),
        compacted=compacted.are_one and not newer,
        parts=compacted.parts,
        lost=lost,
        torn=tuple(torn),
        outputs=tuple(sorted((entry.name, entry.size) for entry in outputs)),
    )


def _that_fit(records: list[Record]) -> pa.Table:
    """Their columns, without those that say what no column holds, as a size of 10^30."""
    try:
        return table_of(records)
    except (pa.ArrowException, OverflowError, UnicodeError):
        if len(records) == 1:
            return RECORD.empty_table()
        return pa.concat_tables(_that_fit([record]) for record in records)


def _are_there(records: pa.Table, listing: pa.RecordBatch) -> NDArray[np.bool_]:
    """(R,) whether the data of each is listed as the record says: None is there."""
    data, sha256 = (records[column].combine_chunks() for column in ("data", "sha256"))
    at = pc.index_in(data, value_set=listing["name"])
    listed_R = np.append(listing["size"].to_numpy(), -1)[at.fill_null(-1).to_numpy()]
    is_size_R = (listed_R == records["size_bytes"].to_numpy()) & np.asarray(at.is_valid())
    its = pc.utf8_slice_codeunits(data, DIGITS.start, DIGITS.stop)
    is_named = pc.equal(its, pc.utf8_slice_codeunits(sha256, 0, 16))
    is_there_R: NDArray[np.bool_] = is_size_R & np.asarray(is_named.fill_null(False), bool)
    for row in np.flatnonzero(is_size_R & ~is_there_R):
        digest = digest_in(data[row].as_py())  # of another length
        is_there_R[row] = sha256[row].as_py().startswith(digest)
    is_there_R |= np.asarray(data.is_null())
    return is_there_R
