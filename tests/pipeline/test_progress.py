"""What a run shows: bars on a terminal, now and then lines elsewhere; the words of both."""

import io
import re
import sys
import threading

import pytest

from clipmill.metadata.record import Failure
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.progress import (
    Bars,
    Lines,
    board,
    running_lines,
    stage_line,
    total_line,
    watcher,
)
from clipmill.pipeline.run_folder.live import Cause, Live, LiveRun, Piece
from clipmill.pipeline.run_folder.words import duration, in_words, kind_of
from clipmill.pipeline.terminal import Guarded, as_text, guard

FAILURE = Failure(3, {}, False, "a torn file", "pool/3.parquet", "put it back")
NOW = 1000.0


def stage(name: str = "images", **facts) -> Live:
    kinds = {"is_row": True, "is_root": False, "is_select": False, "gives_rows": True}
    return Live(name=name, uses="", folder=name, needs=[], **kinds | facts)


def run_of(*stages: Live, **facts) -> LiveRun:
    by_name = {stage.name: stage for stage in stages}
    return LiveRun("run", "mine.yaml", "running", by_name, began=NOW - 90, **facts)


def running(name: str = "images", **facts) -> Live:
    return stage(name, status="running", began=NOW - 20, **facts)


def drawn(live: LiveRun, width: int, height: int | None = None) -> list[str]:
    return as_text(board(live, NOW, height), width).splitlines()


# A stage in words


def test_a_running_stage_says_shards_time_left_rows_speed_and_what_was_lost_how():
    reasons = {"": 800, "http_404": 150, "no_url": 30, "not_selected": 20}
    line = stage_line(running(shards=2, total=8, rows=1000, computed=1000, reasons=reasons), NOW)
    assert line == (
        "2 of 8 shards, 1:00 left, 1,000 rows, 50 rows/s, 150 failed, 30 no input, 20 not selected"
    )


def test_progress_moves_within_a_shard():
    piece = Piece(100, 400, "rows")
    alone = running(shards=0, total=1, pieces={"0": piece})
    assert stage_line(alone, NOW) == "0 of 1 shards, 1:00 left, 100 rows, 5.0 rows/s"
    assert alone.share == 0.25


def test_what_a_worker_does_before_its_first_row_is_said_once():
    piece = Piece(0, 1, "making a Python with one, two")
    begun = running(shards=0, total=2, pieces={"0": Piece(0, 400, "rows"), "a": piece, "b": piece})
    assert stage_line(begun, NOW) == "0 of 2 shards, making a Python with one, two"


def test_that_code_is_compiled_is_said_beside_how_far_a_call_is():
    pieces = {"0": Piece(0, 1), "compiling once": Piece(0, 1, "compiling once")}
    near = running(is_row=False, call="comparing captions", all_units=1, pieces=pieces)
    assert stage_line(near, NOW) == "comparing captions: 0 of 1, compiling once"


def test_what_was_there_before_is_not_counted_as_speed():
    resumed = running(shards=6, found=4, total=8, rows=600, computed=200)
    assert stage_line(resumed, NOW) == "6 of 8 shards, 20 s left, 600 rows, 10 rows/s"


def test_no_rate_and_no_time_left_is_told_of_less_than_a_second():
    brief = stage(status="running", began=NOW - 0.5, shards=1, total=2, rows=2500, computed=2500)
    assert stage_line(brief, NOW) == "1 of 2 shards, 2,500 rows"
    done = stage(status="done", began=NOW - 0.5, ended=NOW, rows=2500, computed=2500)
    assert stage_line(done, NOW) == "done in 0.5 s, 2,500 rows"
    one = stage(status="done", began=NOW - 30, ended=NOW, rows=2500, computed=1)
    assert stage_line(one, NOW) == "done in 30 s, 2,500 rows"


def test_a_training_says_step_loss_and_time_left():
    training = running(
        is_row=False,
        gives_rows=False,
        call="training",
        call_began=NOW - 20,
        call_moved=NOW,
        all_units=1,
        pieces={"0": Piece(50, 200, "steps", {"loss": 3.21456})},
    )
    assert stage_line(training, NOW) == "training: 50 of 200 steps, 1:00 left, loss 3.215"


