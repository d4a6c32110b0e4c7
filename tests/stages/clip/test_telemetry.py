"""The log of a training: its lines, what a resume takes back, and TensorBoard's file."""

import pytest

from clipmill.stages.clip.telemetry import Log, read_lines, store_events, store_lines


def ticking():
    """A clock that is a second later at each look."""
    seconds = iter(range(1000))
    return lambda: float(next(seconds))


def test_a_line_has_rate_wait_the_slow_shard_and_the_share_of_the_gpu():
    told = []
    log = Log(
        steps=2,
        batch_size=10,
        clock=ticking(),
        at_most_per_s=4.0,
        tell=lambda *words, **values: told.append((words, values)),
    )
    log.waited(0.5, lambda: ["b"])
    log.waited(0.25, lambda: ["a"])
    log.step(1, 3.0, 1e-3, 14.0)
    (line,) = log.lines
    line.pop("time")
    assert line == {
        "step": 1,
        "samples_seen": 10,
        "loss": 3.0,
        "learning_rate": 1e-3,
        "scale": 14.0,
        "samples_per_s": 10.0,
        "data_wait_s": 0.75,
        "slowest_shard": "b",
        "mfu": 0.25,
    }
    assert told == [((1, 2, "steps"), {"loss": 3.0, "samples/s": 10.0})]


def test_a_long_training_has_about_a_thousand_lines_and_its_last_step():
    log = Log(steps=4_999, batch_size=1)
    for step in range(1, 5_000):
        log.step(step, 1.0, 1.0, 1.0)
    assert len(log.lines) == 1_250
    assert log.lines[-1]["step"] == 4_999


def test_a_training_that_goes_on_takes_back_the_lines_after_its_checkpoint(tmp_path):
    store_lines([{"step": step} for step in (1, 2, 3)], str(tmp_path), "seed-1.")
    log = Log(steps=9, batch_size=1, lines=read_lines(str(tmp_path), "seed-1."), step=2)
    assert log.lines == [{"step": 1}, {"step": 2}]
    assert read_lines(str(tmp_path), "") == []
    (tmp_path / "log" / "log.jsonl").write_text('{"step": 1}\n{"st')  # torn by a power cut
    assert read_lines(str(tmp_path), "") == []


@pytest.fixture(scope="module")
def reading():
    """The package. Its import takes seconds: those of no test."""
    return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_tensorboard_reads_the_same_values(reading, tmp_path):
    (tmp_path / "scratch").mkdir()
    lines = [{"step": n, "loss": 3.0 - n, "slowest_shard": None, "time": 100.0 + n} for n in (1, 2)]
    store_events(lines, str(tmp_path), "seed-3.", tmp_path / "scratch")
    read = reading.EventAccumulator(str(tmp_path / "log" / "seed-3")).Reload()
    values = [(event.step, event.value, event.wall_time) for event in read.Scalars("loss")]
    assert values == [(1, 2.0, 101.0), (2, 1.0, 102.0)]
