"""What is made once in a run folder: the same result and files for whoever asks with its key."""

import json
from functools import partial

import pytest

from metadata.outputs import noted_outputs
from metadata.storage import Storage
from pipeline.engine.once import made_once
from tests.engine_stages.harness import meaning
from tests.pipeline.engine.test_changed_files import flip
from tests.pipeline.engine.test_context import store

KEY = "0123456789abcdef"


@pytest.fixture
def asked(tmp_path):
    """What a stage gets that asks, its out/ by name, and how often it was made so far."""
    calls = []

    def make(put):
        calls.append(1)
        for name in ("model", "curve/loss"):
            path = tmp_path / "scratch"
            path.write_text(f"of {name}")
            put(name, path)
        return {"loss": 0.5, "steps": (1, 2)}

    def ask(stage: str, prefix: str = ""):
        folder = Storage(str(tmp_path / "stages" / stage))
        result = made_once(Storage(str(tmp_path)), KEY, make, folder, prefix)
        held = {name: folder.read(f"out/{name}").decode() for name in noted_outputs(folder)}
        return result, held, len(calls)

    return ask


def test_the_second_to_ask_gets_result_and_files_of_the_first_under_its_own_names(asked, tmp_path):
    result = {"loss": 0.5, "steps": [1, 2]}
    files = {"model": "of model", "curve/loss": "of curve/loss"}
    assert asked("first") == (result, files, 1)
    assert asked("second", "seed-3.") == (result, {f"seed-3.{n}": t for n, t in files.items()}, 1)
    inodes = {path.stat().st_ino for path in tmp_path.glob("**/*model") if path.is_file()}
    assert len(inodes) == 1


def test_a_damaged_file_a_lost_one_and_a_torn_record_are_made_again(asked, tmp_path):
    asked("first")
    (model,) = tmp_path.glob("once/*/*/model")
    model.write_text("xx model")
    assert asked("second")[1:] == ({"model": "of model", "curve/loss": "of curve/loss"}, 2)
    model.unlink()
    assert asked("third")[2] == 3
    (tmp_path / "once" / KEY / "made.json").write_text(json.dumps({"digest": "", "value": {}}))
    assert asked("fourth")[2] == 4
    assert asked("fifth")[2] == 4


def made_by_a_key(inputs, ctx):
    ctx.map(one_file, [0])
    store(inputs.rows, ctx)


def one_file(item, task):
    return task.once(KEY, partial(write, task.worker.scratch / "model"))


def write(path, put):
    path.write_text("weights")
    put(path.name, path)
    return {"loss": 1}


def test_verify_names_a_damaged_file_and_repair_makes_it_again(engine, clipmill):
    name = f"{__name__}:made_by_a_key"
    engine.run(f"  it: {{uses: toy.program, from: numbers, function: '{name}'}}\n")
    run = engine.folder / "run"
    before = meaning(Storage(str(run)))
    (model,) = run.glob("once/*/*/model")
    flip(model)  # the file in out/ is the same
    said = clipmill("verify", "--run", run, "--json")
    damaged = {stage["folder"].split("-")[0]: stage["damaged"] for stage in said.json}
    assert {folder for folder, found in damaged.items() if found} == {"once", "stages/it"}
    assert clipmill("verify", "--run", run, "--repair").code == 0
    assert meaning(Storage(str(run))) == before


def test_a_key_that_is_no_digest_is_refused(tmp_path):
    run = Storage(str(tmp_path))
    with pytest.raises(ValueError, match="is no digest"):
        made_once(run, "../out", dict, run, "")
