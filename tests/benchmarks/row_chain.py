"""The engine over a chain of two row stages, against a loop by hand: what a stage costs.

    python -m tests.benchmarks.row_chain [full | SHARDS]        8; full: 32

By hand: pyarrow reads the columns of a shard once, in batches of the same size, computes by the
same functions and writes the same two Parquet files (same compression, same row groups). The
engine does this and hashes what it writes (SHA-256 of each file and of the uids), counts reasons,
checks types, counts attempts, writes records and manifests, and scans the run folder first.
`hashed by hand` does only the hashing of these, and page checksums: what no engine can leave out
that knows a changed byte.
One process, one thread each; CPU time, for others share the cores. `cheap` is arithmetic and the
length of a string, 0.4 microseconds a row: all that is left to see is engine. `annotate` is
annotate.caption and annotate.language, the cheapest stages that recipes really use. `small` is
`cheap` on shards of ten rows: what a shard costs beside its rows.

Aim: at most 10 % more, at 50,000-row shards (a ratio of 0.91).
Measured (2026-11-28, EPYC with AVX2, 2 cores, idle): annotate 0.94x to 0.99x, so the aim is met by
stages that do something; cheap 0.72x on the disk, 0.73x in memory, out of reach of arithmetic
alone: hashing by hand has 0.86x and 0.89x. By hand takes about 330 ns a row and stage there, at the
least; what it leaves out and the engine cannot takes about 45, each timed alone: SHA-256 17, uids
13, page checksums 15. A run's start takes 30 to 50 ms of CPU, a tenth of eight shards. Shards of
ten rows take 3.7 to 4.7 ms of both stages.
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

from clipmill.metadata.schema import REASON, UID
from clipmill.metadata.shard import GROUP_ROWS
from clipmill.pipeline.engine.worker import worker_of
from clipmill.pipeline.planning.planned import PlannedStage
from tests.benchmarks.side_by_side import begin, side_by_side
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


def main(shards: int) -> str:
    cheap = compare("cheap", CHEAP, shards, rounds=9)
    annotate = compare("annotate", ANNOTATE, shards=1, rounds=5)
    compare("small", CHEAP, shards=12 * shards, rounds=5, shard_rows=10)
    return f"annotate {annotate}, arithmetic {cheap} a loop by hand"


def compare(
    title: str,
    stages: Mapping[str, dict[str, Any]],
    shards: int,
    rounds: int,
    shard_rows: int = ROWS,
) -> str:
    """The engine's rate by that of the loop; one chain, both ways."""
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
        ratios = side_by_side(rows=shards * shard_rows, rounds=rounds, clock=process_time, **rivals)
        begun = process_time()
        run_toy(plan, folder / "run", workers=0)
        print(f"a run where all is done: {(process_time() - begun) * 1e3:.0f} ms\n")
    return ratios["engine"]


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
    begin(main, quick=(8,), full=(32,))
