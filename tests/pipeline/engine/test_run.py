"""What a run does again and what it leaves alone; what fails, by name, and what goes on."""

import json
import os
import re
import shutil
from contextlib import closing

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import dataset_job
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import latest
from tests.engine_stages.harness import meaning, toy_stages, write_pool
from tests.pipeline.conftest import Engine

ROWS = """
  square: {uses: toy.power, from: numbers}
  fourth: {uses: toy.power, from: square, read: {number: square.power}}
"""
ALL = f"""{ROWS}
  shared: {{uses: toy.shared, from: numbers}}
  centre: {{uses: toy.centre, from: numbers, rounds: 3}}
  chosen: {{uses: select.where, from: [fourth, shared, centre], where: shared > 6}}
  cube:   {{uses: toy.power, from: numbers, only: chosen, exponent: 3}}
  uids:   {{uses: export.uid_list, from: chosen}}
"""
MOODY = "  copy: {uses: toy.moody, from: numbers, script: %s}\n"


@pytest.fixture
def mood(engine):
    """Writes the script of a toy.moody, and gives the stage's line of the recipe."""
    script = engine.folder / "mood.json"

    def write(**mood) -> str:
        script.write_text(json.dumps(mood))
        return MOODY % script

    return write


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of ALL, to be read."""
    with toy_stages():
        engine = Engine(tmp_path_factory.mktemp("finished"))
        ran = engine.run(ALL)
        assert ran.complete
        yield engine, ran


@pytest.fixture
def again(finished, tmp_path):
    """A finished run of ALL, to be changed and run again."""
    return finished[0].copy(tmp_path)


def seen(engine) -> list[int]:
    """The numbers that toy.moody has been given, in order."""
    return list(map(int, (engine.folder / "mood.log").read_text().split()))


# What is there stays


def test_a_second_run_writes_nothing(finished):
    engine, first = finished
    before = {name: first.written(name) for name in first.outcome.state.stages}
    again = engine.run(ALL)
    assert again.complete
    assert {name: again.written(name) for name in before} == before


def test_a_stage_that_was_added_is_all_that_runs(engine):
    before = engine.run(ROWS)
    after = engine.run(ALL)
    for name in ("numbers", "square", "fourth"):
        assert after.written(name) == before.written(name)
    assert after.complete


def test_values_do_not_depend_on_the_size_of_shards(engine, finished):
    columns = (("fourth", "power"), ("shared", "shared"), ("centre", "distance"), ("cube", "power"))
    small, large = engine.run(ALL, "numbers.shard_rows=5"), finished[1]
    assert len(small.records("cube")) > len(large.records("cube"))
    for stage, column in columns:
        values = small.column(stage, column)
        assert values == large.column(stage, column)
        assert any(value is not None for value in values)


def test_the_number_of_partitions_changes_no_byte(engine, finished):
    shared = ALL[ALL.index("  shared") : ALL.index("  centre")]
    names = {tuple(record.data for [record] in finished[1].records("shared").values())}
    for partitions in (1, 7):
        ran = engine.run(shared, f"shared.partitions={partitions}", out=f"run{partitions}")
        names.add(tuple(record.data for [record] in ran.records("shared").values()))
    assert len(names) == 1


def test_known_values(finished):
    _, ran = finished
    numbers = range(31)
    square = [None if n % 7 == 0 else n * n for n in numbers]
    assert ran.column("square", "power") == square
    assert ran.column("square", "reason")[:8] == ["sevenfold", *[None] * 6, "sevenfold"]
    assert ran.column("fourth", "power") == [None if s is None else s * s for s in square]
    assert ran.column("fourth", "reason")[0] == "no_number"
    assert ran.column("shared", "shared") == [7 if n % 5 == 0 else 6 for n in numbers]
    assert ran.column("centre", "distance") == [n - 13 for n in numbers]  # 0, 7, 11, 13 of mean 15
    assert ran.column("chosen", "keep") == [n % 5 == 0 for n in numbers]


def test_a_shard_without_rows_is_a_shard(finished):
    _, ran = finished
    assert [record.rows for [record] in ran.records("cube").values()] == [12, 8, 0, 11]
    assert ran.column("shared", "shared", shard=2) == []


# The pool changes


def test_a_changed_file_redoes_its_shards_alone(engine):
    before = engine.run(ROWS)
    (engine.pool / "2.txt").write_text("1\n2\n3\n")
    after = engine.run(ROWS)
    for name in ("numbers", "square", "fourth"):
        changed = {
            file
            for file, when in after.written(name).items()
            if before.written(name).get(file) != when
        }
        known = {"origin"} if name == "numbers" else set()
        assert {file[:6] for file in changed} == {"000003", "record", "manife"} | known
    assert after.column("square", "power", shard=3) == [1, 4, 9]
    assert after.complete


def test_a_parent_redone_to_the_same_bytes_redoes_no_child(engine):
    before = engine.run(ROWS)
    folder = before.outcome.state.stages["numbers"].folder
    [record] = before.records("numbers")[0]
    os.remove(folder.locate(record.data))
    after = engine.run(ROWS)
    assert after.complete
    assert after.written("square") == before.written("square")
    assert record.data in after.written("numbers")


def test_a_file_more_is_a_shard_more(again):
    before = again.run(ALL)
    write_pool(again.pool, [20, 0, 11, 5])
    after = again.run(ALL)
    assert after.complete
    assert len(after.records("square")) == 5
    assert before.written("square").items() - after.written("square").items() == {
        (name, before.written("square")[name]) for name in ("records.parquet", "manifest.json")
    }
    assert after.column("shared", "shared")[:5] == [8, 7, 7, 7, 7]


def test_a_file_less_is_a_shard_less_and_its_rows_are_gone(again):
    (again.pool / "2.txt").unlink()
    after = again.run(ALL)
    assert after.complete
    assert after.column("numbers", "number") == list(range(20))
    assert after.column("shared", "shared") == [4] * 20
    assert after.column("chosen", "keep") == [False] * 20


def test_a_pool_that_shrank_and_came_back_is_as_it_was(engine):
    stages = ALL.partition("  cube")[0]  # which would keep the passes of the time between
    engine.run(stages)
    kept = (engine.pool / "2.txt").read_text()
    first = meaning(Storage(str(engine.folder / "run")))
    (engine.pool / "2.txt").unlink()
    engine.run(stages)
    (engine.pool / "2.txt").write_text(kept)
    assert engine.run(stages).complete
    found = meaning(Storage(str(engine.folder / "run")))
    stale = {name for name in found if name.endswith(".parquet")} - first.keys()
    assert {name: found[name] for name in found.keys() - stale} == first


def test_an_export_of_a_smaller_pool_holds_no_file_of_the_larger(engine):
    stages = "  files: {uses: toy.files, from: numbers}\n"
    engine.run(stages)
    (engine.pool / "2.txt").unlink()
    after = engine.run(stages)
    outputs = after.outcome.state.stages["files"].manifest.outputs
    assert [name for name, _ in outputs] == ["0.txt", "1.txt", "2.txt"]
    out = engine.folder / "run" / after.outcome.state.plan.stages["files"].folder / "out"
    assert sorted(file.name for file in out.iterdir()) == ["0.txt", "1.txt", "2.txt"]


def test_an_empty_pool_is_said(engine):
    shutil.rmtree(engine.pool)
    engine.pool.mkdir()
    ran = engine.run(ROWS)
    assert not ran.complete
    assert "no *.txt file" in ran.error("numbers")
    assert str(engine.pool) in ran.error("numbers")


def test_a_pool_of_shards_without_rows_runs_to_its_end(engine):
    shutil.rmtree(engine.pool)
    write_pool(engine.pool, [0, 0])
    ran = engine.run(ALL)
    assert ran.complete
    assert ran.column("cube", "power") == []


# What a disk does


def test_a_record_whose_data_has_another_size_is_not_believed(engine):
    before = engine.run(ROWS)
    folder = before.outcome.state.stages["square"].folder
    [record] = before.records("square")[1]
    whole = folder.read(record.data)
    with open(folder.locate(record.data), "wb") as file:
        file.write(whole[:-1])
    after = engine.run(ROWS)
    assert after.complete
    assert folder.read(record.data) == whole
    changed = after.written("fourth").items() - before.written("fourth").items()
    assert {name for name, _ in changed} <= {"records.parquet", "manifest.json"}


# What fails, by name


def test_a_function_that_raises_fails_its_shard_and_no_other(engine, mood):
    ran = engine.run(mood(**{"raise": [13]}))
    assert not ran.complete
    [(shard, failure)] = ran.failures("copy").items()
    assert shard == 1
    assert not failure.crashed
    assert failure.found == "ZeroDivisionError: in a bad mood"
    assert "stage 'copy', shard 1" in failure.where
    assert "moody.py:" in failure.where
    assert sorted(ran.records("copy")) == [0, 2, 3]


def test_a_failed_shard_is_tried_again_by_the_next_run(engine, mood):
    engine.run(mood(**{"raise": [13]}))
    (engine.folder / "mood.log").unlink()
    ran = engine.run(mood())
    assert ran.complete
    assert seen(engine) == list(range(12, 20))
    assert ran.failures("copy") == {}
    assert not any(".failed." in name for name in ran.written("copy"))


def test_a_stage_in_a_chain_fails_by_its_own_name_and_what_it_read_is_stored(engine, mood):
    ran = engine.run(ROWS + mood(**{"raise": [13]}).replace("from: numbers", "from: fourth"))
    assert ran.failures("square") == {}
    assert ran.failures("fourth") == {}
    assert list(ran.failures("copy")) == [1]
    assert ran.outcome.state.stages["fourth"].complete


def test_what_stands_after_a_failed_shard_waits_and_the_rest_goes_on(engine, mood):
    stages = (
        mood(**{"raise": [13]})
        + """
  after: {uses: toy.power, from: copy, read: {number: copy.copy}}
  whole: {uses: toy.shared, from: copy, read: {number: copy.copy}}
  other: {uses: toy.shared, from: numbers}
