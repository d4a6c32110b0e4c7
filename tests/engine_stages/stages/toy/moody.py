"""The number again, with the trouble that a script asks for."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RetryableError
from clipmill.pipeline.stage import RowFunction, RowStage, Worker, location

COPY = Column("copy", pa.int64(), "", "The number.")
LEAKED: list[bytes] = []
NUMBER = Column("number", pa.int64(), "", "Any number.")


@dataclass(frozen=True, kw_only=True)
class Moody(RowStage):
    """The number; null where the script says `timeout`.

    The script is a JSON object. `kill`, `raise`, `timeout`: lists of numbers. `busy`: numbers, each
    with how often it fails before it succeeds. `killed`: numbers, each with how often its worker
    gets a signal as from outside, which `counter`, a file, counts if there is one. `answer`: what
    is wrong with every answer. `sleep`, `leak`: seconds and megabytes that a batch takes. `full`: a
    variable of machines whose disk is. Beside the script lies a log of every number seen, in order.
    """

    script: str = location()
    threads: int = location(1)

    version = 1
    determinism = "exact"
    reads = (NUMBER,)
    writes = (COPY,)
    reasons = ("timeout",)
    transient = ("timeout",)
    batch_rows = 8

    def open(self, worker: Worker) -> RowFunction:
        return partial(copy, Path(self.script))


@contextlib.contextmanager
def on_a_full_disk(folder: Storage, name: str) -> Iterator[Path]:
    yield Path("/dev/full")


def copy(script: Path, batch: pa.Table) -> pa.Table:
    mood: dict[str, Any] = json.loads(script.read_text())
    number = batch[NUMBER.name]
    seen = set(number.to_pylist())
    log = script.with_suffix(".log")
    with log.open("a") as file:
        file.writelines(f"{n}\n" for n in number.to_pylist())
    time.sleep(mood.get("sleep", 0))
    if mood.get("full", "") in os.environ:
        Storage.scratch = on_a_full_disk
    LEAKED.append(b"x" * (mood.get("leak", 0) << 20))
    if seen & set(mood.get("kill", [])):
        os.abort()
    for victim, times in mood.get("killed", {}).items():
        if int(victim) in seen and (so_far := log.read_text().split().count(victim)) <= times:
            if counter := mood.get("counter"):
                Path(counter).write_text(f"pgfault 7\noom_kill {so_far}\n")
            os.kill(os.getpid(), signal.SIGKILL)
    if seen & set(mood.get("raise", [])):
        raise ZeroDivisionError("in a bad mood")
    for busy, times in mood.get("busy", {}).items():
        if int(busy) in seen and log.read_text().splitlines().count(busy) <= times:
            raise RetryableError("busy", f"number {busy}", "wait")
    late = pc.is_in(number, pa.array(mood.get("timeout", []), pa.int64()))
    out = pa.table(
        {
            COPY.name: pc.if_else(late, None, number),
            REASON.name: pc.if_else(late, "timeout", None).cast(REASON_TYPE),
        }
    )
    return WRONG.get(mood.get("answer"), lambda out: out)(out)


WRONG = {
    "short": lambda out: out.slice(1),
    "typed": lambda out: out.set_column(0, COPY.name, out[COPY.name].cast(pa.float64())),
    "bare": lambda out: out.select([REASON.name]),
    "undeclared": lambda out: out.set_column(
        1, REASON.name, pa.array(["whim"] * len(out)).dictionary_encode()
    ),
}
