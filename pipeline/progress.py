"""How a run shows itself: bars on a terminal, now and then a few lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import Failure, Record
from clipmill.pipeline.errors import ClipmillError
from clipmill.pipeline.progress_lines import stage_line, total_line, within
from clipmill.pipeline.run_folder.live import LiveRun
from clipmill.pipeline.terminal import bars, drawing, one_line

if TYPE_CHECKING:
    from clipmill.pipeline.engine.telling import Look, Watcher
    from clipmill.pipeline.run_folder.state import StageState

LINES_EVERY_S = 10.0  # of a log; a run of hours says less often
DRAWN_EVERY_S = 0.25


@contextmanager
def watcher() -> Iterator["Watcher"]:
    """Bars where standard error is a terminal, else lines."""
    if not sys.stderr.isatty():
        lines = Lines()
        try:
            yield lines
        finally:
            lines.over.set()
        return
    shown = Bars()
    with drawing(shown.draw, DRAWN_EVERY_S):
        yield shown


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


class _Said:
    """What both say at once, above the bars or between the lines."""

    def __init__(self) -> None:
        self.look: Look | None = None

    def begin(self, look: "Look") -> None:
        self.look = look

    def stage(self, name: str, total: int | None, done: int) -> None: ...

    def shard(self, name: str, record: Record, total: int | None) -> None: ...

    def unit(self, name: str, call: str, done: int, total: int) -> None: ...

    def finished(self, name: str, state: "StageState") -> None: ...

    def failed(self, name: str, failure: Failure) -> None:
        _print(
            f"{name}: shard {failure.shard} failed: {failure.found}\n"
            f"  where: {failure.where}\n  do:    {failure.do}"
        )

    def damaged(self, name: str, found: DamagedError) -> None:
        _print(f"{name}: {found.name} is damaged, and made again: {found.found}")

    def stopped(self, name: str, error: ClipmillError) -> None:
        _print(f"{name}: failed: {one_line(error.args[0])}")


class Bars(_Said):
    """A line a stage, redrawn: what runs, with bar, speed and time left, and what is done."""

    def draw(self, width: int, height: int) -> list[tuple[str, str]]:
        """The lines now, each with the colour of its state."""
        return within(self.look(), time.time(), width, height) if self.look else []


class Lines(_Said):
    """A line when a row stage stores its first shard and when any stage ends; now and then between
    one on each that runs, and the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()
        self._begun: set[str] = set()  # stages with a shard

    def begin(self, look: "Look") -> None:
        super().begin(look)
        threading.Thread(target=self._now_and_then, daemon=True).start()

    def shard(self, name: str, record: Record, total: int | None) -> None:
        if self.look and name not in self._begun:
            self._begun.add(name)
            stage = self.look().stages[name]
            if stage.is_row and stage.status == "running":
                _print(f"{name}: {stage_line(stage, time.time())}")

    def finished(self, name: str, state: "StageState") -> None:
        if self.look:
            stage = self.look().stages[name]
            if stage.status in ("done", "found", "stopped"):
                _print(f"{name}: {stage_line(stage, time.time())}")

    def _now_and_then(self) -> None:
        began = time.time()
        while not self.over.wait(max(LINES_EVERY_S, min(60.0, (time.time() - began) / 20))):
            assert self.look is not None
            if lines := running_lines(live := self.look(), time.time()):
                _print("\n".join([*lines, total_line(live, time.time())]))
            if live.ended:
                return


def running_lines(live: LiveRun, now: float) -> list[str]:
    """A line on each stage that runs."""
    running = [stage for stage in live.stages.values() if stage.status == "running"]
    return [f"{stage.name}: {stage_line(stage, now)}" for stage in running]


def _print(text: str) -> None:
    """The lines in one piece: stages that run side by side write at the same time."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