def test_a_call_that_waits_for_workers_has_no_more_time_left_the_longer_it_waits():
    waits = running(
        is_row=False,
        call="training",
        call_began=NOW - 80,
        call_moved=NOW - 60,
        units=1,
        all_units=2,
    )
    assert stage_line(waits, NOW) == "training: 1 of 2, 20 s left"
    assert stage_line(waits, NOW + 600) == "training: 1 of 2, 20 s left"


def test_a_call_says_its_units_and_how_far_one_in_hand_is():
    call = running(is_row=False, call="comparing captions", call_began=NOW, units=2, all_units=8)
    assert stage_line(call, NOW) == "comparing captions: 2 of 8"
    call.pieces["2"] = Piece(5, 10, "files")
    assert stage_line(call, NOW) == "comparing captions: 2 of 8, one at 5 of 10 files"


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"status": "found", "rows": 600}, "found done, 600 rows"),
        ({"status": "done", "rows": 600}, "done, 600 rows"),
        ({"status": "done", "gives_rows": False, "files": 1}, "done, 1 file"),
        ({"status": "waiting"}, "not begun"),
        ({"status": "stopped", "shards": 3, "total": 8}, "stopped at 3 of 8 shards"),
        (
            {"status": "failed", "causes": [Cause(2, False, "a torn\nfile", "", "")]},
            "failed: shard 2: a torn file",
        ),
    ],
)
def test_a_stage_that_does_not_run_says_why(facts, line):
    assert stage_line(stage(**facts), NOW) == line


@pytest.mark.parametrize(
    ("reason", "is_select", "is_root", "kind"),
    [
        ("http_404", False, False, "failed"),
        ("no_image", False, False, "no input"),
        ("no_url", False, True, "failed"),
        ("not_selected", False, False, "not selected"),
        ("clip_score >= 0.3", True, False, "dropped"),
        ("undefined:clip_score", True, False, "no input"),
        ("dropped_before", True, False, "dropped before"),
        ("dropped_before", False, False, "dropped before"),
    ],
)
def test_rows_without_a_value_are_told_apart(reason, is_select, is_root, kind):
    assert kind_of(reason, is_select, is_root) == kind


def test_words_of_the_engine_have_plain_words():
    assert in_words("undefined:image_bytes") == "image_bytes has no value"
    assert in_words("dropped_before") == "dropped by an earlier select"
    assert in_words("http_404") == "http_404"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (200, "3:20")]
)
def test_a_duration_is_read_at_once(seconds, text):
    assert duration(seconds) == text
    assert duration(3723) == "1:02:03"


# All of them


def test_the_sum_says_stages_time_and_what_is_left_at_least():
    live = run_of(
        stage("a", status="done"),
        running(shards=1, total=2),
        stage("c", status="failed"),
        stage("d"),
    )
    assert total_line(live, NOW) == "1 of 4 stages done, 1 failed, 1:30 so far, at least 20 s left"
    live.ended, live.phase = NOW, "failed"
    assert total_line(live, NOW) == "1 of 4 stages done, 1 failed, the last run took 1:30"


def test_a_worker_that_was_stopped_is_told_and_no_time_left_beside_it():
    line = total_line(run_of(running(shards=2, total=8), halted=[12, 34]), NOW)
    assert "silent, as a signal stopped it: worker 12 34 (kill -CONT 12 34)" in line
    assert "left" not in line


def test_a_waiting_stage_has_no_bar_and_says_what_for():
    waiting = stage("late")
    waiting.needs = ["images", "early"]
    early, busy = stage("early", status="done"), running(shards=1, total=4)
    lines = drawn(run_of(early, busy, waiting), 80)
    assert lines[0].startswith("+ early  ━━━━━━━━━━━━━━━━ done")
    assert lines[1].startswith("> images ━━━━             1 of 4 shards")
    assert lines[2] == f". late   {'':16} waits for images"


