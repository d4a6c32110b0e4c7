"""Tables of databases, workbooks and Arrow: as they are stored, opened for reading only."""

import builtins
import json
import sqlite3
import zipfile
from contextlib import closing

import pyarrow as pa
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.ingest._captions import answers_of, captions_of
from clipmill.stages.ops.tables.forms import names_in, opened
from clipmill.stages.ops.tables.pools import python


def rows_of(path, table=None, names=None) -> list[dict]:
    with opened(Storage(str(path.parent)), path.name, table) as form:
        names = names or form.names
        tables = list(form.tables(names))
        assert form.rows() == sum(map(len, tables))
        return [dict(zip(names, row, strict=True)) for it in tables for row in rows_in(it)]


def rows_in(table: pa.Table):
    columns = (python(column) for column in table.columns)
    return zip(*([*map(as_py, column)] for column in columns), strict=True)


def as_py(value):
    return value.as_py() if isinstance(value, pa.Scalar) else value


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "it.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE one (name, body)")
        connection.execute("CREATE INDEX other_order ON one (name DESC, body)")
        rows = [("a", b"\xff\x00"), ("b", "text"), ("c", 12), (None, None)]
        connection.executemany("INSERT INTO one VALUES (?, ?)", rows)
        connection.execute('CREATE TABLE "sqlite t""w; o" (x PRIMARY KEY) WITHOUT ROWID')
        connection.execute('INSERT INTO "sqlite t""w; o" VALUES (1)')
        connection.execute("CREATE VIEW seen AS SELECT upper(name) AS name FROM one")
    return path


def test_texts_that_a_null_list_hides_are_no_captions_of_its_row_or_another():
    ends, texts = pa.array([0, 2, 4], pa.int32()), pa.array(["lost", "words", "a cat", "a dog"])
    found = pa.ListArray.from_arrays(ends, texts, mask=pa.array([True, False]))
    columns, misfit = captions_of(found, all_captions=True)
    assert columns["text"].to_pylist() == [None, "a cat"]
    assert columns["captions"].to_pylist()[1][0]["text"] == "a dog"
    assert misfit.to_pylist() == [False, False]


def test_conversations_that_all_have_two_turns_have_answers_too():
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a dog"}]
    found = pa.array([talk, None], pa.list_(turn, 2))
    assert answers_of(found).to_pylist() == [["a dog"], None]


def test_sqlite_is_read_in_the_order_of_its_rows(database):
    assert [row["name"] for row in rows_of(database, "one")] == ["a", "b", "c", None]
    assert [*rows_of(database, "one", ["name"])[0]] == ["name"]
    assert rows_of(database, 'sqlite t"w; o') == [{"x": 1}]
    assert rows_of(database, "seen")[0] == {"name": "A"}


def test_of_several_tables_one_is_named(database):
    assert names_in(Storage(str(database.parent)), "it.db") == ["one", 'sqlite t"w; o']
    with pytest.raises(StageError, match="2 tables: 'one'") as error:
        rows_of(database)
    assert "`table: NAME`" in str(error.value)
    with pytest.raises(pa.ArrowInvalid, match="no such table"):
        rows_of(database, "none")


def test_sqlite_is_left_as_it_is_with_what_is_not_written_back(database, tmp_path):
    before = database.read_bytes()
    rows_of(database, "one")
    assert [path.name for path in tmp_path.iterdir()] == ["it.db"]
    assert database.read_bytes() == before
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("INSERT INTO one VALUES ('late', 1)")
        other.commit()
        assert [row["name"] for row in rows_of(database, "one")][-1] == "late"


def test_a_view_of_duckdb_reads_no_other_file(tmp_path):
    import duckdb

    (tmp_path / "secret.csv").write_text("a\n1\n")
    with duckdb.connect(str(tmp_path / "it.duckdb")) as connection:
        connection.sql("CREATE TABLE pairs AS SELECT range AS n, uuid() AS id FROM range(3000)")
        connection.sql(f"CREATE VIEW seen AS SELECT * FROM read_csv('{tmp_path}/secret.csv')")
    assert [row["n"] for row in rows_of(tmp_path / "it.duckdb")] == list(range(3000))
    with pytest.raises(pa.ArrowInvalid, match="disabled"):
        rows_of(tmp_path / "it.duckdb", "seen")


