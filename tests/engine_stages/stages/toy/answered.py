"""The number again, from a stage whose answers are kept until its shard is stored."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clipmill.pipeline.stage import RowStage, StreamFunction, Worker, location

from .flowing import COPY, NUMBER, Waiting, taken


@dataclass(frozen=True, kw_only=True)
class Answered(RowStage):
    """The number; null where the script says `timeout`: see toy.flowing."""

    script: str = location()
    is_async: bool = location(True)

    version = 1
    determinism = "recorded"
    reads = (NUMBER,)
    writes = (COPY,)
    reasons = ("timeout",)
    transient = ("timeout",)
    batch_rows = 8
    streams = True
    journals = True

    def open(self, worker: Worker) -> StreamFunction:
        script = Path(self.script)
        return Waiting(script, rows_ahead=8) if self.is_async else partial(taken, script, 1)
