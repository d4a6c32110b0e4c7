"""Exports, models and other files in out/ that change after they were stored, of every stage."""

import json
from pathlib import Path

import pytest
import yaml

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.engine.verify import repair, verify
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import RunState
from tests import artefacts
from tests.pipeline.engine.test_changed_files import flip


@pytest.fixture
def copied(every_stage, tmp_path) -> RunState:
    """The finished run of every stage, to be damaged."""
    run = artefacts.copied(Path(every_stage.state.run.path), tmp_path / "run")
    return RunState(every_stage.plan, Storage(str(run)))


def outputs(state: RunState) -> dict[str, list[Path]]:
    """The files in out/ and below, by stage."""
    return {
        name: sorted(path for path in Path(stage.folder.path, "out").rglob("*") if path.is_file())
        for name, stage in state.stages.items()
        if Path(stage.folder.path, "out").is_dir()
    }


def run_again(state: RunState) -> RunState:
    outcome = run_plan(state.plan, state.run, LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    return outcome.state


@pytest.mark.chaos  # seconds
def test_verify_finds_a_changed_byte_in_each_and_repair_mends_all(copied):
    before = {name: stage.manifest for name, stage in copied.stages.items()}
    files = outputs(copied)
    assert {
        "shards",
        "samples",
        "uids",
        "clip",
        "dfn",
        "zero",
        "even",
        "leaks",
        "hub",
    } <= files.keys()
    assert any(path.parent.name == "data" for path in files["hub"])
    for paths in files.values():
        for path in paths:
            flip(path)
    found = verify(copied.run, lambda done, total: None)
    named = [damaged.name for checked in found for damaged in checked.damaged]
    assert len(named) == sum(map(len, files.values()))
    repair(copied.plan, copied.run, found, lambda stage: None)
    after = run_again(copied)
    assert not any(checked.damaged for checked in verify(copied.run, lambda done, total: None))
    assert {name: stage.manifest for name, stage in after.stages.items()} == before


@pytest.mark.chaos  # seconds
@pytest.mark.parametrize(("stage", "name"), [("zero", "results.json"), ("clip", "model.json")])
def test_a_run_that_is_done_makes_what_it_tells_of_again(copied, stage, name, clipmill, tmp_path):
    (path,) = (path for path in outputs(copied)[stage] if path.name == name)
    good = path.read_bytes()
    flip(path)
    (*_, ran) = sorted(Path(copied.run.path, "recipes").iterdir())
    recipe = {key: json.loads(ran.read_text())[key] for key in ("seed", "stages")}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe))
    said = clipmill("run", tmp_path / "again.yaml", "--out", copied.run.path, "--workers", 0)
    assert said.code == 0, said.err
    assert f"{stage}: out/{name} is damaged" in said.err
    assert path.read_bytes() == good


@pytest.mark.chaos  # seconds
@pytest.mark.parametrize(
    ("damaged", "suffix", "reader"),
    [
        ("shards", ".parquet", "clip"),
        ("shards", "dataset.json", "clip"),
        ("clip", "model.safetensors", "zero"),
        ("clip", "model.json", "zero"),
        ("dfn", "model.safetensors", "vectors"),
    ],
)
def test_whoever_reads_a_changed_file_has_it_made_again_in_the_same_run(
    copied, damaged, suffix, reader, capfd
):
    path = next(path for path in outputs(copied)[damaged] if path.name.endswith(suffix))
    good = path.read_bytes()
    flip(path)
    for file in Path(copied.stages[reader].folder.path).glob("*.json"):
        file.unlink()  # the reader's records and manifest: it is to be made
    run_again(RunState(copied.plan, copied.run))
    assert f"{damaged}: out/{path.name} is damaged" in capfd.readouterr().err
    assert path.read_bytes() == good
