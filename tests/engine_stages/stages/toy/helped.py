"""The number again, beside a helper that the worker starts."""

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.stage import Environment, RowFunction, RowStage, Worker, location
from tests.family import family, members

NUMBER = Column("number", pa.int64(), "", "Any number.")
HELPED = Column("helped", pa.int64(), "", "The number.")


@dataclass(frozen=True, kw_only=True)
class Helped(RowStage):
    """The number. In `log` each worker leaves a file of its own id and those of its helper.

    The batch with `at` does not end while the file `gate` is there; the helper is restarted where
    it has died.
    """

    log: str = location()
    gate: str = location()
    at: int = location(0)
    package: str = location("numpy>=2")

    version = 1
    determinism = "exact"
    reads = (NUMBER,)
    writes = (HELPED,)
    batch_rows = 4

    @property
    def environments(self) -> tuple[Environment, ...]:
        return (Environment(packages=(self.package,)),)

    def open(self, worker: Worker) -> RowFunction:
        worker.environment(*self.environments)
        pids = worker.scratch / f"{secrets.token_hex(4)}.pids"
        helper = worker.start_helper(family(pids), is_healthy=pids.exists, wait_s=30)
        noted = Path(self.log) / f"{os.getpid()}"
        noted.write_text(" ".join(map(str, members(pids))))

        def ensure() -> None:
            if not helper.is_alive():
                pids.unlink()
                helper.restart()
                noted.write_text(f"{noted.read_text()} {pids.read_text()}")

        ensure.itself = ensure  # type: ignore[attr-defined]  # a circle, as clients of servers are
        return partial(helped, ensure, Path(self.gate), self.at)


def helped(ensure: Callable[[], None], gate: Path, at: int, batch: pa.Table) -> pa.Table:
    number = batch[NUMBER.name]
    while at in number.to_pylist() and gate.exists():
        ensure()
        time.sleep(0.02)
    return pa.table({HELPED.name: number, REASON.name: pa.nulls(len(number), REASON_TYPE)})
