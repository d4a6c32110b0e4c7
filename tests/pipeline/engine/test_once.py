"""What is made once in a run folder: the same result and files for whoever asks with its key."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from clipmill.metadata.outputs import noted_outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.once import made_once, whole
from tests.engine_stages.harness import environment, meaning
from tests.pipeline.engine.programs import store
from tests.pipeline.engine.test_changed_files import flip

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


def test_a_changed_word_of_a_files_digest_is_not_believed(asked, tmp_path):
    asked("first")
    folder = Storage(str(tmp_path / "stages" / "first"))
    before = noted_outputs(folder)
    note = tmp_path / "stages/first/out-notes/model.json"
    note.write_bytes(note.read_bytes().replace(b'"sha256": "', b'"sha256": "0'))
    assert noted_outputs(folder) == before


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


ONE_FILE = f"""
import sys
from pathlib import Path
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.once import made_once
def make(put):
    path = Path(sys.argv[1], "scratch")
    path.write_text("weights")
    put("model", path)
    return {{"loss": 1}}
run = Storage(sys.argv[1])
made_once(run, "{KEY}", make, run.child("stages/killed"), "")
"""


@pytest.mark.parametrize("point", ["rename */model:1", "write made.json:1"])
def test_files_of_a_maker_that_died_before_its_record_are_nobodys(point, tmp_path):
    died = subprocess.run(
        [sys.executable, "-c", ONE_FILE, tmp_path],
        env=environment(tmp_path / "faults", point),
        start_new_session=True,
    )
    assert died.returncode == -signal.SIGKILL
    run, folder = Storage(str(tmp_path)), Storage(str(tmp_path / "stages" / "it"))
    assert [path.read_text() for path in tmp_path.glob("once/*/*/model")] == ["weights"]
    assert whole(run.child("once").child(KEY)) is None

    def other(put):
        (tmp_path / "scratch").write_text("other weights")
        put("model", tmp_path / "scratch")
        return {"loss": 2}

    assert made_once(run, KEY, other, folder, "") == {"loss": 2}
    assert folder.read("out/model") == b"other weights"


def test_two_makers_at_a_time_leave_the_result_and_all_files_of_one(tmp_path):
    run, both = Storage(str(tmp_path)), threading.Barrier(2, timeout=30)

    def ask(name: str):
        def make(put):
            both.wait()  # neither has found the other's
            for file in ("model", "card"):
                path = tmp_path / f"{name}.scratch"
                path.write_text(f"{file} of {name}")
                put(file, path)
            both.wait()  # all files are there, and no record
            return {"by": name}

        folder = Storage(str(tmp_path / "stages" / name))
        return made_once(run, KEY, make, folder, "")["by"], folder

    with ThreadPoolExecutor(2) as pool:
        asked = dict(pool.map(ask, "ab"))
    assert asked.keys() == {"a", "b"}
    stage = Storage(str(tmp_path / "stages" / "c"))
    found = made_once(run, KEY, dict, stage, "")["by"]  # made no more
    for by, folder in [*asked.items(), (found, stage)]:
        held = [folder.read(f"out/{name}").decode() for name in noted_outputs(folder)]
        assert sorted(held) == [f"card of {by}", f"model of {by}"]


def test_where_a_disk_refuses_a_second_name_the_file_is_copied(asked, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    files = {"model": "of model", "curve/loss": "of curve/loss"}
    assert asked("first")[1:] == (files, 1)
    assert asked("second")[1:] == (files, 1)
    inodes = {path.stat().st_ino for path in tmp_path.glob("**/*model") if path.is_file()}
    assert len(inodes) == 3


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
