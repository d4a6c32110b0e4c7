"""UrlList: formats, columns, uids, cuts, rows and files that are broken."""

import gzip
import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import uid_of
from clipmill.pipeline.cli import main
from clipmill.pipeline.errors import RecipeError, ShardError, StageError
from clipmill.stages.ingest import _text_rows
from clipmill.stages.ingest.url_list import UrlList, list_files, scan

ROWS: dict[str, list] = {
    "url": [f"http://a/{i}" for i in range(7)],
    "text": ["plain", None, "", 'say "hi", you', "two\nlines", "ünï\u2028cödé", "x" * (1 << 20)],
}
COMMAS = "\n".join(
    [
        "url,text",
        "http://a/0,plain",
        "http://a/1,",
        'http://a/2,""',
        'http://a/3,"say ""hi"", you"',
        'http://a/4,"two\nlines"',
        "http://a/5,ünï\u2028cödé",
        f"http://a/6,{'x' * (1 << 20)}\n",
    ]
)
LINES = "".join(
    json.dumps({"text": text, "url": url}) + "\n"
    for url, text in zip(ROWS["url"], ROWS["text"], strict=True)
)


def write(folder, name: str, data) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    if isinstance(data, dict):
        pq.write_table(pa.table(data), path, row_group_size=3)
    else:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("0.parquet", ROWS),
        ("0.csv", COMMAS),
        ("0.csv", "\ufeff" + COMMAS.rstrip("\n")),
        ("0.tsv", re.sub(r"(?m)^(url|http://a/.),", r"\1\t", COMMAS)),
        ("0.csv", re.sub(r"\n(?!lines)", "\r", COMMAS)),
        ("0.csv.gz", gzip.compress(COMMAS.encode(), mtime=0)),
        ("0.jsonl", LINES),
        ("0.ndjson", LINES.rstrip("\n")),
        ("0.json.gz", gzip.compress(LINES.encode(), mtime=0)),
    ],
    ids=["parquet", "csv", "BOM", "tsv", "old Mac's", "csv.gz", "jsonl", "ndjson", "json.gz"],
)
@pytest.mark.parametrize("shard_rows", [1, 3, 10_000])
def test_every_format_gives_the_same_rows_whatever_the_shards(
    tmp_path, pool_of, name, data, shard_rows
):
    write(tmp_path, name, data)
    rows = pool_of(UrlList(path=str(tmp_path), shard_rows=shard_rows))
    assert rows.select(["url", "text"]).to_pydict() == ROWS
    assert rows["reason"].null_count == 7
    assert rows["uid"].to_pylist() == list(map(uid_of, ROWS["url"], ROWS["text"]))


@pytest.mark.parametrize(
    ("name", "data"), [("0.parquet", ROWS), ("0.csv", COMMAS), ("0.jsonl", LINES)]
)
def test_a_shard_holds_at_most_shard_rows(tmp_path, run, name, data):
    write(tmp_path, name, data)
    assert list(map(len, run(UrlList(path=str(tmp_path), shard_rows=3)).shards)) == [3, 3, 1]


def test_a_packed_file_is_one_shard_for_it_cannot_be_entered_midway(tmp_path, run):
    write(tmp_path, "0.csv.gz", gzip.compress(COMMAS.encode(), mtime=0))
    assert list(map(len, run(UrlList(path=str(tmp_path), shard_rows=3)).shards)) == [7]


def test_files_come_by_name_from_a_folder_a_glob_or_alone(tmp_path, pool_of):
    for name in ("b/1.csv", "a/2.csv", "a/10.csv", ".hidden/3.csv", "a/.4.csv", "a/5.txt"):
        write(tmp_path, name, f"url,text\n{name},\n")

    def urls(path: str) -> list[str]:
        return pool_of(UrlList(path=path))["url"].to_pylist()

    assert urls(str(tmp_path)) == ["a/10.csv", "a/2.csv", "b/1.csv"]
    assert urls(f"{tmp_path}/") == ["a/10.csv", "a/2.csv", "b/1.csv"]
    assert urls(f"file://{tmp_path}/a") == ["a/10.csv", "a/2.csv"]
    assert urls(f"{tmp_path}/a/2.csv") == ["a/2.csv"]
    assert urls(f"{tmp_path}/*/*.csv") == ["a/10.csv", "a/2.csv", "b/1.csv"]
    assert urls(f"{tmp_path}/a/1*.csv") == ["a/10.csv"]
    assert urls(f"{tmp_path}/**/*1.csv") == ["b/1.csv"]


