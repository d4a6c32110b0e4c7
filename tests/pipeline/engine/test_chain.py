"""Row stages over one shard: which go together, over which rows, and what they are given."""

from threading import Barrier, Event
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clipmill.metadata.record import Record, ShardState, state_of
from clipmill.metadata.schema import KEEP, REASON, REASON_TYPE, UID, Column, Derived
from clipmill.metadata.shard import ShardWriter, store
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.chain import ShardItem, next_together
from clipmill.pipeline.engine.chain_compute import ahead, rows_due, spread
from clipmill.pipeline.engine.functions import Batch, read_ahead
from clipmill.pipeline.run_folder.rows import StoredColumns
from clipmill.pipeline.stage import Resources

UIDS = pa.array([bytes([number]) * 16 for number in range(5)], pa.binary(16))


# Which stages


def planned(name, *needs, only=None):
    needs = (*needs, *([only] if only else []))
    return SimpleNamespace(name=name, needs=needs, only=only, stage=None)


def item(**records):
    records = {name: [made] * many for name, many in records.items() if (made := object())}
    return ShardItem(
        shard=0, states={}, failed={}, records=records, set_aside={}, unchecked=frozenset()
    )


@pytest.mark.parametrize(
    ("todo", "stored", "expected"),
    [
        ([planned("a"), planned("b")], {}, "a b"),
        ([planned("a"), planned("b", "a"), planned("c", "b")], {}, "a b c"),
        ([planned("a"), planned("b", "pool")], {}, "a b"),
        ([planned("a", only="mask"), planned("b")], {}, "a"),
        ([planned("a"), planned("b", only="mask"), planned("c")], {}, "a c"),
        ([planned("a"), planned("b", only="mask"), planned("c", "b"), planned("d")], {}, "a d"),
        ([planned("a"), planned("b")], {"a": 1}, "a"),
        ([planned("a"), planned("b", "a")], {"b": 1}, "a"),
    ],
    ids=[
        "independent",
        "one after another",
        "whose need is done",
        "one under a mask goes alone",
        "and is left for later",
        "with those that need it",
        "a later pass goes alone",
        "and may still be good when its parent is done",
    ],
)
def test_stages_that_need_no_other_shard_go_together(todo, stored, expected):
    together = next_together(todo, item(**stored))
    assert " ".join(stage.name for stage in together) == expected


# Read ahead


def test_the_next_batch_is_read_and_decoded_while_this_one_is_used():
    two_at_once, second_is_decoded = Barrier(2), Event()

    def decode(column: pa.Array) -> pa.Array:
        two_at_once.wait(10)  # raises unless two threads share the batch
        if column[0].as_py() >= 4:
            second_is_decoded.set()
        return pc.negate(column)

    number = Column("number", pa.int64(), "", "")
    negative = Derived("negative", pa.int64(), "", "", source=number, derive=decode)
    binding = "pool", "number"
    planned = SimpleNamespace(bindings=[{"negative": binding}], derived={"negative": negative})

    def batches():
        for start in (0, 4):
            column = pa.chunked_array([[start, start + 1], [start + 2, start + 3]])
            uids = pa.chunked_array([UIDS[:4]])
            yield Batch(start=start, whole=uids, columns={binding: column})

    seen = []
    for batch in read_ahead(batches(), [planned], cpus=2):
        assert seen or second_is_decoded.wait(10)
        seen += batch.inputs(planned)["negative"].to_pylist()
    assert seen == [0, -1, -2, -3, -4, -5, -6, -7]


def test_only_what_has_a_gpu_is_read_ahead():
    for gpus, name in ((0, "batches"), (0.5, "read_ahead")):
        planned = SimpleNamespace(stage=SimpleNamespace(resources=Resources(gpus=gpus)))

        def batches():
            yield from ()

        assert ahead(batches(), [planned]).__name__ == name


def test_what_goes_wrong_ahead_is_raised_where_the_batch_is_asked_for():
    def batches():
        yield Batch(start=0, whole=pa.chunked_array([UIDS]), columns={})
        raise OSError("the disk is gone")

    ahead = read_ahead(batches(), [], cpus=1)
    assert len(next(ahead).uids) == 5
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


# Which rows


@pytest.fixture
def stage(tmp_path):
    """Five rows stored under a mask that left the last two out; the second timed out."""
    folder = Storage(str(tmp_path / "stage"))
    reasons = [None, "timeout", None, "not_selected", "not_selected"]
    return StoredColumns(folder, Storage(str(tmp_path / "mask"))), stored(
        folder, REASON, pa.array(reasons).dictionary_encode()
    )