def test_a_sheet_has_its_names_in_its_first_row_and_empty_rows_are_passed_over(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    rows = [(), ("url", None, "n"), ("a", "x", 1), (None,) * 3, ("b", None, "two")]
    for number, row in enumerate(rows, 1):
        for place, value in enumerate(row, 1):
            book.active.cell(number, place, value)
    book.create_sheet("empty")
    book.save(tmp_path / "it.xlsx")
    assert rows_of(tmp_path / "it.xlsx") == [{"url": "a", "n": 1}, {"url": "b", "n": "two"}]
    book.create_sheet("more").append(["x", "x"])
    book.save(tmp_path / "it.xlsx")
    assert names_in(Storage(str(tmp_path)), "it.xlsx") == ["Sheet", "more"]
    with pytest.raises(pa.ArrowInvalid, match="columns of one name among x, x"):
        rows_of(tmp_path / "it.xlsx", "more")


def test_a_workbook_that_is_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_MAX_BATCH_BYTES", "1000")
    with zipfile.ZipFile(tmp_path / "it.xlsx", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("xl/sharedStrings.xml", bytes(1 << 20))
    with pytest.raises(pa.ArrowInvalid, match="a bomb"):
        rows_of(tmp_path / "it.xlsx")


def test_arrow_is_read_as_a_file_and_as_a_stream_column_by_column(tmp_path):
    table = pa.table(
        {
            "body": pa.array([b"a", None], pa.binary_view()),
            "kind": pa.array(["x", "x"], pa.string_view()).dictionary_encode(),
            "n": [1, 2],
        }
    )
    for name, new in (("it.arrow", pa.ipc.new_stream), ("it.feather", pa.ipc.new_file)):
        with new(str(tmp_path / name), table.schema) as sink:
            sink.write_table(table, max_chunksize=1)
        expected = [{"n": 1, "kind": "x", "body": b"a"}, {"n": 2, "kind": "x", "body": None}]
        assert rows_of(tmp_path / name, names=["n", "kind", "body"]) == expected


def test_nan_in_a_document_is_null_and_in_its_captions_a_word(tmp_path):
    text = '[{"c": "read: NaN, \\\\", "w": NaN}, {"c": "a \\" -Infinity, b", "w": [-Infinity , 1]}]'
    (tmp_path / "it.json").write_text(text)
    rows = [{"c": "read: NaN, \\", "w": None}, {"c": 'a " -Infinity, b', "w": [None, 1]}]
    assert rows_of(tmp_path / "it.json") == rows


def test_a_name_without_captions_or_fields_is_a_row(tmp_path):
    (tmp_path / "texts.json").write_text('{"a.jpg": "a dog", "b.jpg": null, "c.jpg": 3}')
    none = [{"file_name": name, "caption": None} for name in ("b.jpg", "c.jpg")]
    found = rows_of(tmp_path / "texts.json")
    assert found == [{"file_name": "a.jpg", "caption": ["a dog"]}, *none]
    (tmp_path / "fields.json").write_text(
        '{"a.jpg": null, "b.jpg": {"t": "x"}, "c.jpg": {"t": "y"}}'
    )
    rows = [("a.jpg", None), ("b.jpg", "x"), ("c.jpg", "y")]
    assert rows_of(tmp_path / "fields.json") == [{"file_name": n, "t": t} for n, t in rows]


def test_a_document_that_ends_within_a_text_of_many_quotes_is_refused_at_once(tmp_path):
    (tmp_path / "it.json").write_text('[{"w": NaN}, {"c": "' + 60_000 * '\\"')
    with pytest.raises(pa.ArrowInvalid):
        rows_of(tmp_path / "it.json")


@pytest.mark.parametrize("module", ["openpyxl", "duckdb"])
def test_a_package_that_is_missing_is_named_with_its_extra(module, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == module:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    path = tmp_path / {"openpyxl": "it.xlsx", "duckdb": "it.duckdb"}[module]
    path.write_bytes(b"x" * 8 + b"DUCK" + b"x" * 99)
    with pytest.raises(RecipeError, match=r"clipmill\[tables\]"):
        rows_of(path)


def test_llavas_conversations_are_captions_of_what_was_answered(tmp_path):
    talks = [
        [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a dog"}],
        [{"from": "human", "value": "Hm?"}],
        None,
    ]
    rows = [{"image": f"{i}.jpg", "conversations": talk} for i, talk in enumerate(talks)]
    (tmp_path / "talks.json").write_text(json.dumps(rows))
    found = pa.array([row["conversations"] for row in rows_of(tmp_path / "talks.json")])
    assert answers_of(found).to_pylist() == [["a dog"], [], None]
    spoken = pa.array([[{"role": "assistant", "content": "a cat"}]])
    assert answers_of(spoken).to_pylist() == [["a cat"]]
    assert answers_of(pa.array([["plain"]])).to_pylist() == [["plain"]]