def test_sources_survive_a_move_of_the_pool_and_notice_a_change(tmp_path, run):
    path = write(tmp_path / "old", "0.csv", COMMAS)
    before = run(UrlList(path=str(tmp_path / "old"))).sources
    os.rename(tmp_path / "old", tmp_path / "new")
    assert run(UrlList(path=str(tmp_path / "new"))).sources == before
    path = tmp_path / "new" / "0.csv"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert run(UrlList(path=str(tmp_path / "new"))).sources[0]["digest"] != before[0]["digest"]


def test_columns_have_the_names_that_the_settings_give_them(tmp_path, pool_of):
    write(
        tmp_path,
        "0.parquet",
        {
            "URL": ["u"],
            "TEXT": pa.array(["t"], pa.large_string()),
            "W": [512.0],
            "H": pa.array([256], pa.int64()),
            "hash": ["00112233445566778899AABBCCDDEEFF"],
            "license": ["cc"],
            "similarity": pa.array([0.25], pa.float64()),
        },
    )
    stage = UrlList(
        path=str(tmp_path),
        url_col="URL",
        caption_col="TEXT",
        width_col="W",
        height_col="H",
        uid_col="hash",
        extra={"license": "string", "similarity": "float32"},
    )
    assert pool_of(stage).to_pylist() == [
        {
            "uid": bytes.fromhex("00112233445566778899aabbccddeeff"),
            "url": "u",
            "text": "t",
            "original_width": 512,
            "original_height": 256,
            "license": "cc",
            "similarity": 0.25,
            "reason": None,
        }
    ]


def test_a_pool_without_captions_has_no_text_column(tmp_path, pool_of):
    write(tmp_path, "0.csv", "url\na\n")
    rows = pool_of(UrlList(path=str(tmp_path), caption_col=None))
    assert rows.column_names == ["uid", "url", "reason"]
    assert rows["uid"].to_pylist() == [uid_of("a", None)]


def test_a_row_that_no_csv_parser_reads_keeps_its_place(tmp_path, pool_of):
    rows = ["url,text", "x,y,z", "a,1", "", "short", "b,2", "c,3", "l,o,n,g", "l,o,n,g"]
    write(tmp_path, "0.csv", "\n".join(rows))
    for shard_rows in (1, 2, 10_000):
        found = pool_of(UrlList(path=str(tmp_path), shard_rows=shard_rows))
        assert found["url"].to_pylist() == [None, "a", None, "b", "c", None, None]
        assert found["text"].to_pylist() == [None, "1", None, "2", "3", None, None]
        bad = "unparsable"
        assert found["reason"].to_pylist() == [bad, None, bad, None, None, bad, bad]
        assert found["uid"][0] != found["uid"][2]


def test_a_line_that_is_no_json_object_keeps_its_place(tmp_path, pool_of):
    lines = ['{"url": "a", "text": "1"}', "{", "[1]", '{"text": "2"}', "\xff{}", '{"url": "b"}']
    write(tmp_path, "0.jsonl", "\n".join(lines).encode("latin-1") + b"\n" + b"[" * 100_000)
    rows = pool_of(UrlList(path=str(tmp_path)))
    assert rows["url"].to_pylist() == ["a", None, None, None, None, "b", None]
    bad = "unparsable"
    assert rows["reason"].to_pylist() == [None, bad, bad, "no_url", bad, None, bad]


def test_a_line_above_the_limit_keeps_its_place_and_spares_its_neighbours(tmp_path, pool_of):
    lines = ['{"url": "a"}', f'{{"url": "{"b" * 3_000_000}"}}', '{"url": "c"}', " " * 2_000_000]
    write(tmp_path, "0.jsonl.gz", gzip.compress("\n".join(lines).encode()))
    rows = pool_of(UrlList(path=str(tmp_path), caption_col=None, max_line_bytes=1000))
    assert rows["url"].to_pylist() == ["a", None, "c", None]
    assert rows["reason"].to_pylist() == [None, "unparsable", None, "unparsable"]
    assert len(set(rows["uid"].to_pylist())) == 4


