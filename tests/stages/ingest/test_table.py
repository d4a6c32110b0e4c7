"""Table: pictures that are paths, bytes or Base64; no path leads out of its folder."""

import base64
import hashlib
import json
import sqlite3
from contextlib import closing
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import uid_of
from clipmill.pipeline.errors import ShardError, StageError
from clipmill.stages.ingest import table as table_stage
from clipmill.stages.ingest.table import ByEnd, Table
from clipmill.stages.ops.tables import forms

NAMES = ("imgs/a.jpg", "imgs/b.png", "imgs/c.webp")


@pytest.fixture
def folder(tmp_path):
    """Pictures below `own`, and a secret beside it."""
    for name in NAMES:
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "own" / ".hidden.jpg").write_bytes(b"secret")
    return tmp_path / "own"


def put(path, values: list[str]) -> str:
    """A table of these paths, in the form of its suffix."""
    rows = [{"filepath": value, "title": f"a red shoe {i}"} for i, value in enumerate(values)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        mark = {".csv": ",", ".tsv": "\t"}[path.suffix]
        path.write_text(
            "".join(mark.join(row) + "\n" for row in [rows[0], *map(dict.values, rows)])
        )
    return str(path)


def table(path: str, **settings) -> Table:
    return Table(path=path, image_col="filepath", caption_col="title", **settings)


@pytest.mark.parametrize("shard_rows", [2, 100])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_paths_are_read_below_the_tables_folder(suffix, shard_rows, folder, pool_of):
    path = put(folder / f"pairs.{suffix}", list(NAMES))
    texts, bodies = [f"a red shoe {i}" for i in range(3)], [name.encode() for name in NAMES]
    assert pool_of(table(path, shard_rows=shard_rows)).to_pydict() == {
        "uid": list(map(uid_of, NAMES, texts)),
        "url": list(NAMES),
        "image": bodies,
        "image_bytes": list(map(len, bodies)),
        "text": texts,
        "sha256": [hashlib.sha256(body).hexdigest() for body in bodies],
        "reason": [None] * 3,
    }


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("imgs/a.jpg", None),
        ("./imgs//x/../a.jpg", None),
        ("imgs\\a.jpg", None),
        ("{folder}/imgs/a.jpg", None),
        ("file://{folder}/imgs/a.jpg", None),
        ("FILE://{folder}/imgs/a.jpg", None),
        ("file://localhost{folder}/imgs/%61.jpg", None),
        ("imgs/gone.jpg", "unreadable"),
        ("imgs", "unreadable"),
        ("imgs/a.jpg/b.jpg", "unreadable"),
        ("a" * 300 + ".jpg", "unreadable"),
        ("a\0.jpg", "unreadable"),
        ("../secret.jpg", "outside"),
        ("imgs/../../secret.jpg", "outside"),
        ("{folder}/../secret.jpg", "outside"),
        ("{folder}x/../secret.jpg", "outside"),
        ("/etc/hostname", "outside"),
        ("file:///etc/hostname", "outside"),
        ("file://server{folder}/imgs/a.jpg", "outside"),
        ("file://{folder}/%2e%2e/secret.jpg", "outside"),
        ("s3://bucket/a.jpg", "outside"),
        (".hidden.jpg", "outside"),
        (".", "outside"),
        ("", "no_image"),
    ],
)
def test_no_path_leads_out_of_the_folder(value, reason, folder, pool_of):
    path = put(folder / "pairs.jsonl", [value.format(folder=folder), "imgs/b.png"])
    first, second = pool_of(table(path)).to_pylist()
    assert first["reason"] == reason
    assert first["image"] == (None if reason else b"imgs/a.jpg")
    assert reason or first["url"] == "imgs/a.jpg"
    assert second["image"] == b"imgs/b.png"


