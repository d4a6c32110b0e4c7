"""A disk without room: the run ends 1 and says so; with room again it goes on where it stopped."""

import contextlib
import errno
import socket
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from clipmill.metadata.schema import REASON, UID
from clipmill.metadata.shard import ShardWriter
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import failures
from clipmill.pipeline.engine.failures import storage_error
from clipmill.pipeline.errors import RetryableError, StageError
from tests.engine_stages.harness import meaning

HERE = Storage(".")
FULL = Path("/dev/full")  # every write to it is answered ENOSPC
STAGES = """
  square: {uses: toy.power, from: numbers}
  fourth: {uses: toy.power, from: square, read: {number: square.power}}
  shared: {uses: toy.shared, from: numbers}
  centre: {uses: toy.centre, from: numbers, rounds: 2}
  files:  {uses: toy.files, from: numbers}
"""


@pytest.fixture
def disk(monkeypatch):
    """Holds as many objects as it has room for; what is written after that meets a full disk.

    `place` is what paths on it begin with: another disk holds the rest.
    """
    whole = Storage.scratch

    class Disk:
        room = 1 << 30
        place = ""

        @contextlib.contextmanager
        def scratch(self, storage: Storage, name: str):
            if not storage.path.startswith(self.place):
                with whole(storage, name) as path:
                    yield path
                return
            self.room -= 1
            with whole(storage, name) as path:
                if self.room < 0:
                    path.symlink_to(FULL)
                yield path

    disk = Disk()
    monkeypatch.setattr(Storage, "scratch", lambda storage, name: disk.scratch(storage, name))
    return disk


def test_a_full_disk_stops_the_stage_and_other_trouble_is_tried_again():
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert isinstance(storage_error(OSError(number, "no room"), "here", HERE), StageError)
    assert isinstance(storage_error(OSError(errno.EIO, "no luck"), "here", HERE), RetryableError)


def test_a_copy_names_the_disk_that_is_full_and_not_the_file_that_is_copied():
    full = OSError(errno.ENOSPC, "no room", "scratch/model.safetensors", None, "run/out/.tmp-1")
    assert storage_error(full, "here", HERE).args[1] == "run/out/.tmp-1, here"


def test_of_one_disk_the_run_folder_is_named_however_its_room_changes(tmp_path, monkeypatch):
    room = iter([7, 5])
    monkeypatch.setattr(failures, "scratch_folder", lambda: tmp_path)
    monkeypatch.setattr(
        failures.shutil, "disk_usage", lambda place: SimpleNamespace(free=next(room))
    )
    folder = tmp_path / "run"
    folder.mkdir()
    full = storage_error(OSError(errno.ENOSPC, "no room"), "here", Storage(str(folder)))
    assert full.args[1] == f"{folder}, here"


def test_scratch_that_is_full_is_named_with_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "scratch_folder", lambda: tmp_path)
    elsewhere = Storage(str(tmp_path / "run"))
    elsewhere.is_local = False
    full = storage_error(OSError(errno.ENOSPC, "no room"), "here", elsewhere)
    assert full.args[1] == f"{tmp_path} on {socket.gethostname()}, here"


def test_parquet_written_to_a_full_disk_fails_by_the_number_of_its_error():
    schema = pa.schema([(column.name, column.dtype) for column in (UID, REASON)])
    rows = pa.table({"uid": [b"0" * 16], "reason": ["why"]}, schema=schema)
    with ShardWriter(FULL, schema) as writer:
        writer.add(rows)
        with pytest.raises(OSError, match="No space left") as refused:
            writer.close()
    assert refused.value.errno == errno.ENOSPC


@pytest.mark.chaos  # seconds
def test_wherever_the_disk_is_full_the_run_ends_one_and_goes_on_with_room(engine, disk, clipmill):
    engine.plan(STAGES)  # writes the recipe
    recipe = engine.folder / "recipe.yaml"
    assert clipmill("run", recipe, "--out", engine.folder / "whole", "--workers", 0).code == 0
    expected = meaning(Storage(str(engine.folder / "whole")))
    objects, disk.room = (1 << 30) - disk.room, 1 << 30
    for room in range(1, objects, 19):
        out = engine.folder / str(room)
        disk.room = room
        said = clipmill("run", recipe, "--out", out, "--workers", 0)
        assert said.code == 1, room
        assert "No space left" in said.out + said.err
        disk.room = 1 << 30
        again = clipmill("run", recipe, "--out", out, "--workers", 0)
        assert again.code == 0, again.out + again.err
        assert meaning(Storage(str(out))) == expected


def test_a_stage_that_meets_a_full_disk_says_what_to_do(engine, disk):
    engine.run(STAGES, until="numbers")
    disk.room, disk.place = 6, str(engine.folder)  # the lock, the recipe, an attempt, little more
    ran = engine.run(STAGES)
    assert "the disk is full" in ran.error("square")
    assert f"where: {engine.folder}/run/stages/square-" in ran.error("square")
    assert "free space there, then run again" in ran.error("square")


def test_a_full_disk_is_told_once_for_all_that_it_stops(engine, disk, clipmill):
    engine.run(STAGES, until="numbers")
    disk.room, disk.place = 6, str(engine.folder)
    out = engine.folder / "run"
    said = clipmill("run", engine.folder / "recipe.yaml", "--out", out, "--workers", 0)
    assert said.code == 1
    assert said.out.count("the disk is full") == 1
    assert f"where: {out}/" in said.out
