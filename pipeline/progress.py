"""Shows a run's progress: bars on a terminal, else a few lines from time to time."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import Failure, Record
from clipmill.pipeline.errors import ClipmillError
from clipmill.pipeline.executors.telling import MORE_ROWS, ROWS, Notice
from clipmill.pipeline.run_folder.live import LEAST_S, Live, LiveRun, Look, Status, Watcher
from clipmill.pipeline.run_folder.words import KINDS, duration
from clipmill.pipeline.terminal import bars, drawing, harmless, one_line

if TYPE_CHECKING:
    from rich.console import Group

    from clipmill.pipeline.run_folder.state import StageState

LINES_EVERY_S = 10.0  # in a log; less often in long runs
DRAWN_EVERY_S = 0.25
BAR, NAME = 16, 28  # width in columns; longer names are cut
MARKS: dict[Status, tuple[str, str]] = {  # status to mark and colour
    "running": (">", "cyan"),
    "failed": ("!", "red"),
    "stopped": ("!", "yellow"),
    "done": ("+", "green"),
    "found": ("=", "dim"),
    "waiting": (".", "dim"),
}


@contextmanager
def watcher() -> Iterator[Watcher]:
    """Yields a watcher: bars if standard error is a terminal, else lines."""
    if not sys.stderr.isatty():
        lines = Lines()
        try:
            yield lines
        finally:
            lines.over.set()
        return
    shown = Bars()
    with drawing(shown.draw, DRAWN_EVERY_S, sys.stderr):
        yield shown


@contextmanager
def reading() -> Iterator[Callable[[int, int], None]]:
    """Yields a function of bytes read and total; shows a bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn(), Remaining())
    with bars(*columns) as progress:
        task = progress.add_task("verify")
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Printing(Watcher):
    """A watcher that prints failures at once, above the bars or between the lines."""

    look: Look | None = None

    def begin(self, look: Look) -> None:
        self.look = look

    def failed(self, name: str, failure: Failure) -> None:
        _print(
            f"{name}: shard {failure.shard} failed: {failure.found}\n"
            f"  where: {failure.where}\n  do:    {failure.do}"
        )

    def damaged(self, name: str, found: DamagedError) -> None:
        _print(f"{name}: {found.name} is damaged, and made again: {found.found}")

    def stopped(self, name: str, error: ClipmillError) -> None:
        _print(f"{name}: failed: {one_line(error.args[0])}")

    def noticed(self, notice: Notice) -> None:
        _print(one_line(notice.text))


class Bars(_Printing):
    """A redrawn display with a line a stage: state, bar, speed and time left."""

    def draw(self, height: int) -> "Group | str":
        """Returns the present display."""
        return board(self.look(), time.time(), height) if self.look else ""


class Lines(_Printing):
    """Prints a line when a row stage stores its first shard and when a stage ends; at intervals a
    line for each running stage, and the total."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()
        self._begun: set[str] = set()  # stages with a shard

    def begin(self, look: Look) -> None:
        is_first = self.look is None
        super().begin(look)
        self._begun.clear()
        if is_first:  # `bench` and `verify --repair` run several plans under one watcher
            threading.Thread(target=self._report_at_intervals, daemon=True).start()

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

    def _report_at_intervals(self) -> None:
        began = time.time()
        while not self.over.wait(max(LINES_EVERY_S, min(60.0, (time.time() - began) / 20))):
            assert self.look is not None
            live, now = self.look(), time.time()
            if not live.ended and (lines := running_lines(live, now)):
                _print("\n".join([*lines, total_line(live, now)]))


def running_lines(live: LiveRun, now: float) -> list[str]:
    """Returns a line for each running stage."""
    running = [stage for stage in live.stages.values() if stage.status == "running"]
    return [f"{stage.name}: {stage_line(stage, now)}" for stage in running]


def _print(text: str) -> None:
    """Writes the lines in one piece: stages that run at the same time write, too."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


# In words


def stage_line(stage: Live, now: float, waits_for: Sequence[str] | None = None) -> str:
    """Returns a stage's state in words: shards, rows, time, and a rate after a second's work."""
    if stage.status == "waiting":
        if waits_for is None:
            return "not begun"
        return f"waits for {', '.join(waits_for)}" if waits_for else "about to begin"
    if stage.status == "running":
        parts = [*_how_far(stage), *_speed(stage, now), *_missing(stage)]
        if (left := stage.left_s(now)) is not None and left >= LEAST_S:
            parts.insert(1, f"{duration(left)} left")
        return ", ".join(parts)
    rows = [f"{stage.rows:,} rows"] if stage.gives_rows and stage.rows else []
    rows += [f"rows of '{stage.rows_of}' in '{stage.data}'"] if stage.rows_of else []
    files = [f"{stage.files:,} file{'' if stage.files == 1 else 's'}"]
    files = [] if stage.gives_rows else files
    if stage.status in ("done", "found"):
        elapsed = stage.elapsed(now)
        took = "" if elapsed is None else f" in {duration(elapsed)}"
        state = "found done" if stage.status == "found" else f"done{took}"
        return ", ".join([state, *rows, *files, *_speed(stage, now), *_missing(stage)])
    far = [f"stopped at {', '.join(_how_far(stage))}"] if stage.shards or stage.all_units else []
    if stage.status == "failed":
        cause = stage.causes[0] if stage.causes else None
        shard = "" if cause is None or cause.shard is None else f"shard {cause.shard}: "
        found = f"failed: {shard}{' '.join(cause.found.split())}" if cause else "failed"
        return ", ".join([found, *far])
    return ", ".join([*(far or ["stopped"]), *_missing(stage)])


