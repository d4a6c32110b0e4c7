"""Reading what is done of a stage of 1,000 to 30,000 shards: with its fold, and record by record.

    python -m tests.benchmarks.scan_shards

A resume scans every stage's folder. The fold (`records.parquet`) holds all records in one object;
without it each is read by itself, as after a run that was killed before its first fold. The folders
are as a row stage leaves them; data files are sparse, for only their sizes are looked at.

Aim: less than 2 s at 10,000 shards, and time that grows as their number.
Measured (2026-11-25, EPYC, 2 shared cores), CPU time; 10,000 took 0.68 and 1.19 s of wall time at
load 5 to 8: with the fold 0.02, 0.24 and 0.82 s at 1,000, 10,000
and 30,000 shards; record by record 0.04, 0.57 and 1.87 s; both grow as shards to the power 1.1.
"""

import os
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np

from metadata.fold import FOLDED, fold
from metadata.record import Record, data_name
from metadata.records import table_of
from metadata.scan import scan
from metadata.storage import Storage
from tests.benchmarks.toy import scratch

SHARDS = (1_000, 10_000, 30_000)
ROUNDS = 3


def main() -> None:
    taken: dict[str, list[float]] = {"fold": [], "records": []}
    records: list[Record] = []
    with scratch() as folder:
        storage = Storage(str(folder))
        for count in SHARDS:
            records += stored(folder, range(len(records), count))
            for kind, seconds in taken.items():
                if kind == "fold":
                    fold(storage, table_of(records))
                else:
                    storage.delete(FOLDED)
                wall_s, cpu_s = timed(storage, records)
                seconds.append(cpu_s)
                print(f"{count:>7,} shards, {kind:<8} wall {wall_s:6.2f} s   CPU {cpu_s:6.2f} s")
    for kind, seconds in taken.items():
        power, _ = np.polyfit(np.log(SHARDS), np.log(seconds), 1)
        print(f"{kind:<8} CPU time grows as shards to the power {power:.2f}")
    ratio = taken["records"][-1] / taken["fold"][-1]
    print(f"at {SHARDS[-1]:,} shards the fold is {ratio:.1f}x as fast")


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
        assert record.data is not None
        (folder / record.name).write_text(record.to_json())
        with open(folder / record.data, "wb") as file:
            os.truncate(file.fileno(), record.size_bytes)
        records.append(record)
    return records


def timed(storage: Storage, records: list[Record]) -> tuple[float, float]:
    """Median wall and CPU seconds of a scan, which finds every record."""
    spent = []
    for _ in range(ROUNDS):
        wall, cpu = perf_counter(), process_time()
        found = scan(storage)
        spent.append((perf_counter() - wall, process_time() - cpu))
        assert found.records == {record.shard: [record] for record in records}
    return median(wall for wall, _ in spent), median(cpu for _, cpu in spent)


if __name__ == "__main__":
    main()
