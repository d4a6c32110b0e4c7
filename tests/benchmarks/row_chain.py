"""The engine over a chain of two row stages, against a loop by hand: what a stage costs.

    python -m tests.benchmarks.row_chain

By hand: pyarrow reads the columns of a shard once, in batches of the same size, computes by the
same functions and writes the same two Parquet files (same compression, same row groups). The
engine does this and hashes what it writes (SHA-256 of each file and of the uids), counts reasons,
checks types, counts attempts, writes records, folds and manifests, and scans the run folder first.
`hashed by hand` does only the hashing of these, and page checksums: what no engine can leave out
that knows a changed byte.
One process, one thread each; CPU time, for others share the cores. `cheap` is arithmetic and the
length of a string, 0.4 microseconds a row: all that is left to see is engine. `annotate` is
annotate.caption and annotate.language, the cheapest stages that recipes really use. `small` is
`cheap` on shards of ten rows: what a shard costs beside its rows.

Aim: at most 10 % more, at 50,000-row shards (a ratio of 0.91).
Measured (2026-11-25, EPYC, 2 cores, idle, pyarrow 26): annotate 0.93x (0.82 to 1.00),
cheap 0.73x (0.66 to 0.79), about 100 ns a row and stage. The median of `annotate` meets the aim and
its spread crosses it; `cheap`, the first chain written, misses it (0.60x with batches of 1,024
rows: both sides take 4,096 now, and annotate was added after). Hashing takes about 20 of
its 100 ns. On 2026-11-27 (AVX2, load 8 to 14): cheap 0.71x (0.56 to 0.87), and 0.68x (0.59 to 0.80)
with Parquet written by Arrow alone: the spreads overlap; later, idle, 0.71x (0.66 to 0.80), and
annotate 0.90x (0.80 to 1.00). By hand takes about 330 ns a row and stage there, at the least; what
it leaves out and the engine cannot takes about 45, each timed alone: SHA-256 17, uids 13, page
checksums 15. So 0.88x, computed, is the most that hashing leaves. On 2026-11-28,
idle: cheap 0.67x (0.51 to 0.92), where hashing by hand alone has 0.87x, and 0.75x and 0.85x on a
disk in memory; annotate 0.99x and 0.94x. So the aim is met by stages that do something, and is out
of reach of arithmetic alone. Later that day, on a disk in memory and in turns with the code that
started a thread a shard: cheap 0.67x and 0.67x where that had 0.64x and 0.63x, hashing by hand
0.85x to 0.92x; shards of ten rows 3.7 to 4.7 ms of both stages, where they took 5.9. All that were
of eight shards; a run's start takes 30 to 50 ms of CPU, a tenth of those. Of 32 shards since, in
memory and on the disk: 0.73x and 0.72x, hashing by hand 0.89x and 0.86x.
"""

import hashlib
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from metadata.schema import REASON, UID
from metadata.shard import GROUP_ROWS
from pipeline.engine.worker import worker_of
from pipeline.planning.planned import PlannedStage
from tests.benchmarks.side_by_side import side_by_side
from tests.benchmarks.toy import plan_of, run_toy, scratch

ROWS = 50_000
CHEAP = {
    "affine": {"uses": "toy.affine", "from": "pool"},
    "letters": {"uses": "toy.letters", "from": "affine"},
}
ANNOTATE = {
    "caption": {"uses": "annotate.caption", "from": "pool"},
    "language": {"uses": "annotate.language", "from": "pool"},
}


def main() -> None:
    compare("cheap", CHEAP, shards=32, rounds=9)
    compare("annotate", ANNOTATE, shards=1, rounds=5)
    compare("small", CHEAP, shards=400, rounds=5, shard_rows=10)


