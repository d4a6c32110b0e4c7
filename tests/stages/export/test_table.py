"""export.table: rows as CSV and JSON Lines, which others read back."""

import csv
import json
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.export._leaving import Dropped
from clipmill.stages.export.table import Table


def export(ctx, shards, **settings):
    Table(**settings).run(Inputs(rows=shards), ctx)
    return ctx.out / f"rows.{settings.get('format', 'csv')}"


@pytest.fixture
def odd(pool) -> pa.Table:
    """Four rows with everything a table has no plain form for."""
    captions = ['a "quoted", one', "two\nlines", "", None]
    return pa.table(
        {
            "uid": pool["uid"][:4],
            "text": pa.array(captions, pa.string()),
            "keep": pa.array([True] * 4),
            "score": pa.array([0.1, float("nan"), None, 2.5], pa.float32()),
            "duplicate_of": pa.array([b"k" * 16, None, None, None], pa.binary(16)),
            "ids": pa.array([[1, 2], [], None, [3]], pa.list_(pa.int32())),
            "box": pa.array([{"w": 1.5, "note": "é"}] * 4),
            "raw": pa.array([b"\x00\xff", None, None, None], pa.binary()),
            "language": pa.array(["en", None, "de", "en"]).dictionary_encode(),
        }
    )


COLUMNS = ("caption", "score", "duplicate_of", "ids", "box", "raw", "language")


def test_csv_holds_the_kept_rows_in_the_pools_order(pool, memory_shards, memory_context):
    path = export(memory_context(), memory_shards(pool[:100], pool[100:]))
    found = pl.read_csv(path)
    kept = pool.filter(pool["keep"].fill_null(False))
    assert found.columns == ["uid", "caption", "url"]
    assert found["uid"].to_list() == [uid.hex() for uid in kept["uid"].to_pylist()]
    assert found["caption"].to_list() == kept["text"].to_pylist(), "a row without image is here too"


def test_csv_says_what_has_no_plain_form_as_text(odd, memory_shards, memory_context):
    path = export(memory_context(), memory_shards(odd), columns=COLUMNS)
    with path.open(newline="", encoding="utf-8") as file:
        first, second, third, fourth = csv.DictReader(file)
    assert list(first) == ["uid", *COLUMNS]
    assert (first["caption"], second["caption"]) == ('a "quoted", one', "two\nlines")
    assert (first["score"], third["score"]) == ("0.1", "")
    assert (first["duplicate_of"], first["raw"]) == ("6b" * 16, "00ff")
    assert (json.loads(first["ids"]), third["ids"]) == ([1, 2], "")
    assert json.loads(first["box"]) == {"w": 1.5, "note": "é"}
    assert (first["language"], second["language"], fourth["language"]) == ("en", "", "en")


def test_json_lines_hold_the_same_rows(odd, memory_shards, memory_context):
    path = export(memory_context(), memory_shards(odd), format="jsonl", columns=COLUMNS)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["caption"] for row in rows] == odd["text"].to_pylist()
    assert [row["score"] for row in rows] == [0.1, None, None, 2.5]
    assert [row["ids"] for row in rows] == odd["ids"].to_pylist()
    assert rows[0]["duplicate_of"] == "6b" * 16
    assert rows[0]["box"] == {"w": 1.5, "note": "é"}
    assert pl.read_ndjson(path).columns == ["uid", *COLUMNS]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_values_of_any_arrow_type_are_written(form, pool, memory_shards, memory_context):
    any_type = {
        "large": pa.array([b"\x01"], pa.large_binary()),
        "pairs": pa.array([[("a", float("nan"))]], pa.map_(pa.string(), pa.float64())),
        "price": pa.array([Decimal("1.50")], pa.decimal128(5, 2)),
        "took": pa.array([61], pa.duration("s")),
        "at": pa.array([3600], pa.time32("s")),
        "half": pa.array([0.5], pa.float16()),
    }
    rows = pa.table({"uid": pool["uid"][:1], "text": pool["text"][:1], **any_type})
    path = export(memory_context(), memory_shards(rows), format=form, columns=tuple(any_type))
    read = csv.DictReader if form == "csv" else lambda lines: map(json.loads, lines)
    (found,) = read(path.read_text().splitlines())
    pairs = found["pairs"]
    assert (json.loads(pairs) if form == "csv" else pairs) == [["a", None]]
    said = [found[name] for name in ("large", "price", "took", "at")]
    assert said == ["01", "1.50", "0:01:01", "01:00:00"]
    assert float(found["half"]) == 0.5


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_rows_that_a_stage_lost_leave_with_reason_and_value(
    form, odd, memory_shards, memory_context
):
    reasons = pa.array(["too_low", None, "too_low", "other"]).dictionary_encode()
    lost = Dropped("rule", "too_low", decided=("score",))
    given = memory_shards(odd.append_column("rule.reason", reasons))
    path = export(memory_context(), given, format=form, dropped=lost, columns=("caption",))
    found = pl.read_csv(path) if form == "csv" else pl.read_ndjson(path)
    assert found.drop("uid").to_dict(as_series=False) == {
        "reason": ["too_low", "too_low"],
        "score": [0.1, None],
        "caption": ['a "quoted", one', ""],
    }


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_load_dataset_reads_the_table_and_nothing_beside_it(
    form, pool, datasets, memory_shards, memory_context, tmp_path
):
    ctx = memory_context()
    export(ctx, memory_shards(pool), format=form)
    rows = datasets.load_dataset(str(ctx.out), split="train", cache_dir=str(tmp_path / "cache"))
    assert (rows.num_rows, rows.column_names) == (160, ["uid", "caption", "url"])


def test_dataset_json_counts_every_row(pool, memory_shards, memory_context):
    ctx = memory_context()
    export(ctx, memory_shards(pool))
    told = json.loads((ctx.out / "dataset.json").read_text())
    assert told["counts"] == {"rows": 240, "exported": 160, "not_kept": 80}
    assert told["columns"] == [["uid", "string"], ["caption", "string"], ["url", "string"]]
    assert [(file["file"], file["rows"]) for file in told["files"]] == [("rows.csv", 160)]


@pytest.mark.parametrize(
    ("columns", "says"),
    [(("image",), "holds no pictures"), (("uid",), "has anyway"), (("a", "a"), "'a' twice")],
)
def test_columns_that_no_table_has_are_refused(columns, says):
    with pytest.raises(ValueError, match=says):
        Table(columns=columns)
