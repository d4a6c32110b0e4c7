"""What folding costs as a stage of 3,000 to 40,000 shards runs, and what a resume then reads.

    python -m tests.benchmarks.fold

The calls are those of a wave: a part of the fold every 1,000 records, the whole of it at the end.
The folders are as a row stage leaves them, see scan_shards.py. `rewritten` is how it was until
November 2026: the whole fold, with a listing, every 1,000 records; only at the two smaller sizes,
as it grows as their square.

Aim: CPU time that grows as the shards, whatever their number.
Measured (2026-11-27, EPYC, 2 shared cores at load 15), CPU time at 3,000, 12,800 and 40,000
shards: parts 0.02, 0.07 and 0.23 s, the whole at the end 0.06, 0.17 and 0.62 s, together 21 us a
shard, both as shards to the power 0.9; rewritten 0.32 and 1.69 s: 22 us x shards^2 / 2000 of one
stage, times the square of the stages of a wave, as their records were counted together. A scan of
parts took 0.19, 0.34 and 1.13 s, of the whole 0.08, 0.30 and 1.00 s.
"""

from collections.abc import Callable
from time import process_time

import numpy as np

from metadata.fold import append, fold
from metadata.record import Record
from metadata.records import table_of
from metadata.scan import scan
from metadata.storage import Storage
from pipeline.engine.waves import FOLD_EVERY
from tests.benchmarks.scan_shards import stored
from tests.benchmarks.toy import scratch

SHARDS = (3_000, 12_800, 40_000)


def main() -> None:
    taken: dict[str, list[float]] = {}
    records: list[Record] = []
    with scratch() as folder:
        storage = Storage(str(folder))
        for count in SHARDS:
            records += stored(folder, range(len(records), count))
            for kind, call in CALLS.items():
                if kind == "rewritten" and count == SHARDS[-1]:
                    continue
                began = process_time()
                call(storage, records)
                taken.setdefault(kind, []).append(process_time() - began)
                print(f"{count:>7,} shards, {kind:<17} {taken[kind][-1]:7.2f} s of CPU")
    for kind, seconds in taken.items():
        sizes = SHARDS[: len(seconds)]
        power, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
        each = seconds[-1] / sizes[-1]
        print(f"{kind:<17} as shards to the power {power:.2f}, {each * 1e6:.0f} us a shard at last")


def put_parts(storage: Storage, records: list[Record]) -> None:
    for number, start in enumerate(range(0, len(records), FOLD_EVERY)):
        append(storage, number, records[start : start + FOLD_EVERY])


def rewrite(storage: Storage, records: list[Record]) -> None:
    for end in range(FOLD_EVERY, len(records) + 1, FOLD_EVERY):
        put_whole(storage, records[:end])


def put_whole(storage: Storage, records: list[Record]) -> None:
    fold(storage, table_of(records))


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
    main()
