"""Rows kept on scratch disk: read from storage once, and equal whatever becomes of the copies."""

import os
import shutil
import tempfile
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.scratch import PREFIX
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.local_shards import put_copy, read_copy
from tests.engine_stages.harness import STAGES, clipmill_run, points_of
from tests.pipeline.engine.programs import added, plus, read, summed, with_value

ROUNDS = 3
OPENED: list[str] = []  # data of the pool and of a first shuffle that was opened, in this process
BETWEEN: list = []  # called with the scratch folder before each round


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """A temporary folder of this test's own, in which the workers keep their copies."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("clipmill.metadata.scratch._locked", {})
    return folder


@pytest.fixture
def program(engine, scratch, monkeypatch):
    """Runs one of the functions below as a dataset stage, and counts what it opens."""
    for door in ("open", "read_at"):
        whole = getattr(Storage, door)

        def counted(storage: Storage, name: str, *place: int, whole=whole):
            if "numbers-" in storage.path or ("01-shuffle.data" in name and ".arrows" in name):
                OPENED.append(name)
            return whole(storage, name, *place)

        monkeypatch.setattr(Storage, door, counted)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STAGES), os.getcwd()]))
    for seen in (OPENED, BETWEEN):
        seen.clear()

    def run(function, **more):
        stages = f"  it: {{uses: toy.program, from: numbers, function: '{__name__}:{function}'}}\n"
        return engine.run(stages, **more)

    return run


def copies(folder: Path) -> list[Path]:
    """Everything that lies in shared scratch folders."""
    return sorted(folder.glob(f"{PREFIX}rows-*/*"))


def sums(rows, ctx):
    """A sum over the rows in each round, stored as the value of every row."""

    def step(state, number):
        for call in BETWEEN:
            call(Path(tempfile.gettempdir()))
        return {"sum": state["sum"] * 3 + ctx.reduce(summed, rows, added)["sum"]}

    end = ctx.iterate({"sum": np.int64(0)}, step, ROUNDS)
    ctx.restore(ctx.map_shards(partial(with_value, partial(plus, int(end["sum"]))), rows))


def as_it_lies(inputs, ctx):
    sums(inputs.rows, ctx)


def kept(inputs, ctx):
    sums(ctx.keep_local(inputs.rows), ctx)


def kept_as_read(inputs, ctx):
    sums(ctx.keep_local(ctx.map_shards(read, inputs.rows.select(["number"]))), ctx)


def kept_of_a_shuffle(inputs, ctx):
    sums(ctx.keep_local(ctx.shuffle(inputs.rows, "number", PARTITIONS)), ctx)


EXPECTED = [number + 465 * 13 for number in range(31)]
SHARDS, PARTITIONS = 4, 3  # of the shards one is empty


def test_storage_is_read_once_and_the_copies_go_with_the_stage(program, scratch):
    assert program("as_it_lies").column("it", "value") == EXPECTED
    assert len(OPENED) == SHARDS * (ROUNDS + 1)
    OPENED.clear()
    shutil.rmtree(scratch.parent / "run")
    found: list[int] = []
    BETWEEN.append(lambda folder: found.append(len(copies(folder))))
    assert program("kept").column("it", "value") == EXPECTED
    assert len(OPENED) == SHARDS
    assert found == [0, SHARDS, SHARDS]
    assert not list(scratch.glob(f"{PREFIX}rows-*"))


def test_the_rows_of_a_shuffle_are_kept_too(program):
    assert program("kept_of_a_shuffle").column("it", "value") == EXPECTED
    most = PARTITIONS * (SHARDS - 1)  # pieces: the empty shard has none
    pieces = len(OPENED) - 2 * SHARDS  # beside shards, and the ends of files
    assert PARTITIONS <= pieces <= most


def test_without_room_for_a_copy_storage_is_read_each_time(program, monkeypatch, scratch):
    disk = namedtuple("disk", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk(10_000, 8_900, 1_100))
    found: set[str] = set()
    BETWEEN.append(lambda folder: found.update(path.name[:8] for path in copies(folder)))
    assert program("kept").column("it", "value") == EXPECTED
    assert len(OPENED) == 3 * (ROUNDS + 1) + 1
    assert found == {"1-000002"}  # the empty shard alone fits


def test_a_disk_that_fails_costs_nothing_but_the_copy(program, monkeypatch):
    whole = pa.OSFile

    def full(path, mode):
        if Path(path).parent.name.startswith(f"{PREFIX}rows-"):  # a copy, and no shard
            raise OSError(28, "No space left on device")
        return whole(path, mode)

    monkeypatch.setattr(pa, "OSFile", full)
    assert program("kept").column("it", "value") == EXPECTED
    assert len(OPENED) == SHARDS * (ROUNDS + 1)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flipped, cut, emptied, Path.unlink])
def test_a_copy_that_is_damaged_or_gone_is_made_again(harm, program):
    harmed: list[Path] = []

    def once(folder: Path) -> None:
        if not harmed and copies(folder):
            harmed.append(copies(folder)[-1])
            harm(harmed[0])

    BETWEEN.append(once)
    assert program("kept").column("it", "value") == EXPECTED
    assert len(harmed) == 1
    assert len(OPENED) == SHARDS + 1


def test_a_scratch_folder_that_vanishes_is_made_again(program):
    gone = []

    def once(folder: Path) -> None:
        for path in folder.glob(f"{PREFIX}rows-*"):
            if not gone and copies(folder):
                gone.append(path)
                shutil.rmtree(path)

    BETWEEN.append(once)
    assert program("kept").column("it", "value") == EXPECTED
    assert len(OPENED) == 2 * SHARDS


def test_a_changed_parent_is_read_anew(program, engine):
    assert program("kept").complete
    OPENED.clear()
    (engine.pool / "2.txt").write_text("".join(f"{n}\n" for n in range(100, 111)))
    ran = program("kept")
    rows = [*range(20), *range(100, 111)]
    assert ran.column("it", "value") == [number + sum(rows) * 13 for number in rows]


@pytest.mark.slow("starts two workers")
def test_workers_of_a_machine_share_the_copies(program, scratch, tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    seen.mkdir()
    monkeypatch.setenv("CLIPMILL_TEST_SEEN", str(seen))
    assert program("kept_as_read", workers=2).column("it", "value") == EXPECTED
    assert len(list(seen.iterdir())) == SHARDS
    assert not list(scratch.glob(f"{PREFIX}rows-*"))


@pytest.mark.chaos
def test_killed_while_it_writes_a_copy_the_next_run_takes_the_folder_away(
    engine, scratch, tmp_path
):
    recipe = tmp_path / "kept.yaml"
    recipe.write_text(
        f"stages:\n  numbers: {{uses: toy.numbers, path: {engine.pool}, shard_rows: 12}}\n"
        f"  it: {{uses: toy.program, from: numbers, function: '{__name__}:kept'}}\n"
    )
    killed = clipmill_run(recipe, tmp_path / "run", tmp_path / "first", fault="copy:2", workers=2)
    assert killed.killed, killed.output
    assert any(path.name.startswith(".tmp-") for path in copies(scratch))
    again = clipmill_run(recipe, tmp_path / "run", tmp_path / "again", workers=2)
    assert again.code == 0, again.output
    assert not list(scratch.glob(f"{PREFIX}*"))
    assert len([p for p in points_of(tmp_path / "again") if p.startswith("copy ")]) == SHARDS


# One copy


def test_a_copy_holds_every_type_and_is_not_copied_into_memory(tmp_path):
    words = pa.chunked_array(
        [pa.array(["a", None, "b"]).dictionary_encode(), pa.array(["c"]).dictionary_encode()]
    )
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(range(8), pa.float32()), 2)
    table = pa.table({"word": words, "vector": vectors, "half": pa.array(np.zeros(4, np.float16))})
    table = table.unify_dictionaries().combine_chunks()
    path = tmp_path / "copy"
    put_copy(path, table)
    before = pa.total_allocated_bytes()
    read = read_copy(path)
    assert pa.total_allocated_bytes() == before
    assert read.equals(table)
    assert read.schema.equals(table.schema)
    path.unlink()
    assert read.equals(table)  # mapped still, by whoever reads it


def test_a_copy_that_is_mapped_is_held_until_its_file_changes(tmp_path):
    path = tmp_path / "copy"
    put_copy(path, pa.table({"number": [1, 2, 3]}))
    first = read_copy(path)
    assert read_copy(path) is first
    put_copy(path, pa.table({"number": [4, 5]}))
    assert read_copy(path)["number"].to_pylist() == [4, 5]
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    assert read_copy(path) is None


def test_a_copy_of_no_rows_is_one(tmp_path):
    empty = pa.table({"number": pa.array([], pa.int64())})
    put_copy(tmp_path / "copy", empty)
    assert read_copy(tmp_path / "copy").equals(empty)