"""
    )
    ran = engine.run(stages)
    assert sorted(ran.outcome.state.stages["after"].shards) == [0, 2, 3]
    assert ran.failures("after") == {}
    assert set(ran.outcome.stopped) == {"copy", "after", "whole"}
    assert engine.run(mood() + stages.partition("\n")[2]).complete


def test_trouble_that_passes_is_tried_three_times(engine, mood):
    ran = engine.run(mood(busy={"0": 2}))
    assert ran.complete
    assert ran.records("copy")[0][0].attempts == 3
    assert seen(engine).count(0) == 3


def test_trouble_that_stays_fails_its_shard(engine, mood):
    ran = engine.run(mood(busy={"0": 99}))
    assert ran.failures("copy")[0].found == "busy"
    assert seen(engine).count(0) == 3
    assert not ran.complete


@pytest.mark.parametrize(
    ("answer", "said", "workers"),
    [
        ("short", "7 rows came back for 8", 0),
        pytest.param(
            *("short", "7 rows came back for 8", 1), marks=pytest.mark.slow("starts a worker")
        ),
        ("typed", "'copy' came back as double", 0),
        ("bare", "no column 'copy' came back", 0),
        ("undeclared", "reason 'whim' is not declared", 0),
    ],
)
def test_an_answer_that_breaks_the_contract_stops_the_stage(engine, mood, answer, said, workers):
    with closing(LocalExecutor(workers, with_main=False)) as executor:
        ran = engine.run(mood(answer=answer), executor=executor)
        assert said in ran.error("copy")
        assert "stage 'copy' (toy.moody), shard 0" in ran.error("copy")
        assert ran.outcome.state.stages["numbers"].complete
        for _ in range(3):  # no crash, so it is not counted as one
            engine.run(mood(answer=answer), executor=executor)
        assert engine.run(mood(), executor=executor).complete


def test_a_row_stage_that_stops_does_not_hold_back_what_reads_a_finished_one(engine, mood):
    same = f"  same: {{uses: toy.meet_rows, from: numbers, folder: {engine.folder}}}\n"
    assert engine.run(same).complete
    shared = "  shared: {uses: toy.shared, from: same, read: {number: same.same}}\n"
    ran = engine.run(same + mood(answer="short") + shared)
    assert "7 rows came back for 8" in ran.error("copy")
    assert ran.outcome.state.stages["shared"].complete


class Calls(Lines):
    """The shards that it is told of."""

    def __init__(self):
        super().__init__()
        self.shards = []

    def shard(self, name, record, total):
        self.shards.append((name, record.shard, total))


def test_shards_that_are_stored_are_not_told_of_again(engine, capsys):
    assert engine.run("").complete
    said = capsys.readouterr().err
    assert re.fullmatch(r"numbers: done in [\d.]+ s, 31 rows\n", said)
    assert engine.run("").complete
    assert capsys.readouterr().err == "numbers: found done, 31 rows\n"
    (engine.pool / "3.txt").write_text("31\n")
    watcher = Calls()
    assert engine.run("", watcher=watcher).complete
    assert watcher.shards == [("numbers", 4, 5)]


def test_a_broken_file_fails_its_shard_alone_and_mended_it_alone_runs(engine):
    good = (engine.pool / "0.txt").read_text()
    (engine.pool / "0.txt").write_text(good.replace("15", "fifteen"))
    ran = engine.run(ROWS)
    assert not ran.complete
    assert list(ran.failures("numbers")) == [1]
    assert "fifteen" in ran.failures("numbers")[1].found
    assert sorted(ran.outcome.state.stages["fourth"].shards) == [0, 2, 3]
    (engine.pool / "0.txt").write_text(good)
    after = engine.run(ROWS)
    assert after.complete
    assert after.column("numbers", "number") == list(range(31))


def test_a_file_that_breaks_after_it_was_good_fails_its_shard(engine):
    engine.run(ROWS)
    good = (engine.pool / "2.txt").read_text()
    (engine.pool / "2.txt").write_text(good.replace("25", "twenty"))
    ran = engine.run(ROWS)
    assert not ran.complete
    assert list(ran.failures("numbers")) == [3]
    (engine.pool / "2.txt").write_text(good)
    assert engine.run(ROWS).complete


def test_a_dataset_stage_that_raises_stops_by_name_and_the_rest_goes_on(engine):
    log = engine.folder / "log"
    stages = f"""
  centre: {{uses: toy.centre, from: numbers, log: {log}, fail_at: 2, rounds: 4}}
  shared: {{uses: toy.shared, from: numbers}}