def test_no_link_leads_out_of_the_folder_either_unless_that_is_allowed(folder, pool_of):
    (folder.parent / "secret.jpg").write_bytes(b"secret")
    (folder / "imgs" / "link.jpg").symlink_to(folder.parent / "secret.jpg")
    path = put(folder / "pairs.jsonl", ["imgs/link.jpg", "imgs/b.png"])
    rows = pool_of(table(path)).to_pylist()
    assert [(row["reason"], row["image"]) for row in rows] == [
        ("outside", None),
        (None, b"imgs/b.png"),
    ]
    assert pool_of(table(path, follow_links=True))["image"].to_pylist()[0] == b"secret"


def test_a_table_below_the_path_has_its_own_folder_and_pictures_names_another(folder, pool_of):
    (folder / "lists").mkdir()
    put(folder / "lists" / "pairs.csv", ["imgs/a.jpg", "../imgs/a.jpg"])
    assert pool_of(table(str(folder)))["reason"].to_pylist() == ["unreadable", "outside"]
    there = table(str(folder), pictures=str(folder))
    assert pool_of(there)["reason"].to_pylist() == [None, "outside"]


def test_whole_paths_may_start_at_the_root_and_a_struct_may_lack_fields(folder, pool_of):
    path = put(folder / "pairs.jsonl", [f"{folder}/imgs/a.jpg"])
    assert pool_of(table(path, pictures="/"))["image"].to_pylist() == [b"imgs/a.jpg"]
    lines = [{"filepath": {"path": "imgs/a.jpg"}, "title": "a b"}, {"filepath": {}, "title": "b"}]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert pool_of(table(path))["image"].to_pylist() == [b"imgs/a.jpg", None]


def test_most_paths_that_lead_nowhere_are_an_error_that_says_what_to_write(folder, run):
    for values in (["x/a.jpg"] * 3, ["/data/a.jpg"] * 3):
        path = put(folder / "pairs.csv", values)
        with pytest.raises(
            StageError, match=f"3 of the first 3 .*no files below {folder}"
        ) as error:
            run(table(path))
        assert "pictures: FOLDER" in str(error.value)
    with pytest.raises(StageError, match="links belong in `url_col`"):
        run(table(put(folder / "pairs.csv", ["https://a.test/a.jpg"] * 3)))


def test_a_large_picture_and_a_bad_line_keep_their_places(folder, pool_of):
    lines = ['{"filepath": "imgs/a.jpg"}', "{", '{"filepath": "imgs/c.webp", "title": "a b"}']
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    rows = pool_of(table(str(folder / "pairs.jsonl"), max_image_bytes=10))
    assert rows["reason"].to_pylist() == [None, "unparsable", "too_large"]
    assert rows["uid"].to_pylist()[1] == uid_of("{\n", None)


def test_a_text_without_a_header_and_with_another_encoding(folder, pool_of):
    (folder / "pairs.csv").write_bytes("imgs/a.jpg;caf\u00e9 au lait\n".encode("cp1252"))
    form = {"columns": ("filepath", "title"), "delimiter": ";", "encoding": "cp1252"}
    assert pool_of(table(str(folder / "pairs.csv"), **form))["text"].to_pylist() == ["café au lait"]


def test_base64_and_structs_of_bytes_or_a_path_are_pictures_too(folder, pool_of):
    body = bytes(range(256))
    text = base64.b64encode(body).decode()
    values = [
        text,
        f"data:image/png;base64,{text}",
        f"{text[:64]}\n{text[64:]}",
        text.strip("="),
        "A" * 65,
    ]
    rows = pool_of(table(put(folder / "pairs.jsonl", values)))
    assert rows["image"].to_pylist() == [body] * 4 + [None]
    assert rows["reason"].to_pylist() == [None] * 4 + ["no_image"]
    assert rows["uid"].to_pylist()[1] == uid_of(hashlib.sha256(body).hexdigest(), "a red shoe 1")
    structs = [{"bytes": body, "path": "x.png"}, {"bytes": None, "path": "imgs/a.jpg"}]
    pq.write_table(pa.table({"filepath": structs, "title": ["a b"] * 2}), folder / "own.parquet")
    rows = pool_of(table(str(folder / "own.parquet")))
    assert rows["image"].to_pylist() == [body, b"imgs/a.jpg"]
    assert rows["url"].to_pylist() == ["x.png", "imgs/a.jpg"]