def test_a_bad_value_is_null_with_a_reason_and_spares_its_neighbours(tmp_path, pool_of):
    data = 'url,text,w\na,\xff,1\nb,t,wide\nc,t,2.0\n"",t,3\ne,t,\nf,t,99999999999\n'
    write(tmp_path, "0.csv", data.encode("latin-1"))
    rows = pool_of(UrlList(path=str(tmp_path), width_col="w"))
    assert rows.drop_columns("uid").to_pydict() == {
        "url": ["a", "b", "c", "", "e", "f"],
        "text": [None, "t", "t", "t", "t", "t"],
        "original_width": [1, None, 2, 3, None, None],
        "reason": ["bad_value", "bad_value", None, "no_url", None, "bad_value"],
    }


def test_bytes_that_are_no_utf8_are_null_with_a_reason_and_spare_their_neighbours(
    tmp_path, pool_of
):
    def said_to_be_text(*values):  # as a writer that does not look puts them in a file
        return pa.array(values, pa.binary()).view(pa.string())

    urls = said_to_be_text(b"http://a/0", b"http://a/\xed\xa0\x80", b"http://a/2", b"http://a/3")
    texts = said_to_be_text(b"one", b"two", b"caf\xe9", b"four")
    path = write(tmp_path, "0.parquet", {"url": urls, "text": texts})
    pool = pool_of(UrlList(path=path))
    assert pool["url"].to_pylist() == ["http://a/0", None, "http://a/2", "http://a/3"]
    assert pool["text"].to_pylist() == ["one", "two", None, "four"]
    assert pool["reason"].to_pylist() == [None, "no_url", "bad_value", None]


def test_json_values_of_another_type_are_read_where_they_can_be(tmp_path, pool_of):
    values = [{"url": "a", "text": 5, "w": "7"}, {"url": "b", "text": ["x"], "w": 1.5}]
    values += [{"url": "c", "text": "\ud800", "w": 3}]
    write(tmp_path, "0.jsonl", "\n".join(map(json.dumps, values)))
    rows = pool_of(UrlList(path=str(tmp_path), width_col="w"))
    assert rows["text"].to_pylist() == ["5", None, None]
    assert rows["original_width"].to_pylist() == [7, None, 3]
    assert rows["reason"].to_pylist() == [None, "bad_value", "bad_value"]


def test_a_missing_size_that_pandas_wrote_as_nan_is_no_fault(tmp_path, pool_of):
    write(tmp_path, "0.parquet", {"url": ["a", "b"], "text": ["", ""], "w": [5.0, float("nan")]})
    rows = pool_of(UrlList(path=str(tmp_path), width_col="w"))
    assert rows["original_width"].to_pylist() == [5, None]
    assert rows["reason"].to_pylist() == [None, None]


def test_a_uid_that_is_no_uid_is_hashed_and_said(tmp_path, pool_of):
    write(tmp_path, "0.csv", f"url,text,id\na,t,{'0f' * 16}\nb,t,nope\nc,t,\n")
    rows = pool_of(UrlList(path=str(tmp_path), uid_col="id"))
    assert rows["uid"].to_pylist() == [b"\x0f" * 16, uid_of("b", "t"), uid_of("c", "t")]
    assert rows["reason"].to_pylist() == [None, "bad_uid", "bad_uid"]
    assert rows["url"].to_pylist() == ["a", "b", "c"]


def test_raw_tsv_keeps_its_stray_quotes(tmp_path, run):
    write(tmp_path, "0.tsv", 'text\turl\n"unclosed\ta\n5" nail\tb\n"\tc\n')
    ctx = run(UrlList(path=str(tmp_path), quoted=False, shard_rows=1))
    rows = [row for shard in ctx.shards for row in shard.select(["url", "text"]).to_pylist()]
    assert rows == [
        {"url": "a", "text": '"unclosed'},
        {"url": "b", "text": '5" nail'},
        {"url": "c", "text": '"'},
    ]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("0.parquet", {"url": pa.array([], pa.string()), "text": pa.array([], pa.string())}),
        ("0.csv", "url,text\n"),
        ("0.csv", "url,text"),
        ("0.csv", ""),
        ("0.jsonl", ""),
        ("0.jsonl", "\n\n"),
        ("0.csv.gz", gzip.compress(b"url,text\n", mtime=0)),
    ],
)
def test_a_file_without_rows_is_a_shard_without_rows(tmp_path, run, name, data):
    write(tmp_path, name, data)
    assert list(map(len, run(UrlList(path=str(tmp_path))).shards)) == [0]


