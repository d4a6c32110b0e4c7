"""`run --log`: an object a line, for whoever ships logs."""

import json

import pytest

from clipmill.pipeline.run_folder.live import EVENTS, Together, Watcher


@pytest.fixture
def run(clipmill, engine):
    def ran(log, *more):
        engine.plan("  square: {uses: toy.power, from: numbers}\n")
        options = ("--out", engine.folder / "run", "--workers", 0, "--log", log)
        return clipmill("run", engine.folder / "recipe.yaml", *options, *more)

    return ran


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_shard_has_a_line_with_run_stage_attempt_and_seconds(run, engine, tmp_path):
    assert run(tmp_path / "log").code == 0
    said = lines(tmp_path / "log")
    assert {line["run"] for line in said} == {str(engine.folder / "run")}
    assert said[0]["event"] == "begin"
    shards = [line for line in said if (line["stage"], line["event"]) == ("square", "shard")]
    assert [line["shard"] for line in shards] == [0, 1, 2, 3]
    assert [line["attempt"] for line in shards] == [1] * 4
    assert sum(line["rows"] for line in shards) == 31
    assert sum(line["lost"]["sevenfold"] for line in shards if line["lost"]) == 5
    assert all(line["seconds"] >= 0 for line in shards)
    ended = said[-1]
    assert (ended["event"], ended["stage"], ended["complete"]) == ("finished", "square", True)
    assert (ended["shards"], ended["rows"]) == (4, 31)


def test_a_run_more_goes_on_in_it_and_an_error_has_its_three_parts(run, engine, tmp_path):
    run(tmp_path / "log")
    before = len(lines(tmp_path / "log"))
    assert run(tmp_path / "log", "--set", "square.exponent=-1").code == 1
    more = lines(tmp_path / "log")[before:]
    failed = next(line for line in more if line["event"] == "failed")
    assert failed["stage"] == "square"
    assert failed.keys() >= {"shard", "found", "where", "do", "crashed"}


def test_a_log_that_cannot_be_written_is_refused(run, tmp_path):
    said = run(tmp_path)
    assert said.code == 2
    assert f"--log {tmp_path}" in said.err


def test_watchers_together_each_get_every_event():
    said = []

    class Told(Watcher):
        def __getattribute__(self, event):
            return lambda *given: said.append((event, *given))

    both = Together(Told(), Told())
    for event in EVENTS:
        getattr(both, event)(event)
    assert said == [(event, event) for event in EVENTS for _ in range(2)]
    assert {"begin", "shard", "noticed"} < {*EVENTS}