def test_cocos_captions_are_joined_with_their_images(folder, pool_of):
    images = [{"id": i, "file_name": name} for i, name in enumerate(NAMES)]
    notes = [{"image_id": i, "caption": f"{word} {i}"} for i in (2, 0) for word in ("a dog", "two")]
    coco = {"info": {"year": 2017}, "annotations": notes, "images": images, "licenses": []}
    (folder / "captions.json").write_text(json.dumps(coco))
    rows = pool_of(
        Table(path=str(folder / "captions.json"), image_col="file_name", caption_col="caption")
    )
    assert rows["url"].to_pylist() == list(NAMES)
    assert rows["text"].to_pylist() == ["a dog 0", None, "a dog 2"]


def test_a_value_in_json_that_is_no_object_keeps_its_place(folder, pool_of):
    rows = [{"filepath": name, "title": 'caf\u00e9 "]},{ \\ ' * 9, "n": 12} for name in NAMES]
    rows[1]["score"] = float("nan")  # which Python writes, and JSON does not know
    text = json.dumps([rows[0], 125, *rows[1:]], ensure_ascii=False)
    (folder / "pairs.json").write_text(f"\ufeff \n{text}\n", encoding="utf-8")
    found = pool_of(table(str(folder / "pairs.json"), extra={"n": "int64"}, shard_rows=3))
    assert found["n"].to_pylist() == [12, None, 12, 12]
    assert found["text"].to_pylist()[3] == rows[2]["title"]


@pytest.mark.parametrize("text", ["[1, ", '[{"filepath": "imgs/a.jpg"}, {"fi', '[{"filepath": }]'])
def test_json_that_ends_early_fails_its_shard_alone(text, folder, run):
    put(folder / "a.csv", ["imgs/a.jpg"])
    (folder / "b.json").write_text(text)
    good, bad = run(table(str(folder))).shards
    assert good["image"].to_pylist() == [b"imgs/a.jpg"]
    assert isinstance(bad, ShardError)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ('{"a": 1}\n{"a": 2}\n', False),
        ('{"a": 1}\n', False),
        ('{\n{"a": 2}\n', False),
        ('\n\n [\n{"a": 1}]', True),
        ('{\n "images": []}', True),
        ('{"data": [1]}\n', True),
        ('{"data": [1]}\n{"data": [1]}\n', False),
        ("", False),
    ],
)
def test_a_document_is_told_from_lines(text, is_one, tmp_path):
    (tmp_path / "it.json").write_text(text)
    assert forms.is_form(Storage(str(tmp_path)), "it.json") is is_one


def test_a_broken_line_of_a_file_of_lines_is_no_document(tmp_path):
    (tmp_path / "it.jsonl").write_text('{"url": \n')
    assert not forms.is_form(Storage(str(tmp_path)), "it.jsonl")


