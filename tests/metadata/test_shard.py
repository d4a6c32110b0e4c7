"""A shard's Parquet file: the same bytes each time, read by batches, passes read as one."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata import parquet_file, storage
from clipmill.metadata.damage import DamagedError
from clipmill.metadata.parquet_file import read_at, read_file, recut
from clipmill.metadata.passes import read_stage
from clipmill.metadata.record import state_of
from clipmill.metadata.scan import scan
from clipmill.metadata.schema import KEEP, POSITION, REASON, UID
from clipmill.metadata.shard import GROUP_ROWS, ShardWriter, store
from clipmill.metadata.storage import Storage

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


def test_a_record_comes_when_its_data_is_there(folder, monkeypatch):
    there = []

    def look(point: str, name: str) -> None:
        there.append({entry.name for entry in folder.entries()})

    monkeypatch.setattr(storage, "reached", look)
    record = stored(folder, [rows([1])])
    assert there == [set(), {record.data}, {record.data}, {record.data, record.name}]


def test_the_same_batches_give_the_same_bytes(folder, tmp_path):
    again = Storage(str(tmp_path / "again"))
    tables = [rows([1, None]), rows([3])]
    assert stored(folder, tables).sha256 == stored(again, tables).sha256


def test_every_value_is_compressed_however_it_nests_but_images(tmp_path):
    types = [
        pa.map_(pa.string(), pa.list_(pa.string())),
        pa.large_list(pa.struct([("a", pa.int8()), ("b", pa.list_(pa.float32(), 2))])),
        pa.list_view(pa.int8()),
    ]
    fields = [(UID.name, UID.dtype), ("image", pa.binary()), *zip("mlv", types, strict=True)]
    path = tmp_path / "0.parquet"
    with ShardWriter(path, pa.schema(fields)) as writer:
        uid = {UID.name: pa.array([bytes(16)], UID.dtype), "image": pa.nulls(1, pa.binary())}
        nulls = {name: pa.nulls(1, dtype) for name, dtype in fields[2:]}
        writer.add(pa.table(uid | nulls))
        writer.close()
    group = pq.read_metadata(path).row_group(0)
    codecs = [group.column(i).compression for i in range(group.num_columns)]
    assert codecs == ["ZSTD", "UNCOMPRESSED", *["ZSTD"] * 5]


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


# Damage


@pytest.mark.parametrize(("small", "missed"), [(parquet_file.SMALL_BYTES, 0), (0, 2)])
def test_no_changed_byte_of_a_file_is_read(tmp_path, monkeypatch, small, missed):
    """At every place, one change each: by a small file's digest, or by pages, less their headers.

    A changed header can turn a page of a dictionary into one that is passed over.
    """
    monkeypatch.setattr(parquet_file, "SMALL_BYTES", small)
    folder = Storage(str(tmp_path))
    table = rows([None if n % 5 == 0 else n * n for n in range(40)])
    record = stored(folder, [table.slice(0, 25), table.slice(25)])
    path = tmp_path / record.data
    good = path.read_bytes()
    types = dict(zip(SCHEMA.names, SCHEMA.types, strict=True))
    silent = []
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        try:
            tables = list(read_file(folder, record.data, SCHEMA.names, 10, types, 40))
        except DamagedError:
            continue
        if pa.concat_tables(tables) != table:
            silent.append(place)
    assert len(silent) <= missed


def test_damage_names_the_file_and_what_was_found(tmp_path):
    folder = Storage(str(tmp_path))
    name = stored(folder, [rows([1, 2])]).data

    def found(*more) -> str:
        with pytest.raises(DamagedError) as damaged:
            list(read_file(folder, name, ["value"], 10, *more))
        assert (damaged.value.folder, damaged.value.name) == (folder.uri, name)
        return damaged.value.found

    assert found({}, 3) == "2 rows, and its record says 3"
    assert found({"value": pa.float32()}) == "'value' is int64, and declared float"
    (tmp_path / name).write_bytes(b"")
    assert "cannot be read" in found()
    (tmp_path / name).unlink()
    assert "cannot be read" in found()


def test_a_disk_that_fails_for_a_moment_is_no_damage(tmp_path, monkeypatch):
    folder = Storage(str(tmp_path))
    name = stored(folder, [rows([1, 2])]).data
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", _fails)
    with pytest.raises(OSError, match="I/O"):
        list(read_file(folder, name, ["value"], 10))


def _fails(*_, **__):
    raise OSError("I/O error")


def test_a_file_without_page_checksums_is_read_and_written_as_before(tmp_path):
    """So that what older versions stored is made again to the same digest."""
    schema, table = SCHEMA, rows([1, None, 3])
    with ShardWriter(tmp_path / "plain", schema, page_checksums=False) as writer:
        writer.add(table)
        writer.close()
    with ShardWriter(tmp_path / "checked", schema) as writer:
        writer.add(table)
        writer.close()
    assert (tmp_path / "plain").stat().st_size < (tmp_path / "checked").stat().st_size
    name = "000000-.parquet"  # any digest begins so
    (tmp_path / "plain").rename(tmp_path / name)
    assert pa.concat_tables(read_file(Storage(str(tmp_path)), name, SCHEMA.names, 9)) == table


def test_rows_at_positions_are_those_of_the_whole(tmp_path):
    folder = Storage(str(tmp_path))
    table = rows(list(range(GROUP_ROWS + 50)))
    name = stored(folder, [table.slice(0, GROUP_ROWS), table.slice(GROUP_ROWS)]).data
    at = np.array([0, 7, GROUP_ROWS - 1, GROUP_ROWS, GROUP_ROWS + 49])
    assert read_at(folder, name, ["value"], at)["value"].to_pylist() == at.tolist()
    assert read_at(folder, name, ["value"], at[:0]).num_rows == 0
