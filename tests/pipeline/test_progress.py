"""What a run shows: one line a shard, or a bar a stage on a terminal."""

import io
import sys

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from metadata.record import Failure, Record
from pipeline.progress import Bars, Lines, watcher
from pipeline.terminal import Guarded, guard

FAILURE = Failure(3, {}, False, "a torn file", "pool/3.parquet", "put it back")


def record(shard: int, rows: int, fine: int) -> Record:
    return Record(
        shard=shard,
        data="it",
        size_bytes=1,
        sha256="",
        rows=rows,
        computed=rows,
        uid_sha256="",
        parents={},
        counts={"": fine, "http_404": rows - fine},
        seconds=2.0,
    )


def test_a_line_says_shard_rows_failures_and_speed(capsys):
    Lines().shard("images", record(4, 1000, 900), total=12)
    assert capsys.readouterr().err == (
        "images: shard 4 of 12: 1000 rows, 100 without a value, 500 rows/s\n"
    )


class Pieces(io.StringIO):
    """What is written, call by call."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)
        return len(text)


def test_a_line_is_written_in_one_piece_beside_those_of_other_stages(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Pieces())
    Lines().unit("near", "02-shuffle", 3, 3)
    assert sys.stderr.pieces == ["near: 02-shuffle, 3 units\n"]


def test_a_call_of_a_dataset_stage_is_told_when_it_is_done(capsys):
    for done in (1, 2, 3):
        Lines().unit("near", "02-shuffle", done, 3)
    assert capsys.readouterr().err == "near: 02-shuffle, 3 units\n"


def test_a_failed_shard_says_what_where_and_what_to_do(capsys):
    Lines().failed("pool", FAILURE)
    assert capsys.readouterr().err == (
        "pool: shard 3 failed: a torn file\n  where: pool/3.parquet\n  do:    put it back\n"
    )


def test_a_finished_stage_says_so(capsys, every_stage):
    Lines().finished("lang", every_stage.state.stages["lang"])
    assert capsys.readouterr().err == "lang: done\n"


@pytest.fixture
def screen():
    """Bars on a wide terminal without colours, and what they show."""
    columns = (
        TextColumn("{task.description} {task.completed}/{task.total}"),
        TextColumn("{task.fields[rate]} {task.fields[failed]}"),
    )
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    progress = Progress(*columns, console=console, auto_refresh=False)
    return Bars(progress), progress


def shown(progress: Progress) -> str:
    with progress.console.capture() as capture:
        progress.console.print(progress.get_renderable())
    return capture.get()


def test_a_bar_counts_shards_rows_and_failures(screen):
    bars, progress = screen
    bars.stage("images", total=3, done=1)
    assert "images 1/3" in shown(progress)
    bars.shard("images", record(1, 1000, 900), total=3)
    bars.shard("images", record(2, 1000, 1000), total=3)
    assert "images 3/3" in shown(progress)
    assert "rows/s 100 without a value" in shown(progress)


def test_a_stage_that_is_met_again_keeps_its_bar(screen):
    bars, progress = screen
    bars.stage("images", total=None, done=0)
    bars.stage("images", total=5, done=2)
    assert len(progress.tasks) == 1
    assert "images 2/5" in shown(progress)


def test_a_finished_stage_fills_its_bar(screen, every_stage):
    bars, progress = screen
    bars.stage("shards", total=None, done=0)
    bars.finished("shards", every_stage.state.stages["shards"])
    assert progress.tasks[0].finished


def test_a_failed_shard_stands_above_the_bars_as_it_is_called_and_commands_no_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal)
    guard()
    with watcher() as watch:
        watch.failed("pool", Failure(3, {}, False, "[red] :smile: \x1b]0;x\x07", "\u202e", "mend"))
        print("by the way \x1b[2J")
    assert isinstance(sys.stderr, Guarded)
    said = terminal.getvalue()
    assert "pool: shard 3 failed: [red] :smile: \\u001b]0;x\\u0007\n  where: \\u202e\n" in said
    assert "by the way \\u001b[2J\n" in said


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bars), (False, Lines)])
def test_bars_are_for_terminals(terminal, kind, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with watcher() as watch:
        assert isinstance(watch, kind)