@pytest.mark.parametrize("kind", ["arrow", "json", "jsonl", "duckdb", "parquet"])
def test_lists_of_captions_and_paths_at_dotted_paths_are_read_of_every_form(kind, folder, pool_of):
    rows = [
        {"img": {"path": NAMES[0]}, "says": {"en": ["", "\ufeffone", "two"], "de": ["eins"]}},
        {"img": {"path": NAMES[1]}, "says": {"en": ["three"], "de": None}},
        {"img": None, "says": None},
    ]
    path, made = folder / f"it.{kind}", pa.Table.from_pylist(rows)
    if kind == "arrow":
        with pa.ipc.new_stream(str(path), made.schema) as sink:
            sink.write_table(made, max_chunksize=1)
    elif kind == "duckdb":
        import duckdb

        with duckdb.connect(str(path)) as connection:
            connection.sql("CREATE TABLE pairs AS SELECT * FROM made")
    elif kind == "parquet":
        pq.write_table(made, path)
    else:
        rows[1]["says"]["en"] = "three"  # a text among lists
        lines = map(json.dumps, rows)
        path.write_text(f"[{', '.join(lines)}]" if kind == "json" else "\n".join(lines))
    names = {"image_col": "img.path", "caption_col": "says.en", "shard_rows": 2}
    found = pool_of(Table(path=str(path), all_captions=True, **names))
    assert found["url"].to_pylist() == [*NAMES[:2], None]
    assert found["text"].to_pylist() == ["one", "three", None]
    more = [row and [text["text"] for text in row] for row in found["captions"].to_pylist()]
    assert more == [["two"], None, None]
    if kind != "jsonl":  # whose lines may have any keys
        with pytest.raises(StageError, match=r"no column 'says\.fr'"):
            pool_of(Table(path=str(path), **(names | {"caption_col": "says.fr"})))


NAMES_BELOW = ("a/img_001.jpg", "b/img_001.jpg", "b/cat.v2.PNG", "000000000139.jpg", "b/dog.jpg")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("b/img_001", "b/img_001.jpg"),
        ("/home/me/old/a/img_001.jpg", "a/img_001.jpg"),
        ("C:\\old\\A\\IMG_001.JPG", "a/img_001.jpg"),
        ("cat.v2", "b/cat.v2.PNG"),
        ("dog.jpg#4", "b/dog.jpg"),
        ("b/dog.png", "b/dog.jpg"),  # made anew in another format
        ("139", "000000000139.jpg"),
        ("img_001", None),  # two
        ("c/img_001.jpg", None),
        ("og.jpg", None),
        ("", None),
    ],
)
def test_a_picture_is_found_by_the_longest_end_that_it_shares_with_a_path(path, found):
    assert ByEnd(NAMES_BELOW).find(path) == found


def test_of_pictures_of_one_name_a_few_are_compared_with_a_path(monkeypatch):
    """Each was: 8,000 rows of 8,000 `photo.jpg` took minutes, and twice as many four times that."""
    compared: list[str] = []
    monkeypatch.setattr(table_stage, "eq", lambda a, b: compared.append(a) or a == b)
    ends = ByEnd(f"all/{number:03d}/photo.jpg" for number in range(500))
    assert ends.find("/old/all/123/photo.png") == "all/123/photo.jpg"
    assert 0 < len(compared) < 20


def test_blanks_without_end_take_no_time(folder, pool_of):
    rows = pool_of(table(put(folder / "pairs.csv", [" " * 40_000 + "."])))
    assert rows["image"].to_pylist() == [None]


def test_a_name_that_is_a_sha256_is_a_path(folder, pool_of):
    names = [f"{folder_}{'0f' * 32}" for folder_ in ("", "imgs/")]
    for name in names:
        (folder / name).write_bytes(b"picture")
    rows = pool_of(table(put(folder / "pairs.csv", names)))
    assert rows["image"].to_pylist() == [b"picture"] * 2


def test_the_column_of_paths_may_be_kept_too(folder, pool_of):
    path = put(folder / "pairs.csv", list(NAMES))
    rows = pool_of(table(path, url_col="filepath", extra={"filepath": "string"}))
    assert rows["url"].to_pylist() == rows["filepath"].to_pylist() == list(NAMES)
    assert rows["image"].to_pylist() == [name.encode() for name in NAMES]


def test_rows_that_are_embeddings_alone_have_uids_of_their_own(folder, pool_of):
    (folder / "v.jsonl").write_text("".join(f'{{"v": [1.0, {row}]}}\n' for row in range(3)))
    stage = Table(path=str(folder / "v.jsonl"), image_embedding_col="v", embedding_width=2)
    assert len(set(pool_of(stage)["uid"].to_pylist())) == 3


