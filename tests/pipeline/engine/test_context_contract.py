"""What every context does with a stage's calls: the engine's, and that of the stages' own tests."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clipmill.metadata.schema import REASON_TYPE
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.engine import context
from tests.memory import MemoryContext, MemoryShards

SIZES = (12, 8, 0, 11)
SEEN: list = []  # what the functions below were given, in this process


@dataclass(frozen=True)
class Stored:
    """The values that a stage stored, shard by shard; or why it stored none."""

    values: list[list]
    error: str = ""


@pytest.fixture(params=["engine", "memory"])
def stored(request, engine, tmp_path):
    """Runs one of the functions below as a dataset stage over the numbers 0 to 30."""

    def by_engine(function) -> Stored:
        name = f"{__name__}:{function.__name__}"
        ran = engine.run(f"  it: {{uses: toy.program, from: numbers, function: '{name}'}}\n")
        if not ran.complete:
            return Stored([], ran.error("it"))
        return Stored([ran.column("it", "value", shard) for shard in range(len(SIZES))])

    def by_memory(function) -> Stored:
        uid = pa.array([number.to_bytes(16) for number in range(sum(SIZES))], pa.binary(16))
        rows = pa.table({"uid": uid, "number": pa.array(range(sum(SIZES)), pa.int64())})
        starts = np.cumsum((0, *SIZES))
        shards = [rows.slice(start, size) for start, size in zip(starts, SIZES, strict=False)]
        ctx = MemoryContext(tmp_path)
        try:
            function(Inputs(rows=MemoryShards(*shards)), ctx)
        except (AssertionError, TypeError) as error:
            return Stored([], str(error))
        return Stored([table["value"].to_pylist() for table in ctx.stored])

    SEEN.clear()
    return by_engine if request.param == "engine" else by_memory


def with_value(value, rows: pa.Table) -> pa.Table:
    number = rows["number"].to_numpy()
    made = rows.append_column("value", pa.array(value(number), pa.int64()))
    return made.append_column("reason", pa.nulls(len(rows), REASON_TYPE))


def number_of(rows, ctx):
    return ctx.map_shards(partial(with_value, lambda number: number), rows)


def all_are(value, rows, ctx):
    return ctx.map_shards(partial(with_value, lambda number: number * 0 + value), rows)


NUMBERS = [list(range(12)), list(range(12, 20)), [], list(range(20, 31))]


# Rows


def looks(inputs, ctx):
    for index in range(len(inputs.rows)):
        batches = list(inputs.rows.select(["number"]).batches(index, 5))
        SEEN.append((inputs.rows.rows(index), [len(batch) for batch in batches]))
        assert {"uid", "shard", "position", "number"} == set(batches[0].column_names)
        assert pa.concat_tables(batches) == inputs.rows.select(["number"]).table(index)
    ctx.restore(number_of(inputs.rows, ctx))


def test_rows_come_whole_or_in_batches_with_their_place(stored):
    assert stored(looks).values == NUMBERS
    assert SEEN == [(12, [5, 5, 2]), (8, [5, 3]), (0, [0]), (11, [5, 5, 1])]


def keeps(inputs, ctx):
    rows = ctx.keep_local(inputs.rows.select(["number"]))
    SEEN.extend(len(batch) for batch in rows.batches(0, 5))
    assert [len(batch) for batch in rows.batches(2)] == [0]
    assert [rows.rows(index) for index in range(len(rows))] == list(SIZES)
    for index in range(len(rows)):
        assert rows.table(index) == inputs.rows.select(["number"]).table(index)
        assert set(rows.select([]).table(index).column_names) == {"uid", "shard", "position"}
    ctx.restore(number_of(rows, ctx))


def test_rows_kept_on_scratch_are_the_rows(stored):
    assert stored(keeps).values == NUMBERS
    assert SEEN == [5, 5, 2]


# map


def squares(inputs, ctx):
    results = ctx.map(square, [3, 1, 2, 3])
    ctx.restore(all_are(int("".join(str(r["square"]) for r in results)), inputs.rows, ctx))


def square(item, task):
    SEEN.append((item, task.worker.stage))
    return {"square": item * item}


def test_map_gives_results_in_the_order_of_its_items(stored):
    assert stored(squares).values[0] == [9149] * 12
    assert SEEN == [(3, "it"), (1, "it"), (2, "it"), (3, "it")]


def returns_bytes(inputs, ctx):
    ctx.map(as_bytes, [1])


def as_bytes(item, task):
    return {"bytes": bytes([item])}


def test_a_result_of_map_that_is_no_json_is_an_error(stored):
    assert "JSON" in stored(returns_bytes).error


# shuffle and restore


def shuffles(inputs, ctx):
    parts = ctx.shuffle(ctx.map_shards(third, inputs.rows), "third", 3)
    SEEN.extend(parts.table(index) for index in range(len(parts)))
    ctx.restore(number_of(parts, ctx))


def third(rows: pa.Table) -> pa.Table:
    number = rows["number"].to_numpy()
    return rows.append_column("third", pa.array(number // 3, mask=number % 2 == 0))


def test_equal_keys_meet_nulls_meet_and_every_row_comes_home(stored):
    assert stored(shuffles).values == NUMBERS
    keys = [set(table["third"].to_pylist()) for table in SEEN]
    assert len(keys) == 3
    for key in set().union(*keys):
        assert sum(key in of_part for of_part in keys) == 1
    assert sum(map(len, SEEN)) == 31


def shuffles_finer(inputs, ctx):
    rows = ctx.map_shards(third, inputs.rows)
    for count in (2, 6):
        parts = ctx.shuffle(rows, "third", count)
        SEEN.append([set(parts.table(i)["third"].to_pylist()) for i in range(count)])
        ctx.drop(parts)
    ctx.restore(number_of(inputs.rows, ctx))


def test_of_a_finer_shuffle_every_nth_partition_has_the_keys_of_one(stored):
    assert stored(shuffles_finer).values == NUMBERS
    coarse, fine = SEEN
    assert [fine[i] | fine[i + 2] | fine[i + 4] for i in range(2)] == coarse
    assert all(coarse)


def asks_for_partitions(inputs, ctx):
    SEEN.extend([ctx.partitions(inputs.rows), ctx.partitions(inputs.rows, 1)])
    ctx.restore(number_of(inputs.rows, ctx))


def test_a_partition_holds_so_many_rows_and_no_more(stored, monkeypatch):
    monkeypatch.setattr(context, "PARTITION_ROWS", 31)
    monkeypatch.setattr(MemoryContext, "partition_rows", 31)
    stored(asks_for_partitions)
    assert SEEN == [1, 2]


def loses_a_row(inputs, ctx):
    parts = ctx.shuffle(inputs.rows, "number", 2)
    less = ctx.map_shards(lambda rows: rows.filter(pc.not_equal(rows["number"], 3)), parts)
    ctx.restore(number_of(less, ctx))


def doubles_a_row(inputs, ctx):
    double = ctx.map_shards(lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]), inputs.rows)
    ctx.restore(number_of(double, ctx))


@pytest.mark.parametrize("function", [loses_a_row, doubles_a_row])
def test_a_row_lost_or_doubled_is_an_error(function, stored):
    assert stored(function).error


# reduce and iterate


def sums(inputs, ctx):
    total = ctx.reduce(lambda rows: {"sum": rows["number"].to_numpy().sum()}, inputs.rows, added)
    ctx.restore(all_are(total["sum"], inputs.rows, ctx))


def added(one, other):
    return {"sum": one["sum"] + other["sum"]}


def test_reduce_merges_every_shard(stored):
    assert stored(sums).values[3] == [sum(range(31))] * 11


def concatenates(inputs, ctx):
    joined = ctx.reduce(lambda rows: {"all": rows["number"].to_numpy()}, inputs.rows, appended)
    SEEN.extend(joined["all"].tolist())
    ctx.restore(number_of(inputs.rows, ctx))


def appended(one, other):
    return {"all": np.concatenate([one["all"], other["all"]])}


def test_reduce_merges_in_the_order_of_the_shards(stored):
    assert stored(concatenates).values == NUMBERS
    assert list(range(31)) == SEEN


def steps(least, inputs, ctx):
    end = ctx.iterate({"n": np.int64(0)}, add_four, 100, until=lambda state: state["n"] > least)
    ctx.restore(all_are(end["n"], inputs.rows, ctx))


def add_four(state, number):
    SEEN.append(number)
    return {"n": state["n"] + 4}


def until_ten(inputs, ctx):
    steps(10, inputs, ctx)


def until_anything(inputs, ctx):
    steps(-1, inputs, ctx)


@pytest.mark.parametrize(("function", "taken"), [(until_ten, 3), (until_anything, 1)])
def test_iterate_asks_after_each_step_whether_it_was_the_last(function, taken, stored):
    assert stored(function).values[0] == [4 * taken] * 12
    assert list(range(taken)) == SEEN