"""
    ran = engine.run(stages)
    assert "out of luck" in ran.error("centre")
    assert ran.outcome.state.stages["shared"].complete
    assert engine.run(stages).complete
    # Rounds 0 and 1 are not done again.
    assert log.read_text().split() == ["0", "1", "2", "2", "3"]


def test_a_mistake_in_a_dataset_stage_is_its_error_with_the_line(engine):
    stages = "  files: {uses: toy.files, from: numbers, mistake: true}\n" + ROWS
    ran = engine.run(stages)
    assert "ZeroDivisionError" in ran.error("files")
    assert "files.py:" in ran.error("files")
    assert ran.outcome.state.stages["fourth"].complete


# The folder


def test_recipes_are_kept_in_order_each_once(engine):
    for exponent in (2, 2, 3, 2):
        engine.run(ROWS, f"square.exponent={exponent}")
    kept = [
        json.loads(file.read_text()) for file in sorted((engine.folder / "run/recipes").iterdir())
    ]
    assert [recipe["stages"]["square"]["exponent"] for recipe in kept] == [2, 3, 2]
    assert latest(str(engine.folder / "run")).plan.stages["square"].stage.exponent == 2


def test_a_dataset_stage_tells_the_seconds_from_its_begin_to_its_end(finished):
    _, ran = finished
    for name in ("shared", "chosen", "uids"):
        stage = ran.outcome.state.stages[name]
        assert stage.seconds == stage.manifest.seconds > 0
    square = ran.outcome.state.stages["square"]
    records = [record for [record] in ran.records("square").values()]
    assert square.seconds == sum(record.seconds for record in records)


def test_a_model_whose_files_vanish_is_named_and_no_stage_asks_for_it(engine, monkeypatch):
    stages = """
  model:  {uses: toy.centre, from: numbers, rounds: 1}
  other:  {uses: toy.centre, from: numbers, rounds: 2}
  joined: {uses: toy.rejoined, from: other, model: "stage:model"}
"""
    stored = dataset_job.put_dataset_manifest

    def and_gone(stage, *rest):
        stored(stage, *rest)
        if stage.planned.name == "model":
            stage.folder.delete("out/centre.txt")

    monkeypatch.setattr(dataset_job, "put_dataset_manifest", and_gone)
    ran = engine.run(stages)
    assert ran.error("model").startswith("files of it are gone or changed, just after")
    assert ran.outcome.stopped["joined"] is None
    monkeypatch.undo()
    assert engine.run(stages).complete