def test_no_link_leads_to_another_folder_of_the_pool(folder, pool_of):
    (folder / "imgs" / "link.jpg").symlink_to(folder / "other.jpg")
    (folder / "other.jpg").write_bytes(b"other")
    put(folder / "imgs" / "pairs.csv", ["link.jpg"])
    assert pool_of(table(str(folder)))["reason"].to_pylist() == ["outside"]


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("shard_rows", [1, 100])
def test_a_caption_beside_values_of_other_types_is_what_it_is_alone(
    kind, shard_rows, folder, pool_of
):
    texts = {"a": "a", 5: "5", 1.0: "1", float("nan"): None, 2**70: str(2**70)}
    found = [*texts, True, {"text": "d"}, [], ["e", "f"], {"z": 1}, [["g"]]]
    rows = [{"filepath": NAMES[0], "title": value} for value in found]
    lines = "\n".join(map(json.dumps, rows))
    (folder / f"a.{kind}").write_text(lines if kind == "jsonl" else json.dumps(rows))
    pool = pool_of(table(str(folder / f"a.{kind}"), shard_rows=shard_rows))
    assert pool["text"].to_pylist() == [*texts.values(), "true", "d", None, "e", None, None]
    assert pool["reason"].to_pylist() == [None] * 9 + ["bad_value"] * 2


def test_a_row_that_fits_no_type_harms_no_other(folder, pool_of):
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]
    rows = [{"url": "http://a.test", "talk": turns, "vector": [1, 2.5]} for _ in range(9)]
    rows[3] |= {"url": "\ud800", "talk": [{"from": "gpt", "value": 5}], "vector": [1, "x"]}
    rows[8]["talk"] = ["a"]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = {"image_embedding_col": "vector", "embedding_width": 2, "answers": True}
    pool = pool_of(
        Table(path=str(folder / "a.jsonl"), url_col="url", caption_col="talk", **own)
    ).to_pylist()
    bad = pool.pop(3)
    assert (bad["url"], bad["text"], bad["image_embedding"]) == (None, "5", None)
    found = [(row["text"], row["image_embedding"], row["reason"]) for row in pool]
    assert found == [("a", [1, 2.5], None)] * 8


def test_truths_among_numbers_are_no_numbers(folder, pool_of):
    rows = [{"filepath": NAMES[0], "title": value} for value in (1.5, True, False)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert pool_of(table(str(folder / "a.jsonl")))["text"].to_pylist() == ["1.5", "true", "false"]


def test_text_of_sqlite_that_is_no_utf8_is_refused_alone_and_bytes_are_text(folder, pool_of):
    with closing(sqlite3.connect(folder / "a.db")) as connection, connection:
        connection.execute("CREATE TABLE t (filepath, title)")
        values = ["'a'", "x'62'", "x'ff'", "CAST(x'ff41' AS TEXT)", "5"]
        for value in values:
            connection.execute(f"INSERT INTO t VALUES ('{NAMES[0]}', {value})")
    pool = pool_of(table(str(folder / "a.db")))
    assert pool["text"].to_pylist() == ["a", "b", None, None, "5"]
    assert pool["reason"].to_pylist() == [None, None, "bad_value", "bad_value", None]


def test_uuids_are_uids_and_texts_never_sixteen_letters(folder, pool_of):
    known = [UUID(bytes=b"sixteen letters!"), UUID(int=7)]
    rows = pa.table({"url": ["http://a.test"] * 2, "id": pa.array(known), "text": pa.array(known)})
    pq.write_table(rows, folder / "a.parquet")
    pool = pool_of(
        Table(path=str(folder / "a.parquet"), url_col="url", uid_col="id", caption_col="text")
    )
    assert pool["uid"].to_pylist() == [uuid.bytes for uuid in known]
    assert pool["text"].to_pylist() == [*map(str, known)]
