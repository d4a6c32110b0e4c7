"""Answers that are kept until their shard is stored: what a shard that failed asks for again."""

import json

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.partial_results import PartialResults
from clipmill.pipeline.engine.verify import verify
from tests.engine_stages.harness import meaning

ONE = """
  copy: {uses: toy.answered, from: numbers, script: %(script)s, is_async: %(is_async)s}
"""
AMONG = """
  before: {uses: toy.moody, from: numbers, script: %(calm)s}
  copy:  {uses: toy.answered, from: before, read: {number: before.copy}, script: %(script)s}
  after: {uses: toy.moody, from: copy, read: {number: copy.copy}, script: %(other)s}
"""
KINDS = pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])


class Toys:
    """Runs of a recipe in a mood, and the numbers that toy.answered was asked for."""

    def __init__(self, engine, is_async=True):
        self.engine = engine
        self.script, self.other = engine.folder / "mood.json", engine.folder / "other.json"
        calm = engine.folder / "calm.json"
        calm.write_text("{}")
        self.words = {
            **{"script": self.script, "other": self.other, "calm": calm},
            "is_async": is_async,
        }
        self.mood()

    def mood(self, **mood):
        self.script.write_text(json.dumps(mood))
        self.script.with_suffix(".log").write_text("")

    def run(self, recipe=ONE, *overrides, **options):
        return self.engine.run(recipe % self.words, *overrides, **options)

    def asked(self):
        """By number."""
        return sorted(int(number) for number in self.script.with_suffix(".log").read_text().split())

    def kept(self):
        return sorted(self.engine.folder.glob("run/stages/copy-*/kept/*/*"))


@pytest.fixture
def toys(engine):
    return Toys(engine)


@KINDS
def test_a_shard_that_failed_asks_for_the_rows_that_were_not_answered(engine, is_async):
    toys = Toys(engine, is_async)
    toys.mood(timeout=[2, 5], **{"raise": [9]})
    ran = toys.run()
    assert list(ran.failures("copy")) == [0]
    assert len(toys.kept()) == 1  # the rows before: of shards that are stored nothing is kept
    toys.mood(timeout=[2])
    ran = toys.run()
    assert ran.complete
    assert toys.asked() == [2, 5, 8, 9, 10, 11]
    assert ran.column("copy", "copy") == [0, 1, None, *range(3, 31)]
    assert ran.column("copy", "reason")[:6] == [None, None, "timeout", None, None, None]
    assert not list(engine.folder.glob("run/stages/copy-*/kept"))


def test_what_two_attempts_left_is_one_whole(toys):
    toys.mood(timeout=[0, 7], **{"raise": [8]})
    toys.run()
    toys.mood(timeout=[7], **{"raise": [11]})
    toys.run()
    assert toys.asked() == [0, 7, 8, 9, 10, 11]
    assert len(toys.kept()) == 2
    toys.mood()
    ran = toys.run()
    assert toys.asked() == [7, 8, 9, 10, 11]
    assert ran.column("copy", "copy") == list(range(31))


def test_a_failed_stage_after_it_costs_no_answer(toys):
    """The chain fails as a whole, and is done stage by stage: what it had stays."""
    toys.other.write_text(json.dumps({"raise": [3]}))
    ran = toys.run(AMONG)
    assert list(ran.failures("after")) == [0]
    assert ran.column("copy", "copy") == list(range(31))
    assert set(toys.asked()) == set(range(31))
    assert toys.asked()[:8] == list(range(8))  # a batch that was under way is asked for again
    assert not toys.kept()


def test_the_same_is_stored_as_by_a_run_that_nothing_disturbs(toys):
    toys.mood(**{"raise": [10, 25]})
    toys.run()
    toys.mood()
    toys.run()
    toys.run(out="calm")
    disturbed, calm = (meaning(Storage(str(toys.engine.folder / out))) for out in ("run", "calm"))
    del disturbed["recipes"], calm["recipes"]
    assert disturbed == calm


