"""A shard's Parquet file: the same bytes each time, read by batches, passes read as one."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metadata.record import scan, state_of
from metadata.schema import KEEP, POSITION, REASON, UID
from metadata.shard import GROUP_ROWS, ShardWriter, read_file, read_stage, recut, store
from metadata.storage import Storage

VALUE = pa.field("value", pa.int64())
SCHEMA = pa.schema([(UID.name, UID.dtype), VALUE, (REASON.name, REASON.dtype)])
SPARSE = SCHEMA.insert(1, pa.field(POSITION.name, POSITION.dtype))
MASK = pa.schema([(UID.name, UID.dtype), (KEEP.name, KEEP.dtype), (REASON.name, REASON.dtype)])


def rows(values: list, schema: pa.Schema = SCHEMA, name: str = "value", at=None) -> pa.Table:
    """uids 0, 1, …; a null value has the reason `none`."""
    at = range(len(values)) if at is None else at
    columns = {
        UID.name: pa.array([i.to_bytes(16, "big") for i in at], UID.dtype),
        POSITION.name: pa.array(at, POSITION.dtype),
        name: pa.array(values, schema.field(name).type),
        REASON.name: pa.array([None if v is not None else "none" for v in values]).cast(
            pa.string()
        ),
    }
    columns[REASON.name] = columns[REASON.name].dictionary_encode().cast(REASON.dtype)
    return pa.table({n: columns[n] for n in schema.names}, schema=schema)


def stored(folder: Storage, tables: list[pa.Table], schema=SCHEMA, number=0, total=None):
    with folder.scratch("it") as path, ShardWriter(path, schema) as writer:
        for table in tables:
            writer.add(table)
        more = {"shard": 0, "number": number, "rows": total or writer.rows, "parents": {}}
        return store(folder, writer, path, more)


@pytest.fixture
def folder(tmp_path) -> Storage:
    return Storage(str(tmp_path / "stage"))


def test_a_record_says_what_its_file_holds(folder):
    record = stored(folder, [rows([1, None, 3]), rows([4])])
    data = folder.read(record.data)
    assert record.size_bytes == len(data)
    assert hashlib.sha256(data).hexdigest().startswith(record.sha256)
    assert record.data == f"000000-{record.sha256[:16]}.parquet"
    assert record.counts == {"": 3, "none": 1}
    assert (record.rows, record.computed) == (4, 4)
    assert scan(folder).records == {0: [record]}


def test_the_same_batches_give_the_same_bytes(folder, tmp_path):
    again = Storage(str(tmp_path / "again"))
    tables = [rows([1, None]), rows([3])]
    assert stored(folder, tables).sha256 == stored(again, tables).sha256


def test_row_groups_end_at_a_batch(folder):
    part = rows(list(range(3000)))
    record = stored(folder, [part, part, part])
    with pq.ParquetFile(folder.locate(record.data)) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [6000, 3000]
    assert sizes[0] >= GROUP_ROWS


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 7, 100])
def test_a_file_is_read_in_batches_of_one_size_whatever_its_groups(folder, batch_rows):
    record = stored(folder, [rows([1, 2, 3]), rows([4, None])])
    read = list(read_file(folder, record.data, ["value", "reason"], batch_rows))
    assert pa.concat_tables(read)["value"].to_pylist() == [1, 2, 3, 4, None]
    assert {len(table) for table in read[:-1]} <= {batch_rows}


def test_a_shard_without_rows_is_one_empty_batch_with_its_types(folder):
    record = stored(folder, [])
    [table] = read_file(folder, record.data, ["uid", "value", "reason"], 10)
    assert table.schema.types == SCHEMA.types
    assert len(table) == 0


def test_recut_keeps_rows_and_order():
    tables = [rows(list(range(n))) for n in (3, 0, 5, 1)]
    out = list(recut(iter(tables), 4, SCHEMA.empty_table()))
    assert [len(table) for table in out] == [4, 4, 1]
    assert pa.concat_tables(out)["value"].to_pylist() == [0, 1, 2, 0, 1, 2, 3, 4, 0]
    assert list(recut(iter([]), 4, SCHEMA.empty_table())) == [SCHEMA.empty_table()]


@pytest.mark.parametrize("batch_rows", [1, 3, 4, 100])
def test_later_passes_hide_what_they_hold_and_a_mask_hides_the_rest(folder, tmp_path, batch_rows):
    total = 9
    base = stored(folder, [rows([None, 1, None, 3, None, 5, None, 7, None])])
    first = stored(folder, [rows([20, None], SPARSE, at=[2, 4])], SPARSE, 1, total)
    second = stored(folder, [rows([40, 80], SPARSE, at=[4, 8])], SPARSE, 2, total)
    masks = Storage(str(tmp_path / "mask"))
    keep = [True, True, True, None, True, False, True, True, True]
    mask = state_of([stored(masks, [rows(keep, MASK, KEEP.name)], MASK)], None)

    def read(records, mask=None, mask_folder=None) -> tuple[list, list]:
        state = state_of(records, mask)
        tables = read_stage(folder, state, ["uid", "value", "reason"], batch_rows, mask_folder)
        table = pa.concat_tables(tables).unify_dictionaries()
        assert table["uid"].to_pylist() == rows([0] * total)["uid"].to_pylist()
        return table["value"].to_pylist(), table["reason"].to_pylist()

    none, out = "none", "not_selected"
    assert read([base, first])[0] == [None, 1, 20, 3, None, 5, None, 7, None]
    assert read([base, first, second]) == (
        [None, 1, 20, 3, 40, 5, None, 7, 80],
        [none, None, None, None, None, None, none, None, None],
    )
    assert read([base, first, second], mask, masks) == (
        [None, 1, 20, None, 40, None, None, 7, 80],
        [none, None, None, out, None, out, none, None, None],
    )