@pytest.mark.parametrize(
    "data", [{"URL": ["a"], "text": ["t"]}, "URL,text\na,t\n", "url,url,text\na,b,t\n"]
)
def test_a_file_without_the_url_column_names_itself_and_its_columns(tmp_path, run, data):
    name = write(tmp_path, "0.parquet" if isinstance(data, dict) else "0.csv", data)
    with pytest.raises(StageError) as error:
        run(UrlList(path=str(tmp_path)))
    found, where, do = error.value.args
    assert "'url'" in found
    assert "text" in found
    assert where == name
    assert do in ("did you mean `url_col: URL`?", "rename all but one of them")


def test_a_parquet_without_the_uid_asked_for_stops_the_stage(tmp_path, run):
    write(tmp_path, "0.parquet", ROWS)
    with pytest.raises(StageError, match="'uid'"):
        run(UrlList(path=str(tmp_path), uid_col="uid"))


@pytest.mark.parametrize("cut", [0, 100, 400])
def test_a_truncated_parquet_fails_its_shard_alone_by_name(tmp_path, run, cut):
    for name in "abc":
        path = write(tmp_path, f"{name}.parquet", ROWS)
    broken = tmp_path / "b.parquet"
    broken.write_bytes(broken.read_bytes()[:cut])
    ctx = run(UrlList(path=str(tmp_path)))
    assert isinstance(ctx.shards[1], ShardError)
    assert ctx.shards[1].args[1] == str(broken)
    assert [len(ctx.shards[i]) for i in (0, 2)] == [7, 7]
    broken.write_bytes(Path(path).read_bytes())
    mended = run(UrlList(path=str(tmp_path)))
    assert list(map(len, mended.shards)) == [7, 7, 7]
    changed = [a != b for a, b in zip(ctx.sources, mended.sources, strict=True)]
    assert changed == [False, True, False]


def test_a_parquet_with_a_broken_page_fails_its_shard_alone(tmp_path, run):
    path = Path(write(tmp_path, "0.parquet", ROWS))
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    write(tmp_path, "1.parquet", ROWS)
    ctx = run(UrlList(path=str(tmp_path)))
    assert isinstance(ctx.shards[0], ShardError)
    assert len(ctx.shards[1]) == 7


def test_a_broken_gzip_fails_its_shard_alone(tmp_path, run):
    write(tmp_path, "0.csv.gz", b"no gzip at all")
    write(tmp_path, "1.csv.gz", gzip.compress(COMMAS.encode(), mtime=0)[:-20])
    write(tmp_path, "2.csv.gz", gzip.compress(COMMAS.encode(), mtime=0))
    shards = run(UrlList(path=str(tmp_path))).shards
    assert [isinstance(shard, ShardError) for shard in shards] == [True, True, False]


@pytest.mark.parametrize("data", [' [{"url": "a"}]', '\ufeff[{"url": "a"}]'])
def test_a_json_array_is_refused_with_what_to_do(tmp_path, run, data):
    write(tmp_path, "0.json", data)
    with pytest.raises(StageError, match="one JSON object a line"):
        run(UrlList(path=str(tmp_path)))


def test_a_file_without_a_header_has_the_columns_that_the_recipe_names(tmp_path, run):
    """CC3M's and CC12M's raw TSV: no header, stray quotes, the caption first in one of them."""
    write(tmp_path, "0.tsv", '"a cat\thttp://a/0\n5" nail\thttp://a/1\n' * 20)
    stage = {"path": str(tmp_path), "columns": ("text", "url"), "quoted": False}
    for shard_rows in (7, 100):
        ctx = run(UrlList(**stage, shard_rows=shard_rows))
        rows = [row for shard in ctx.shards for row in shard.select(["url", "text"]).to_pylist()]
        assert rows[:2] == [
            {"url": "http://a/0", "text": '"a cat'},
            {"url": "http://a/1", "text": '5" nail'},
        ]
        assert len(rows) == 40
        assert UrlList(**stage).head(1)["text"].to_pylist() == ['"a cat']


