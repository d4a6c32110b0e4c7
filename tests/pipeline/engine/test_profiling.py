"""`run --profile`: files that standard viewers open, with the stage's own functions in them."""

import json

import pytest

STAGES = """
  square: {uses: toy.power, from: numbers}
  shared: {uses: toy.shared, from: numbers}
"""


@pytest.fixture
def profiled(clipmill, engine):
    """A run with `--profile`; the files it left, parsed, by name."""

    def ran(stage, workers=0):
        engine.plan(STAGES)
        run = engine.folder / "run"
        options = ("--out", run, "--workers", workers, "--profile", stage)
        said = clipmill("run", engine.folder / "recipe.yaml", *options)
        found = sorted((run / "profiles").glob("*/*.json"))
        return said, {path.name: json.loads(path.read_text()) for path in found}

    return ran


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.chaos)])
def test_a_row_stage_leaves_speedscopes_of_its_shards_with_its_function(
    profiled, workers, monkeypatch
):
    monkeypatch.setattr("clipmill.pipeline.engine.profiling.INTERVAL_S", 1e-5)
    said, found = profiled("square", workers)
    assert said.code == 0
    assert "profiles/square opens in speedscope.app" in said.err
    expected = [f"00000{shard}.speedscope.json" for shard in range(3 if workers == 0 else 4)]
    assert set(found) == {*expected} if workers == 0 else set(found) <= {*expected}
    for file in found.values():
        assert file["$schema"] == "https://www.speedscope.app/file-format-schema.json"
        (profile,) = file["profiles"]
        frames = file["shared"]["frames"]
        assert profile["type"] == "evented"
        assert profile["events"]
        assert all(event["frame"] < len(frames) for event in profile["events"])
        depth = [1 if event["type"] == "O" else -1 for event in profile["events"]]
        assert sum(depth) == 0
    frames = {str(frame["file"]) for file in found.values() for frame in file["shared"]["frames"]}
    assert any(file.endswith("engine/chain_run.py") for file in frames)
    if workers == 0:
        assert any(file.endswith("toy/power.py") for file in frames)


def test_a_dataset_stage_leaves_one_of_each_unit(profiled):
    said, found = profiled("shared")
    assert said.code == 0
    assert any(name.startswith("01-shuffle-000000-") for name in found)


def test_a_stage_with_a_gpu_leaves_a_chrome_trace(profiled, monkeypatch):
    monkeypatch.setattr("clipmill.pipeline.engine.profiling.profiler_of", lambda planned: "torch")
    _, found = profiled("square")
    assert sorted(found) == [f"00000{shard}.trace.json" for shard in range(3)]
    names = {event.get("name") for file in found.values() for event in file["traceEvents"]}
    assert "square" in names


def test_no_such_stage_is_refused(profiled):
    said, found = profiled("squares")
    assert said.code == 2
    assert "no stage 'squares'" in said.err
    assert not found
