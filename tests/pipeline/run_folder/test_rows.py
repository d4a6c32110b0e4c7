"""What a stage reads: columns of several stages side by side, shard after shard."""

import pickle
from functools import partial
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clipmill.metadata.record import state_of
from clipmill.metadata.schema import UID
from clipmill.metadata.shard import ShardWriter, store
from clipmill.metadata.storage import Storage
from clipmill.pipeline.run_folder.rows import JoinedShards, PoolShards, StoredColumns, read_rows

SIZES = (5, 3)
NUMBERS = {0: list(range(5)), 1: list(range(5, 8))}


def kept(folder: Storage, shard: int, **columns: list) -> object:
    """One shard stored with these int64 columns: its state."""
    uid = pa.array([number.to_bytes(16) for number in NUMBERS[shard]], pa.binary(16))
    table = pa.table({"uid": uid, **{name: pa.array(v, pa.int64()) for name, v in columns.items()}})
    with folder.scratch("it") as path, ShardWriter(path, table.schema) as writer:
        writer.add(table)
        record = {
            "shard": shard,
            "rows": len(table),
            "parents": {},
            "source": {"first": uid[0].as_py()[15]},
        }
        return state_of([store(folder, writer, path, record)], None)


@pytest.fixture
def pool(tmp_path) -> PoolShards:
    """Two shards of a root `pool` with numbers, and their squares by `square`."""
    stored = {name: StoredColumns(Storage(str(tmp_path / name))) for name in ("pool", "square")}
    states = tuple(
        {
            "pool": kept(stored["pool"].folder, shard, number=numbers, other=numbers),
            "square": kept(stored["square"].folder, shard, power=[n * n for n in numbers]),
        }
        for shard, numbers in NUMBERS.items()
    )
    bindings = {"number": ("pool", "number"), "squared": ("square", "power")}
    return PoolShards(stored, states, bindings, "pool")


def test_columns_stand_side_by_side_under_the_names_they_are_read_by(pool):
    batches = list(read_rows(pool.stored, pool.states[0], pool.bindings, "pool", 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    table = pa.concat_tables(batches)
    assert table.column_names == ["uid", "number", "squared"]
    assert table["squared"].to_pylist() == [0, 1, 4, 9, 16]


def test_a_root_of_which_no_column_is_read_is_not_opened(pool):
    folder = pool.stored["pool"].folder
    folder.delete(pool.states[0]["pool"].files[0])
    assert pool.select(["squared"]).table(0)["uid"].to_pylist() == [
        number.to_bytes(16) for number in NUMBERS[0]
    ]


def test_a_virtual_column_is_loaded_from_its_source(pool):
    virtual = SimpleNamespace(
        virtual=[SimpleNamespace(name="far")],
        load_virtual=lambda names, source: pa.table(
            {name: [source["first"] + 100 + row for row in range(3)] for name in names}
        ),
    )
    stored = {**pool.stored, "pool": StoredColumns(pool.stored["pool"].folder, stage=virtual)}
    bindings = {"far": ("pool", "far"), "number": ("pool", "number")}
    table = pa.concat_tables(read_rows(stored, pool.states[1], bindings, "pool", 2))
    assert table["far"].to_pylist() == [105, 106, 107]
    assert table["number"].to_pylist() == [5, 6, 7]


def test_rows_carry_shard_and_position(pool):
    assert (len(pool), pool.rows(0), pool.rows(1)) == (2, *SIZES)
    table = pa.concat_tables(pool.batches(1, 2))
    assert table["shard"].to_pylist() == [1, 1, 1]
    assert table["position"].to_pylist() == [0, 1, 2]
    assert table == pool.table(1)


def halved(rows: pa.Table) -> pa.Table:
    return rows.append_column("half", pc.divide(rows["squared"], 2))


def above(least: int, rows: pa.Table) -> pa.Table:
    return rows.filter(pc.greater_equal(rows["half"], least))


def test_functions_see_the_whole_shard_one_after_another(pool):
    mapped = pickle.loads(pickle.dumps(pool.mapped(halved).mapped(partial(above, 2))))
    assert mapped.table(0)["half"].to_pylist() == [2, 4, 8]
    assert [batch["half"].to_pylist() for batch in mapped.batches(0, 2)] == [[2, 4], [8]]


def test_a_selection_reads_no_other_column(pool):
    only = pool.select(["number"])
    assert set(only.table(0).column_names) == {UID.name, "shard", "position", "number"}
    assert list(only.bindings) == ["number"]


def test_joined_shards_follow_one_another_and_change_with_what_they_are_read_from(pool):
    joined = JoinedShards((pool, pool.select(["number"])))
    assert [joined.rows(index) for index in range(len(joined))] == [5, 3, 5, 3]
    assert joined.table(3)["number"].to_pylist() == [5, 6, 7]
    assert joined.source(2) == "pool"
    assert joined.digest(0) == joined.digest(2)
    assert joined.digest(0) != joined.digest(1)
    with pytest.raises(IndexError):
        joined.rows(4)
