"""Logs a run: a JSON object a line for each event, beside what is shown."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import Failure, Record
from clipmill.pipeline.errors import ClipmillError, RecipeError
from clipmill.pipeline.executors.telling import Notice
from clipmill.pipeline.run_folder.live import Look, Together, Watcher
from clipmill.pipeline.run_folder.state import StageState


@contextmanager
def logged(path: str | None, watcher: Watcher) -> Iterator[Watcher]:
    """Yields a watcher that appends to the file, too; the same one without a path."""
    if path is None:
        yield watcher
        return
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        do = "name a file that can be written, or /dev/stdout"
        raise RecipeError(f"no log: {error.strerror}", f"--log {path}", do) from None
    with os.fdopen(handle, "a", encoding="utf-8", buffering=1) as file:
        yield Together(Log(file), watcher)


class Log(Watcher):
    """A watcher that writes `time`, `run`, `stage`, `event`, and what the event tells."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def begin(self, look: Look) -> None:
        self.run, self.host, self.pid = look().run, look().host, look().pid
        self._write("begin", None, recipe=look().recipe)

    def shard(self, name: str, record: Record, total: int | None) -> None:
        self._write(
            "shard",
            name,
            shard=record.shard,
            attempt=record.attempts,
            seconds=record.seconds,
            rows=record.computed,
            bytes=record.size_bytes,
            lost={reason: rows for reason, rows in record.counts.items() if reason},
        )

    def unit(self, name: str, call: str, done: int, total: int) -> None:
        self._write("unit", name, call=call, done=done, total=total)

    def failed(self, name: str, failure: Failure) -> None:
        cause = {key: getattr(failure, key) for key in ("found", "where", "do")}
        self._write("failed", name, shard=failure.shard, crashed=failure.crashed, **cause)

    def damaged(self, name: str, found: DamagedError) -> None:
        self._write("damaged", name, file=found.name, found=found.found)

    def stopped(self, name: str, error: ClipmillError) -> None:
        self._write("stopped", name, **dict(zip(("found", "where", "do"), error.args, strict=True)))

    def finished(self, name: str, state: StageState) -> None:
        seconds = round(state.seconds, 3)
        counted = {"complete": state.complete, "shards": len(state.shards), "rows": state.rows}
        self._write("finished", name, **counted, seconds=seconds)

    def noticed(self, notice: Notice) -> None:
        self._write("noticed", None, found=notice.text)

    def _write(self, event: str, stage: str | None, **details: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        head = {"time": now, "run": self.run, "host": self.host, "pid": self.pid, "stage": stage}
        self.file.write(f"{json.dumps({**head, 'event': event, **details})}\n")