def compare(
    title: str,
    stages: Mapping[str, dict[str, Any]],
    shards: int,
    rounds: int,
    shard_rows: int = ROWS,
) -> None:
    """One chain, both ways."""
    pool = {"uses": "toy.rows", "shards": shards, "shard_rows": shard_rows}
    plan = plan_of({"pool": pool, **stages})
    chain = [plan.stages[name] for name in stages]
    with scratch() as folder:
        state = run_toy(plan, folder / "run", workers=0)
        root = state.stages["pool"]
        sources = [root.folder.locate(shard.files[0]) for _, shard in sorted(root.shards.items())]
        made = {planned.name: folder / "run" / planned.folder for planned in chain}

        def engine() -> None:
            for path in made.values():
                shutil.rmtree(path)
            run_toy(plan, folder / "run", workers=0)

        def by_hand(hashed: bool = False) -> None:
            shutil.rmtree(folder / "hand", ignore_errors=True)
            for name in made:
                (folder / "hand" / name).mkdir(parents=True)
            functions = {p.name: p.stage.open(worker_of(p, 0, folder)) for p in chain}
            for source in sources:
                loop(Path(source), folder / "hand", chain, functions, hashed)

        for run in (engine, by_hand):
            run()
        for name, path in made.items():  # a fast wrong answer is no result
            ours = pq.read_table(sorted(path.glob("0*.parquet")))
            theirs = pq.read_table(sorted((folder / "hand" / name).iterdir()))
            assert ours.equals(theirs), name
        print(f"{title}: {' + '.join(stages)}, {shards} shards of {shard_rows:,} rows")
        hashed = partial(by_hand, hashed=True)
        rivals = {"by hand": by_hand, "hashed by hand": hashed, "engine": engine}
        side_by_side(rows=shards * shard_rows, rounds=rounds, clock=process_time, **rivals)
        begun = process_time()
        run_toy(plan, folder / "run", workers=0)
        print(f"a run where all is done: {(process_time() - begun) * 1e3:.0f} ms\n")


def loop(
    source: Path,
    folder: Path,
    chain: list[PlannedStage],
    functions: Mapping[str, Any],
    hashed: bool,
) -> None:
    """One shard through the stages: read once, computed by batches, written by row groups."""
    writers = {
        planned.name: Writer(folder / planned.name / source.name, planned, hashed)
        for planned in chain
    }
    wanted = {column for p in chain for stage, column in p.bindings[0].values() if stage == "pool"}
    with pq.ParquetFile(source, page_checksum_verification=hashed) as file:
        columns = [UID.name, *sorted(wanted)]
        rows = chain[0].stage.batch_rows
        for batch in file.iter_batches(rows, columns=columns, use_threads=False):
            table = pa.Table.from_batches([batch])
            for planned in chain:
                out = functions[planned.name](table)
                writers[planned.name].add(out.add_column(0, UID.name, table[UID.name]))
                for column in planned.stage.writes:  # the next may read it
                    table = table.append_column(column.name, out[column.name])
    for writer in writers.values():
        writer.close()


class Writer:
    """What one stage writes of one shard."""

    def __init__(self, path: Path, planned: PlannedStage, hashed: bool) -> None:
        columns = (UID, *planned.stage.writes, REASON)
        texts = [c.name for c in columns if pa.types.is_string(c.dtype) or c is REASON]
        schema = pa.schema({column.name: column.dtype for column in columns})
        self.held: list[pa.Table] = []
        self.path, self.uids = path, hashlib.sha256() if hashed else None
        self.file = pq.ParquetWriter(
            path,
            schema,
            compression="ZSTD",
            use_dictionary=texts,
            write_statistics=False,
            write_page_checksum=hashed,
        )

    def add(self, table: pa.Table) -> None:
        self.held.append(table)
        if sum(map(len, self.held)) >= GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        group = pa.concat_tables(self.held).unify_dictionaries().combine_chunks()
        self.file.write_table(group, row_group_size=len(group))
        if self.uids:
            self.uids.update(group[UID.name].chunk(0).buffers()[1])
        self.held = []

    def close(self) -> None:
        if self.held:
            self.flush()
        self.file.close()
        if self.uids:
            with self.path.open("rb") as stored:
                hashlib.file_digest(stored, "sha256")


if __name__ == "__main__":
    main()
