"""How a run shows itself: bars on a terminal, one line a shard elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from metadata.damage import DamagedError
from metadata.record import Failure, Record
from pipeline.terminal import bars

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pipeline.engine.running import Watcher
    from pipeline.run_folder.state import StageState


@contextmanager
def watcher() -> Iterator["Watcher"]:
    """Bars where standard error is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("shards {task.fields[rate]:>14} {task.fields[failed]}", markup=False),
        Remaining(compact=True),
    )
    with bars(*columns) as progress:
        yield Bars(progress)


@contextmanager
def reading() -> Iterator[Callable[[int, int], None]]:
    """Told the bytes read, and how many there are: a bar where standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn(), Remaining())
    with bars(*columns) as progress:
        task = progress.add_task("verify")
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Bars:
    """A bar a stage: shards, rows a second of this run, rows that failed, time left."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._rows: dict[str, int] = {}
        self._failed: dict[str, int] = {}

    def stage(self, name: str, total: int | None, done: int) -> None:
        if name in self._tasks:
            self._progress.update(self._tasks[name], total=total, completed=done)
        else:
            self._tasks[name] = self._progress.add_task(
                name, total=total, completed=done, rate="", failed=""
            )
            self._rows[name] = self._failed[name] = 0

    def shard(self, name: str, record: Record, total: int | None) -> None:
        now = time.monotonic()
        began = self._began.setdefault(name, now - max(record.seconds, 1e-3))
        self._rows[name] += record.computed
        self._failed[name] += record.computed - record.counts.get("", 0)
        failed = self._failed[name]
        self._progress.update(
            self._tasks[name],
            total=total,
            rate=f"{self._rows[name] / (now - began):,.0f} rows/s",
            failed=f"{failed:,} without a value" if failed else "",
        )
        self._progress.advance(self._tasks[name])

    def unit(self, name: str, call: str, done: int, total: int) -> None:
        self._progress.update(self._tasks[name], rate=f"{call} {done}/{total}")

    def failed(self, name: str, failure: Failure) -> None:
        _print(_failure_line(name, failure))

    def damaged(self, name: str, found: DamagedError) -> None:
        _print(_damage_line(name, found))

    def finished(self, name: str, state: "StageState") -> None:
        if state.complete:
            done = len(state.shards)
            self._progress.update(self._tasks[name], total=done or 1, completed=done or 1)


class Lines:
    """One line a shard, on standard error."""

    def stage(self, name: str, total: int | None, done: int) -> None:
        pass

    def shard(self, name: str, record: Record, total: int | None) -> None:
        fine = record.counts.get("", 0)
        rate = record.computed / max(record.seconds, 1e-3)
        _print(
            f"{name}: shard {record.shard} of {total}: {record.computed} rows,"
            f" {record.computed - fine} without a value, {rate:,.0f} rows/s"
        )

    def unit(self, name: str, call: str, done: int, total: int) -> None:
        if done == total:
            _print(f"{name}: {call}, {total} {'unit' if total == 1 else 'units'}")

    def failed(self, name: str, failure: Failure) -> None:
        _print(_failure_line(name, failure))

    def damaged(self, name: str, found: DamagedError) -> None:
        _print(_damage_line(name, found))

    def finished(self, name: str, state: "StageState") -> None:
        from pipeline.run_folder.state import summary

        _print(f"{name}: {summary(state)}")


def _print(text: str) -> None:
    """The lines in one piece: stages that run side by side write at the same time."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _damage_line(name: str, found: DamagedError) -> str:
    return f"{name}: {found.name} is damaged, and made again: {found.found}"


def _failure_line(name: str, failure: Failure) -> str:
    return (
        f"{name}: shard {failure.shard} failed: {failure.found}\n"
        f"  where: {failure.where}\n  do:    {failure.do}"
    )