def test_what_is_kept_of_other_parents_is_asked_for_anew_and_swept(toys):
    toys.mood(**{"raise": [9]})
    toys.run()
    first = toys.engine.pool / "0.txt"
    first.write_text(first.read_text().replace("0\n", "100\n", 1))  # number 0 is now 100
    toys.mood(**{"raise": [10]})
    toys.run()
    assert toys.asked()[:7] == [1, 2, 3, 4, 5, 6, 7]
    assert 100 in toys.asked()
    assert len(toys.kept()) == 1
    toys.mood()
    ran = toys.run()
    assert toys.asked() == [8, 9, 10, 11]
    assert ran.column("copy", "copy")[:2] == [100, 1]


@pytest.mark.parametrize("damage", ["a byte", "cut", "stranger", "its name"])
def test_what_is_damaged_is_asked_for_anew(toys, damage):
    toys.mood(**{"raise": [9]})
    toys.run()
    (file,) = toys.kept()
    data = file.read_bytes()
    if damage == "a byte":
        file.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "stranger":
        file.with_name("notes.txt").write_text("mine")
        file.unlink()
    else:
        file.rename(file.with_name(file.name.replace("-", "-0", 1)))
    toys.mood()
    ran = toys.run()
    assert ran.complete
    assert toys.asked()[:12] == list(range(12))
    assert ran.column("copy", "copy") == list(range(31))
    assert not toys.kept()


def test_a_pass_keeps_its_own(toys):
    recipe = """
  chosen: {uses: select.where, from: numbers, where: number < 3}
  copy: {uses: toy.answered, from: numbers, only: chosen, script: %(script)s}
"""
    toys.run(recipe)
    toys.mood(timeout=[8], **{"raise": [15]})
    toys.run(recipe, "chosen.where=number < 20")  # of shard 1, which is [12, 20), nothing is kept
    assert toys.asked() == [*range(3, 20)]
    toys.mood()
    ran = toys.run(recipe, "chosen.where=number < 19", retry=("timeout",))
    assert toys.asked() == [8, *range(12, 19)]
    assert ran.column("copy", "copy") == [n if n < 19 else None for n in range(31)]
    assert not toys.kept()


def test_verify_and_status_do_not_see_it(toys):
    toys.mood(**{"raise": [9]})
    ran = toys.run()
    assert toys.kept()
    checked = verify(ran.outcome.state.run, lambda done, total: None)
    (copy,) = [found for found in checked if "copy-" in found.folder]
    assert (copy.files, copy.damaged) == (3, [])
    assert sorted(ran.outcome.state.stages["copy"].scan.records) == [1, 2, 3]


def test_a_folder_in_the_place_of_a_file_of_answers_is_named(toys):
    toys.mood(**{"raise": [9]})
    toys.run()
    (path,) = toys.kept()
    path.unlink()
    path.mkdir()
    toys.mood()
    said = toys.run().error("copy")
    assert f"a folder where a file belongs: {path}" in said
    path.rmdir()
    assert toys.run().complete


def test_files_are_few_however_many_batches_there_are(tmp_path, toys):
    planned = toys.engine.plan(ONE % toys.words).stages["copy"]
    folder = Storage(str(tmp_path / "stage"))
    kept = PartialResults(folder, planned, 7, 0, {"numbers": "digest"}, rows=100_000)
    for start in range(0, 100_000, 100):
        position = np.arange(start, start + 100)
        columns = {"uid": uids(position), "copy": position, "reason": reasons(100)}
        kept.add(position, pa.table(columns))
    kept.__exit__(ZeroDivisionError)  # else the last rows are left to the shard's own file
    files = folder.entries("kept/000007")
    assert 50 < len(files) <= 64
    again = PartialResults(folder, planned, 7, 0, {"numbers": "digest"}, rows=100_000)
    position = np.array([0, 5, 70_000, 99_999])
    assert again.has(position).all()
    assert again.rows(position)["copy"].to_pylist() == position.tolist()
    again.drop()
    assert folder.entries("kept/000007") == []


def uids(position):
    return pa.array([int(number).to_bytes(16, "big") for number in position], pa.binary(16))


def reasons(count):
    return pa.nulls(count, pa.dictionary(pa.int32(), pa.string()))