def test_a_short_terminal_keeps_the_working_rows_and_counts_the_others():
    stages = [
        *(stage(f"done{n}", status="done", ended=NOW - 90 + n) for n in range(9)),
        running("busy", shards=1, total=2),
        stage("broken", status="failed"),
        *(stage(f"later{n}") for n in range(9)),
    ]
    lines = drawn(run_of(*stages), 80, 6)
    names = [line.split()[1] for line in lines[:-1]]
    assert names == ["done7", "done8", "busy", "broken", "later0"]
    assert lines[-1].startswith("9 of 20 stages done, 1 failed, 1:30 so far, at least 20 s left ")
    (only,) = drawn(run_of(*stages), 80, 1)
    assert only.startswith("9 of 20")


@pytest.mark.parametrize("width", [20, 80, 140])
def test_no_line_is_wider_than_the_terminal(width):
    stages = [running("a" * 50, shards=1, total=2, rows=10**9, reasons={"http_404": 10**8})]
    lines = drawn(run_of(*stages), width)
    assert len(lines) == 2
    assert all(len(line) <= width for line in lines)


# Where they are shown


class Pieces(io.StringIO):
    """What is written, call by call."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)
        return len(text)


def test_lines_are_written_in_one_piece_beside_those_of_other_stages(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Pieces())
    Lines().failed("pool", FAILURE)
    assert sys.stderr.pieces == [
        "pool: shard 3 failed: a torn file\n  where: pool/3.parquet\n  do:    put it back\n"
    ]


def test_a_log_tells_of_the_running_stages_and_no_others():
    live = run_of(stage("a", status="done"), running(shards=1, total=2), stage("c"))
    assert running_lines(live, NOW) == ["images: 1 of 2 shards, 20 s left"]


def test_a_stage_is_told_of_when_it_is_done_and_found_done_in_the_next_run(engine, capsys):
    script = engine.folder / "script.json"
    script.write_text('{"timeout": [3, 4]}')
    stages = f"  copy: {{uses: toy.moody, from: numbers, script: {script}}}\n"
    assert engine.run(stages).complete
    said = capsys.readouterr().err
    assert re.search(r"^copy: done in [\d.]+ s, 31 rows, 2 failed$", said, re.MULTILINE)
    assert len(said.splitlines()) <= 4
    assert engine.run(stages).complete
    assert capsys.readouterr().err.splitlines() == [
        "numbers: found done, 31 rows",
        "copy: found done, 31 rows, 2 failed",
    ]


def test_one_thread_reports_on_all_runs_of_a_watcher():
    with watcher() as watch:
        before = threading.active_count()
        for _ in range(3):  # as `bench` runs an arm after the other
            watch.begin(lambda: run_of(running(shards=1, total=2)))
        assert threading.active_count() == before + 1


def test_a_stage_that_stops_says_why_at_once(capsys):
    Lines().stopped("copy", StageError("7 rows came back", "stage 'copy'", "mend it"))
    assert capsys.readouterr().err == "copy: failed: 7 rows came back\n"


def test_a_failed_shard_stands_above_the_bars_as_it_is_called_and_commands_no_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal)
    guard()
    with watcher() as watch:
        watch.begin(lambda: run_of(running("\x1b]0;x\x07", shards=1, total=2)))
        watch.failed("pool", Failure(3, {}, False, "[red] :smile: \x1b]0;x\x07", "\u202e", "mend"))
        print("by the way \x1b[2J")
    assert isinstance(sys.stderr, Guarded)
    said = terminal.getvalue()
    assert "pool: shard 3 failed: [red] :smile: \\u001b]0;x\\u0007\n  where: \\u202e\n" in said
    assert "by the way \\u001b[2J\n" in said
    assert "> \\u001b]0;x\\u0007 ━━━━" in re.sub(r"\x1b\[[\d;]*m", "", said)


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bars), (False, Lines)])
def test_bars_are_for_terminals(terminal, kind, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with watcher() as watch:
        assert isinstance(watch, kind)
