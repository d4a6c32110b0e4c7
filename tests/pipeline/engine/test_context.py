"""The calls of a dataset stage: what is journalled, and what a mistake says."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.sealed import put_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RetryableError, ShardError
from clipmill.pipeline.planning.settings import stage_class
from clipmill.pipeline.stage import Resources
from tests.pipeline.engine.programs import gpu_of_rank, says_its_stage, store, with_value

CALLED: list[object] = []  # what the functions below did, in this process


@pytest.fixture
def program(engine):
    """Runs one of the functions below as a dataset stage."""

    def run(function, **more):
        CALLED.clear()
        stages = f"  it: {{uses: toy.program, from: numbers, function: '{__name__}:{function}'}}\n"
        return engine.run(stages, **more)

    return run


# map


def map_that_fails_once(inputs, ctx):
    ctx.map(fail_at_two, [0, 1, 2, 3])
    store(inputs.rows, ctx)


def fail_at_two(item, task):
    CALLED.append(item)
    if item == 2 and not os.environ.get("CLIPMILL_TEST_MENDED"):
        raise ShardError("two", "the item", "mend it")
    return {}


def test_a_failed_unit_stops_the_stage_and_finished_units_are_not_done_again(program, monkeypatch):
    ran = program("map_that_fails_once")
    assert "two" in ran.error("it")
    assert CALLED == [0, 1, 2]
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "1")
    assert program("map_that_fails_once").complete
    assert CALLED == [2, 3]


def puts_then_trouble(inputs, ctx):
    ctx.map(put_item, ["a", "b", "c"])
    if not os.environ.get("CLIPMILL_TEST_MENDED"):
        raise ValueError("trouble")
    store(inputs.rows, ctx)


def put_item(item, task):
    CALLED.append(item)
    path = task.worker.scratch / item
    path.write_text(item)
    task.put_file(item, path)
    return {"item": item}


def puts_where_somebody_looks(inputs, ctx):
    ctx.map(put_item, ["a"])
    for folder in ("out", "out-notes"):
        Path(ctx.folder, folder, ".DS_Store").touch()
    store(inputs.rows, ctx)


def test_what_a_file_manager_leaves_in_out_is_none_of_a_stages_files(program):
    ran = program("puts_where_somebody_looks")
    assert [name for name, _ in ran.outcome.state.stages["it"].outputs] == ["a"]


def test_a_unit_whose_file_in_out_was_deleted_is_done_again(program, engine, monkeypatch):
    """By hand, before its stage was done, with the note of its size beside it."""
    assert "trouble" in program("puts_then_trouble").error("it")
    assert CALLED == ["a", "b", "c"]
    [folder] = (engine.folder / "run/stages").glob("it-*")
    for name in ("out/b", "out-notes/b.json"):
        (folder / name).unlink()
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "1")
    assert program("puts_then_trouble").complete
    assert CALLED == ["b"]
    assert (folder / "out/b").read_text() == "b"


def map_that_is_busy(inputs, ctx):
    ctx.map(busy_twice, [0])
    store(inputs.rows, ctx)


def busy_twice(item, task):
    CALLED.append(item)
    if len(CALLED) < 3:
        raise RetryableError("busy", "the item", "wait")
    return {}


def test_a_unit_that_fails_for_now_is_tried_three_times(program):
    assert program("map_that_is_busy").complete
    assert CALLED == [0, 0, 0]


# shuffle and restore


def third(rows: pa.Table) -> pa.Table:
    number = rows["number"].to_numpy()
    return rows.append_column("third", pa.array(number // 3, mask=number % 2 == 0))


def drops_then_trouble(inputs, ctx):
    parts = ctx.shuffle(inputs.rows, "number", 2)
    again = ctx.shuffle(ctx.map_shards(third, parts), "third", 3)
    ctx.drop(ctx.map_shards(third, parts))
    ctx.map(fail_at_two, [2])
    ctx.restore(ctx.map_shards(partial(with_value, lambda n: n), again))


def test_what_is_dropped_is_gone_and_not_missed_by_a_stage_that_goes_on(
    program, engine, monkeypatch
):
    assert "two" in program("drops_then_trouble").error("it")
    [journal] = (engine.folder / "run").glob("stages/it-*/calls-*")
    assert {path.name for path in journal.glob("*.data")} == {"02-shuffle.data"}
    assert (journal / "01-shuffle.json").exists()
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "1")
    assert program("drops_then_trouble").column("it", "value") == list(range(31))


def test_a_journal_of_an_earlier_layout_is_made_anew_even_where_its_rows_were_dropped(
    program, engine, monkeypatch
):
    assert "two" in program("drops_then_trouble").error("it")
    [journal] = (engine.folder / "run").glob("stages/it-*/calls-*")
    folder = Storage(str(journal))
    for call, files in (("01-shuffle", 4), ("02-shuffle", 2)):
        data = {f"00000{n}-0123456789ab": f"calls/{call}.data/{n}.arrows" for n in range(files)}
        old = {key: {"file": file, "offsets": [0, 9, 18]} for key, file in data.items()}
        put_sealed(folder, f"{call}.json", old, point="journal")
    folder.delete_folder("02-shuffle.data")
    folder.put("02-shuffle.data/0.arrows", b"as it was", point="rename")
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "1")
    assert program("drops_then_trouble").column("it", "value") == list(range(31))


def test_a_stage_whose_calls_another_version_cut_otherwise_begins_anew(
    program, engine, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("clipmill.pipeline.engine.journal.UNITS", 1)
        assert "two" in program("drops_then_trouble").error("it")
    [older] = (engine.folder / "run").glob("stages/it-*/calls-*")
    assert "two" in program("drops_then_trouble").error("it")
    journals = set((engine.folder / "run").glob("stages/it-*/calls-*"))
    assert journals - {older}
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "1")
    assert program("drops_then_trouble").column("it", "value") == list(range(31))
    assert not any(journal.exists() for journal in journals)


def shuffles_then_trouble(inputs, ctx):
    parts = ctx.shuffle(inputs.rows, "number", 2)
    again = ctx.shuffle(ctx.map_shards(third, parts), "third", 3)
    ctx.map(fail_at_two, [2])
    ctx.restore(ctx.map_shards(partial(with_value, lambda n: n), again))


@pytest.mark.parametrize("harm", ["torn", "gone"])
@pytest.mark.parametrize("ending", ["index", "arrows"])
def test_a_shuffle_that_lost_a_file_to_a_power_cut_gets_it_again(
    harm, ending, program, engine, monkeypatch
):
    assert "two" in program("shuffles_then_trouble").error("it")
    [file, *_] = sorted((engine.folder / "run").glob(f"stages/it-*/calls-*/02-*.data/*.{ending}"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    if harm == "gone":
        file.unlink()
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "1")
    assert program("shuffles_then_trouble").column("it", "value") == list(range(31))


def undeclared(inputs, ctx):
    reason = pa.array(["whim"]).dictionary_encode()
    rows = ctx.map_shards(partial(with_value, lambda n: n), inputs.rows)
    ctx.restore(
        ctx.map_shards(
            lambda t: t.set_column(
                t.schema.get_field_index("reason"), "reason", reason.take(pa.array([0] * len(t)))
            ),
            rows,
        )
    )


def bare(inputs, ctx):
    ctx.restore(inputs.rows)


def typed(inputs, ctx):
    rows = ctx.map_shards(partial(with_value, lambda n: n), inputs.rows)
    ctx.restore(ctx.map_shards(as_double, rows))


def as_double(rows: pa.Table) -> pa.Table:
    return rows.drop_columns(["value"]).append_column("value", rows["value"].cast(pa.float64()))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("undeclared", "reason 'whim' is not declared"),
        ("bare", "no column 'value' came back"),
        ("typed", "'value' came back as double"),
    ],
)
def test_what_is_stored_is_held_to_what_is_declared(program, function, said):
    assert said in program(function).error("it")


# iterate, launch


def add_four(state, number):
    CALLED.append(number)
    return {"n": state["n"] + 4}


def steps_then_trouble(inputs, ctx):
    end = ctx.iterate({"n": np.int64(0)}, add_four, 3)
    again = ctx.iterate(end, add_four, 2)
    ctx.map(fail_at_two, [2])
    store(inputs.rows, ctx, lambda n: n * 0 + again["n"])


def test_finished_steps_are_not_taken_again(program, engine, monkeypatch):
    assert not program("steps_then_trouble").complete
    assert CALLED == [0, 1, 2, 0, 1, 2]
    (steps,) = engine.folder.glob("run/stages/it-*/calls-*/01-iterate")
    (steps / ".DS_Store").touch()  # by a file manager
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "1")
    assert program("steps_then_trouble").column("it", "value") == [20] * 31
    assert CALLED == [2]


def launched(inputs, ctx):
    result = ctx.launch(says_its_stage, 2)
    store(inputs.rows, ctx, lambda n: n * 0 + result["of"])
    ctx.map(fail_at_two, [2])


def asking_for_gpus(inputs, ctx):
    result = ctx.launch(gpu_of_rank, 2)
    store(inputs.rows, ctx, lambda n: n * 0 + result["gpu"])


def test_every_rank_of_a_launch_has_the_resources_of_its_stage(program, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr(stage_class("toy.program", ""), "resources", Resources(gpus=0.5))
    assert program("asking_for_gpus").column("it", "value") == [7] * 31


def test_launch_gives_the_first_ranks_result_and_is_journalled(program, engine, monkeypatch):
    ran = program("launched")
    assert "two" in ran.error("it")
    [journal] = (engine.folder / "run").glob("stages/it-*/calls-*/01-launch.json")
    result = json.loads(journal.read_text())["value"]
    assert (result["rank"], result["of"]) == (0, 2)
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "1")
    written = journal.stat().st_mtime_ns
    monkeypatch.setattr("clipmill.pipeline.executors.local.LocalExecutor.launch", None)
    assert written
    ran = program("launched")
    assert ran.complete
    assert ran.column("it", "value") == [2] * 31
    out = engine.folder / "run" / ran.outcome.state.plan.stages["it"].folder / "out" / "said"
    assert out.read_text() == "it"
