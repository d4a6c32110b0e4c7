"""What compacting costs as a stage of many shards runs, and what a resume then reads.

    python -m tests.benchmarks.compaction [full | SHARDS ...]    to 6,000; full: to 40,000

The calls are those of a row job: a part every 1,000 records, the whole of it at the end.
The folders are as a row stage leaves them; data files are sparse, as only their sizes are looked
at. `rewritten` is how it was until November 2026: the whole compaction, with a listing, every 1,000
records; not at the largest size, as it grows as their square.

Aim: CPU time that grows as the shards, whatever their number.
Measured (2026-11-27, EPYC, 2 shared cores at load 15), CPU time at 3,000, 12,800 and 40,000
shards: parts 0.02, 0.07 and 0.23 s, the whole at the end 0.06, 0.17 and 0.62 s, together 21 us a
shard, both as shards to the power 0.9; rewritten 0.32 and 1.69 s: 22 us x shards^2 / 2000 of one
stage, times the square of the stages of a job, as their records were counted together. A scan of
parts took 0.19, 0.34 and 1.13 s, of the whole 0.08, 0.30 and 1.00 s.
"""

import os
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np

from clipmill.metadata.compaction import append, compact
from clipmill.metadata.record import Record, data_name
from clipmill.metadata.records import table_of
from clipmill.metadata.scan import scan
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.row_job import COMPACT_EVERY
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import scratch


def main(*sizes: int) -> str:
    taken: dict[str, list[float]] = {}
    records: list[Record] = []
    with scratch() as folder:
        storage = Storage(str(folder))
        for count in sizes:
            records += stored(folder, range(len(records), count))
            for kind, call in CALLS.items():
                if kind == "rewritten" and count == sizes[-1]:
                    continue
                began = process_time()
                call(storage, records)
                taken.setdefault(kind, []).append(process_time() - began)
                print(f"{count:>7,} shards, {kind:<17} {taken[kind][-1]:7.2f} s of CPU")
    for kind, seconds in taken.items():
        some = sizes[: len(seconds)]
        power = np.log(seconds[-1] / seconds[0]) / np.log(some[-1] / some[0])
        each = seconds[-1] / some[-1]
        print(f"{kind:<17} as shards to the power {power:.2f}, {each * 1e6:.0f} us a shard at last")
    at = len(taken["rewritten"]) - 1
    by_parts_s = taken["parts"][at] + taken["whole, at the end"][at]
    return f"{taken['rewritten'][at] / by_parts_s:.1f}x rewriting it, at {sizes[at]:,} shards"


def stored(folder: Path, shards: range) -> list[Record]:
    """The records of finished shards, which its folder holds, each beside its data."""
    records = []
    for shard in shards:
        sha256 = f"{shard:032x}"
        record = Record(
            shard=shard,
            data=data_name(shard, 0, sha256),
            size_bytes=1_000_000 + shard,
            sha256=sha256,
            rows=10_000,
            computed=10_000,
            uid_sha256=f"{shard + 1:032x}",
            parents={"pool": f"{shard + 2:032x}", "images": f"{shard + 3:032x}"},
            counts={"": 9_800, "no_text": 150, "too_long": 50},
            seconds=1.234,
        )
        (folder / record.name).write_text(record.to_json())
        with open(folder / str(record.data), "wb") as file:
            os.truncate(file.fileno(), record.size_bytes)
        records.append(record)
    return records


def put_parts(storage: Storage, records: list[Record]) -> None:
    for number, start in enumerate(range(0, len(records), COMPACT_EVERY)):
        append(storage, number, records[start : start + COMPACT_EVERY])


def rewrite(storage: Storage, records: list[Record]) -> None:
    for end in range(COMPACT_EVERY, len(records) + 1, COMPACT_EVERY):
        put_whole(storage, records[:end])


def put_whole(storage: Storage, records: list[Record]) -> None:
    compact(storage, table_of(records))


def scan_all(storage: Storage, records: list[Record]) -> None:
    assert len(scan(storage).records) == len(records)


CALLS: dict[str, Callable[[Storage, list[Record]], None]] = {
    "rewritten": rewrite,
    "parts": put_parts,
    "scan of parts": scan_all,
    "whole, at the end": put_whole,
    "scan of it": scan_all,
}


if __name__ == "__main__":
    begin(main, quick=(1_000, 3_000, 6_000), full=(3_000, 12_800, 40_000))