def stored(folder: Storage, column: Column, values: pa.Array) -> Record:
    schema = pa.schema([(UID.name, UID.dtype), (column.name, column.dtype)])
    with folder.scratch("it") as path, ShardWriter(path, schema) as writer:
        writer.add(pa.table([UIDS, values], schema=schema))
        return store(folder, writer, path, {"shard": 0, "rows": 5, "parents": {}})


def mask_of(columns: StoredColumns, keep: list[bool | None]) -> ShardState:
    return state_of([stored(columns.mask_folder, KEEP, pa.array(keep))], None)


def test_a_first_pass_is_of_the_rows_of_the_mask(stage):
    columns, _ = stage
    mask = mask_of(columns, [True, False, None, True, False])
    assert rows_due(columns, [], mask, ()).tolist() == [1, 0, 0, 1, 0]


def test_a_later_pass_is_of_the_rows_of_the_mask_that_no_pass_has(stage):
    columns, record = stage
    mask = mask_of(columns, [False, True, True, True, False])
    assert rows_due(columns, [record], mask, ()).tolist() == [0, 0, 0, 1, 0]


def test_a_retry_is_of_rows_with_its_reasons_too(stage):
    columns, record = stage
    assert rows_due(columns, [record], None, ("timeout",)).tolist() == [0, 1, 0, 1, 1]


# What they are given, and what is stored

DOUBLE = Derived(
    name="double",
    dtype=pa.int64(),
    unit="",
    doc="Twice the number.",
    source=Column("number", pa.int64(), "", "Any number."),
    derive=lambda numbers: pa.array([2 * number for number in numbers.to_pylist()]),
)


def reader(**bindings):
    names = {"double": DOUBLE}
    return SimpleNamespace(
        bindings=(bindings,), derived={n: names[n] for n in bindings if n in names}
    )


def test_stages_that_read_the_same_derived_column_share_one_computation():
    columns = {
        ("pool", "number"): pa.chunked_array([range(5)]),
        ("other", "number"): pa.chunked_array([range(5)]),
    }
    batch = Batch(start=0, whole=pa.chunked_array([UIDS]), columns=columns)
    one = batch.inputs(reader(double=("pool", "number")))
    again = batch.inputs(reader(double=("pool", "number"), plain=("pool", "number")))
    assert again["double"].to_pylist() == [0, 2, 4, 6, 8]
    assert again["plain"].to_pylist() == list(range(5))
    assert (
        again["double"].chunk(0).buffers()[1].address == one["double"].chunk(0).buffers()[1].address
    )
    batch.inputs(reader(double=("other", "number")))
    assert len(batch.derived) == 2


def test_an_answer_for_some_rows_is_spread_among_all():
    answer = pa.table(
        {
            "uid": UIDS.take(pa.array([1, 3])),
            "score": [0.5, None],
            "reason": pa.array([None, "dark"]).cast(REASON_TYPE),
        }
    )
    whole = spread(answer, np.array([1, 3]), pa.chunked_array([UIDS]))
    assert whole.schema == answer.schema
    assert whole["uid"].to_pylist() == UIDS.to_pylist()
    assert whole["score"].to_pylist() == [None, 0.5, None, None, None]
    left_out = "not_selected"
    assert whole["reason"].to_pylist() == [left_out, None, left_out, "dark", left_out]


DOUBLED = """
  small:  {uses: select.where, from: numbers, where: number < 4}
  square: {uses: toy.power, from: numbers}
  plain:  {uses: toy.doubled, from: numbers}
  again:  {uses: toy.doubled, from: square, read: {double: square.power}}
  some:   {uses: toy.doubled, from: numbers, only: small}
"""


def test_a_column_is_derived_from_what_is_stored_and_from_what_the_chain_has_just_made(engine):
    ran = engine.run(DOUBLED)
    assert ran.complete
    assert ran.column("plain", "doubled") == [2 * n for n in range(31)]
    assert ran.column("again", "doubled") == [2 * n * n if n % 7 else None for n in range(31)]
    assert ran.column("some", "doubled") == [2 * n if n < 4 else None for n in range(31)]


CHAINED = """
  copy: {uses: toy.moody, from: numbers, script: %(script)s}
  more: {uses: toy.moody, from: copy, read: {number: copy.copy}, script: %(script)s}
"""


def test_a_chain_is_computed_once_where_a_stage_reads_the_one_before_it(engine, tmp_path):
    script = tmp_path / "mood.json"
    script.write_text("{}")
    assert engine.run(CHAINED % {"script": script}).complete
    seen = script.with_suffix(".log").read_text().split()
    assert sorted(map(int, seen)) == sorted([*range(31)] * 2)