def test_a_headless_file_whose_columns_are_not_named_is_told_how_to_name_them(tmp_path, run):
    write(tmp_path, "0.tsv", "a cat\thttp://a/0\n" * 30)
    with pytest.raises(StageError, match=r"the file has a cat, http://a/0") as error:
        run(UrlList(path=str(tmp_path)))
    assert "`columns: [text, url]`" in error.value.args[2]


@pytest.mark.parametrize("data", ["http://a/0\nhttp://a/1\n", "\ufeffhttp://a/0\r\nhttp://a/1"])
@pytest.mark.parametrize("settings", [{}, {"columns": ("url",)}])
def test_a_plain_list_of_links_is_read_where_the_path_names_it(tmp_path, pool_of, data, settings):
    path = write(tmp_path, "urls.txt", data)
    for named in (path, f"{tmp_path}/*.txt"):
        pool = pool_of(UrlList(path=named, caption_col=None, shard_rows=1, **settings))
        assert pool["url"].to_pylist() == ["http://a/0", "http://a/1"]
        assert pool["reason"].null_count == 2
    with pytest.raises(StageError, match="no column 'text'") as error:
        pool_of(UrlList(path=path))
    assert "`caption_col` how the file names it, or null" in error.value.args[2]


SHEET = 'url;text\nhttp://a/0;"Müll; naß"\nhttp://a/1;é\n'
SHEET_ROWS = {"url": ["http://a/0", "http://a/1"], "text": ["Müll; naß", "é"]}


@pytest.mark.parametrize(
    ("name", "data", "settings"),
    [
        ("0.csv", SHEET.encode("utf-8-sig"), {"delimiter": ";"}),
        ("0.csv", SHEET.replace("\n", "\r\n").encode("cp1252"),
         {"delimiter": ";", "encoding": "cp1252"}),
        ("0.csv.gz", gzip.compress(SHEET.encode("latin-1"), mtime=0),
         {"delimiter": ";", "encoding": "latin-1"}),
        ("0.csv", SHEET.encode("utf-16"), {"delimiter": ";"}),
        ("0.csv", b"\xfe\xff" + SHEET.encode("utf-16-be"), {"delimiter": ";"}),
        ("0.txt", SHEET.replace(";", "\t").replace("\t naß", "; naß").encode("utf-16"), {}),
        ("0.csv", SHEET.replace(";", ",").replace(", naß", "; naß").encode("utf-16-le"),
         {"encoding": "utf-16-le"}),
        ("0.csv", SHEET.encode("utf-32"), {"delimiter": ";", "encoding": "U32"}),
    ],
    ids=["BOM", "cp1252", "latin-1, packed", "utf-16", "utf-16-be", "Unicode text", "utf-16-le",
         "utf-32"],
)  # fmt: skip
def test_a_spreadsheet_is_read_as_it_was_saved(tmp_path, pool_of, name, data, settings):
    path = write(tmp_path, name, data)
    for shard_rows in (1, 10):
        stage = UrlList(path=path, shard_rows=shard_rows, **settings)
        pool = pool_of(stage)
        assert pool.select(["url", "text"]).to_pydict() == SHEET_ROWS
        assert pool["reason"].null_count == 2
        assert stage.head(1)["text"].to_pylist() == ["Müll; naß"]


@pytest.mark.parametrize(
    ("data", "settings", "found", "do"),
    [
        (SHEET, {}, "no column 'url' and 'text'; the file has url;text", '`delimiter: ";"`'),
        ("url,text\n" + "a,\xfc\n" * 30, {}, "30 values of 'text' are no string: '\ufffd'",
         "write `encoding: cp1252`"),
        ("url,text\n" + "a,\xfc\n" * 30, {"encoding": "utf-16-le"}, "no utf-16-le: ",
         "`encoding: cp1252`"),
        ("url,text\n" + "a,b,c\n" * 30, {}, "30 of the first 30 rows cannot be read: 'a,b,c'",
         "as many fields as the first"),
        ("a,b,c\n" * 30, {"columns": ("url", "text")}, "30 of the first 30 rows cannot be read",
         "`columns`"),
        ("url,text,n\n" + "a,t,five\n" * 30, {"extra": {"n": "int32"}},
         "30 values of 'n' are no int32: 'five'", "write `extra.n: string`"),
    ],
)  # fmt: skip
def test_a_file_that_is_read_in_the_wrong_way_stops_the_stage_with_what_to_write(
    tmp_path, run, data, settings, found, do
):
    path = write(tmp_path, "0.csv", data.encode("latin-1"))
    with pytest.raises(StageError) as error:
        run(UrlList(path=path, **settings))
    assert found in error.value.args[0]
    assert error.value.args[1] == path
    assert do in error.value.args[2]