def total_line(live: LiveRun, now: float) -> str:
    """Returns the total in words: stages done, time so far, time left at least."""
    stages = live.stages.values()
    done = sum(stage.status in ("done", "found") for stage in stages)
    parts = [f"{done} of {len(live.stages)} stages done"]
    for status in ("failed", "stopped"):
        if count := sum(stage.status == status for stage in stages):
            parts.append(f"{count} {status}")
    if live.halted:
        pids = " ".join(map(str, live.halted))
        parts.append(f"silent, as a signal stopped it: worker {pids} (kill -CONT {pids})")
    if live.began is not None:
        spent = duration((live.ended or now) - live.began)
        parts.append(f"{spent} so far" if live.works else f"the last run took {spent}")
    left = None if live.halted or not live.works else live.left_s(now)
    if left is not None and left >= LEAST_S:
        waiting = any(stage.status == "waiting" for stage in stages)
        parts.append(f"{'at least ' if waiting else ''}{duration(left)} left")
    return ", ".join(parts)


def board(live: LiveRun, now: float, height: int | None = None, bars: bool = True) -> "Group":
    """Returns a line for each stage and the total, in `height` lines; long lines are cut.

    If there are more stages, running ones come first, then failed ones, the last ended, the next;
    the others are counted.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def styled(text: str, style: str = "") -> Text:
        return Text(harmless(text), style, no_wrap=True, overflow="ellipsis")

    stages = list(live.stages.values())
    shown = _chosen(stages, len(stages) if height is None else height - 1)
    table = Table.grid(padding=(0, 1, 0, 0))
    for most in (1, NAME, *([BAR] if bars else []), None):  # the last column shrinks
        table.add_column(no_wrap=most is not None, max_width=most, overflow="ellipsis")
    for stage in shown:
        mark, colour = MARKS[stage.status]
        share = 1.0 if stage.status in ("done", "found") else stage.share or 0.0
        bar: Any = "" if stage.status == "waiting" else ProgressBar(1.0, share, width=BAR)
        line = stage_line(stage, now, _waits(live, stage) if live.works else None)
        cells = (styled(mark), styled(stage.name), *([bar] if bars else []), styled(line))
        table.add_row(*cells, style=colour)
    hidden = len(stages) - len(shown)
    more = f" ({hidden} more {'stage' if hidden == 1 else 'stages'} not shown)" if hidden else ""
    return Group(table, styled(total_line(live, now) + more, "bold"))


def _chosen(stages: list[Live], rows: int) -> list[Live]:
    """Returns the most important stages that fit in `rows`, in the recipe's order."""
    if len(stages) <= rows:
        return stages
    ended = sorted((s for s in stages if s.status == "done"), key=lambda s: -(s.ended or 0))
    by_status = {
        status: [stage for stage in stages if stage.status == status]
        for status in ("running", "failed", "stopped", "waiting", "found")
    }
    urgent = [*by_status["running"], *by_status["failed"], *by_status["stopped"]]
    next_ = by_status["waiting"]
    ranked = [*urgent, *ended[:1], *next_[:1], *ended[1:], *next_[1:], *by_status["found"]]
    names = {stage.name for stage in ranked[: max(0, rows)]}
    return [stage for stage in stages if stage.name in names]


def _how_far(stage: Live) -> list[str]:
    """Returns shards done, or a call's units done and progress inside the foremost unit."""
    if stage.counts_shards:
        total = "?" if stage.total is None else f"{stage.total:,}"
        rows = stage.rows + int(stage.inside(ROWS))
        again = [piece for piece in stage.pieces.values() if piece.what == MORE_ROWS]
        doing = [f"{stage.inside(MORE_ROWS):,.0f} of {sum(p.all for p in again):,.0f} {MORE_ROWS}"]
        doing = doing if again else []
        doing += sorted({piece.what for piece in stage.pieces.values()} - {ROWS, MORE_ROWS})
        counted = [f"{rows:,} rows"] if rows else []
        return [f"{stage.shards:,} of {total} shards", *counted, *doing]
    pieces = {key: piece for key, piece in stage.pieces.items() if piece.what != key}
    also = sorted(stage.pieces.keys() - pieces.keys())  # without a measure
    foremost = max(pieces.values(), key=lambda piece: piece.done, default=None)
    if foremost and stage.all_units == 1:
        head = f"{stage.call}: {foremost.done:,.0f} of {foremost.all:,.0f} {foremost.what}".rstrip()
    else:
        head = f"{stage.call}: {stage.units:,} of {stage.all_units:,}"
        if foremost:
            head += f", one at {foremost.done:,.0f} of {foremost.all:,.0f} {foremost.what}".rstrip()
    values = foremost.values.items() if foremost else ()
    return [head, *(f"{name} {value:.4g}" for name, value in values), *also]


def _speed(stage: Live, now: float) -> list[str]:
    rate = stage.rows_per_s(now)
    if not rate or rate < 0.05:
        return []
    return [f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.1f} rows/s"]


def _missing(stage: Live) -> list[str]:
    """Returns the rows without a value by kind: `12 failed`, `3 dropped`."""
    return [f"{stage.kinds[kind]:,} {kind}" for kind in KINDS if stage.kinds.get(kind)]


def _waits(live: LiveRun, stage: Live) -> list[str]:
    """Returns the open stages that a stage waits for, without those that these need in turn."""
    needs = [live.stages[need] for need in stage.needs if need in live.stages]
    open_needs = [need for need in needs if need.status not in ("done", "found")]
    before = {name for need in open_needs for name in need.needs}
    return [need.name for need in open_needs if need.name not in before]
