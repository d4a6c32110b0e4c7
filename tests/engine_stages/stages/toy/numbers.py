"""Numbers from text files, one a line."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import REASON, REASON_TYPE, UID, Column
from clipmill.metadata.uid import uid_of
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.errors import ShardError, StageError
from clipmill.pipeline.stage import DatasetStage, location

READ: list[list[int]] = []  # the groups read, in this process
NUMBER = Column("number", pa.int64(), "", "The number of a line.")


@dataclass(frozen=True, kw_only=True)
class Numbers(DatasetStage):
    """The number of every line of `path/*.txt`; a shard is `shard_rows` lines of one file."""

    path: str = location()
    shard_rows: int = location(1000)
    together: int = location(1)  # sources of a file that are read as one

    version = 1
    determinism = "exact"
    takes = ()
    writes = (NUMBER,)

    def files(self) -> dict[str, int]:
        return {file.name: file.stat().st_size for file in Path(self.path).glob("*.txt")}

    def run(self, inputs: Inputs, ctx: Context) -> None:
        files = sorted(Path(self.path).glob("*.txt"))
        if not files:
            raise StageError("no *.txt file", self.path, "name a folder of numbers")
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        known = [{"file": str(f), "digest": d} for f, d in zip(files, digests, strict=True)]
        counted = ctx.map(count_lines, known)
        groups = []
        for file, count in zip(known, counted, strict=True):
            bounds = [*range(0, max(1, count["rows"]), self.shard_rows), count["rows"]]
            sources = [{**file, "start": a, "stop": b} for a, b in pairwise(bounds)]
            firsts = range(0, len(sources), self.together)
            groups += [sources[first : first + self.together] for first in firsts]
        if self.together > 1:
            ctx.create_shards_together(read_together, groups)
        else:
            ctx.create_shards(read, [source for group in groups for source in group])


def count_lines(file: dict[str, Any], task: Task) -> dict[str, int]:
    return {"rows": len(Path(file["file"]).read_text().splitlines())}


def read_together(group: list[dict[str, Any]], task: Task) -> Iterator[Iterator[pa.Table]]:
    """The rows of each source of a group."""
    READ.append([source["start"] for source in group])
    return (read(source, task) for source in group)


def read(source: dict[str, Any], task: Task) -> Iterator[pa.Table]:
    """The rows of a source."""
    lines = Path(source["file"]).read_text().splitlines()[source["start"] : source["stop"]]
    try:
        number = pa.array([int(line) for line in lines], pa.int64())
    except ValueError as error:
        raise ShardError(str(error), source["file"], "write one number a line") from None
    yield pa.table(
        {
            UID.name: pa.array([uid_of(line, "") for line in lines], UID.dtype),
            NUMBER.name: number,
            REASON.name: pa.nulls(len(lines), REASON_TYPE),
        }
    )