def test_json_of_which_no_line_is_an_object_stops_the_stage(tmp_path, run):
    write(tmp_path, "0.json", json.dumps([{"url": "a", "text": "t"}] * 30, indent=1)[1:])
    with pytest.raises(StageError, match="one JSON object a line"):
        run(UrlList(path=str(tmp_path)))


@pytest.mark.parametrize("path", ["", "nowhere", "*.csv"])
def test_an_empty_pool_stops_the_stage(tmp_path, run, path):
    write(tmp_path, "readme.txt", "")
    with pytest.raises(StageError, match=r"no file that ends in \.parquet"):
        run(UrlList(path=f"{tmp_path}/{path}"))


@pytest.mark.parametrize(
    "settings",
    [
        {"extra": {"text": "string"}},
        {"extra": {"license": "words"}},
        {"delimiter": "::"},
        {"encoding": "utf-7000"},
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_runs(settings):
    with pytest.raises(RecipeError):
        UrlList(path="x", **settings)


def test_a_run_folder_with_scans_of_before_there_were_groups_is_found_done(tmp_path, capsys):
    write(tmp_path, "pool/0.csv", COMMAS)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"stages:\n  pool: {{uses: ingest.url_list, path: {tmp_path}/pool, shard_rows: 3}}\n"
    )
    command = ["run", str(recipe), "--out", str(tmp_path / "run"), "--workers", "0"]
    assert main(command) == 0
    [folder] = (tmp_path / "run/stages").iterdir()
    scanned = read_sealed(Storage(str(folder)), "calls/01-map.json")
    for answer in scanned.values():
        answer["sources"] = [source for group in answer.pop("groups") for source in group]
    put_sealed(Storage(str(folder)), "calls/01-map.json", scanned, point="journal")
    capsys.readouterr()
    assert main(command) == 0
    assert "pool: found done" in capsys.readouterr().err


def test_json_is_read_by_dotted_paths_and_lists_of_captions_whole(tmp_path, pool_of):
    rows = [
        {"image": {"url": "u0"}, "says": {"en": ["a", {"raw": "b"}, "a"]}},
        {"image": {"url": "u1"}, "says": {"en": "c"}},
        {"image": {"url": "u2"}, "says": {"en": [{"n": 1}]}},
        {"image": "u3", "says": None},
    ]
    path = write(tmp_path, "0.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    stage = {"path": path, "url_col": "image.url", "caption_col": "says.en"}
    pool = pool_of(UrlList(**stage, all_captions=True))
    assert pool["url"].to_pylist() == ["u0", "u1", "u2", None]
    assert pool["text"].to_pylist() == ["a", "c", None, None]
    texts = [row and [text["text"] for text in row] for row in pool["captions"].to_pylist()]
    assert texts == [["b", "a"], None, None, None]
    assert pool["reason"].to_pylist() == [None, None, "bad_value", "no_url"]
    assert pool_of(UrlList(**stage))["reason"].to_pylist()[0] == "bad_value"


def test_first_rows_are_read_from_the_begin_of_a_large_file(tmp_path, monkeypatch):
    rows = "".join(f'http://a/{row},"line\n{row}"\n' for row in range(1000))
    write(tmp_path, "0.csv", f"url,text\n{rows}")
    monkeypatch.setattr(_text_rows, "HEAD_BYTES", 100)
    stage = UrlList(path=str(tmp_path))
    (file,) = list_files(stage.path, stage.suffixes, "pool")
    (((source,),),) = scan(stage, file, None, is_cut=False).values()
    assert 0 < source["stop"] - source["start"] <= 100
    assert stage.head(3)["text"].to_pylist() == ["line\n0", "line\n1", "line\n2"]
    assert stage.head(1000).num_rows < 10
