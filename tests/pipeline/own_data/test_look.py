"""What files are, by their names and their first rows: no run, no ingest stage."""

import gzip
import json
import os
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.globs import files_of
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_data.data import Data, UnsureError, shard_rows
from clipmill.pipeline.own_data.look import look_at

ROWS = "url,text\n" + "".join(f"https://a.test/{i}.jpg,a red shoe {i}\n" for i in range(3))


LINE = '{"file_name": "1.jpg", "text": "a red shoe"}'


def put(folder, **files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(folder)


def look(path, **answers) -> Data:
    return look_at(str(path), answers)


def refused(path, kind=RecipeError) -> RecipeError:
    with pytest.raises(kind) as error:
        look(path)
    return error.value


def test_of_two_suffixes_that_no_glob_names_together_one_is_set_aside(tmp_path):
    put(tmp_path, **{"a.csv": ROWS, "b.CSV": ROWS, "dataset_infos.json": "{}"})
    found = look(tmp_path)
    assert found.path == f"{tmp_path}/*.csv"
    assert (found.rows, found.aside) == (3, {".CSV": 1})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(0, 100), (6_400, 100), (6_401, 101), (100_000, 1_563), (640_000, 10_000), (10**9, 10_000)],
)
def test_rows_of_a_shard_give_some_64_shards(rows, expected):
    assert shard_rows(rows) == expected


def test_a_folder_of_csv_files_and_what_is_of_no_use_there(tmp_path):
    put(tmp_path, **{"a.csv": ROWS, "b.csv": ROWS, "note.pdf": "", "x/c.docx": "", ".hid": ""})
    found = look(tmp_path)
    assert (found.uses, found.rows, found.is_exact) == ("ingest.url_list", 6, True)
    assert found.settings == {"url_col": "url", "caption_col": "text", "shard_rows": 100}
    assert found.aside == {".pdf": 1, ".docx": 1}
    assert found.is_linked
    assert found.has_captions


def test_a_quoted_line_feed_is_no_row(tmp_path):
    put(tmp_path, **{"a.csv": 'url,text\nhttps://a.test/1,"a\nb c"\nhttps://a.test/2,d e\n'})
    assert look(tmp_path / "a.csv").rows == 2


def test_semicolons_a_bom_and_carriage_returns(tmp_path):
    rows = "\ufeffimage_link;alt\r\nhttps://a.test/1;one, two\r\nhttps://a.test/2;three four\r\n"
    put(tmp_path, **{"a.csv": rows})
    found = look(tmp_path / "a.csv")
    assert found.settings["delimiter"] == ";"
    assert (found.settings["url_col"], found.settings["caption_col"]) == ("image_link", "alt")


def test_tabs_in_a_file_that_is_named_csv(tmp_path):
    put(tmp_path, **{"a.csv": ROWS.replace(",", "\t")})
    assert look(tmp_path / "a.csv").settings["delimiter"] == "\t"


def test_a_table_without_a_header_has_its_columns_named(tmp_path):
    put(tmp_path, **{"a.tsv": 'a "b, c\thttps://a.test/1\nd, e\thttps://a.test/2\n'})
    found = look(tmp_path / "a.tsv")
    assert found.rows == 2
    assert found.settings["columns"] == ["text", "url"]
    assert found.settings["quoted"] is False
    assert "without a header" in found.what


def test_a_plain_list_of_links_has_no_captions(tmp_path):
    put(tmp_path, **{"a.txt": "https://a.test/1,2.jpg\r\n\r\nhttps://a.test/2.jpg?a=1,2\r\n"})
    found = look(tmp_path / "a.txt")
    assert found.what == "list of links, no captions"
    assert "columns" not in found.settings  # a first row that is a link is known for one
    assert found.settings["caption_col"] is None
    assert not found.has_captions


def test_a_packed_csv_is_read(tmp_path):
    put(tmp_path, **{"a.csv.gz": gzip.compress(ROWS.encode())})
    assert look(tmp_path / "a.csv.gz").rows == 3


@pytest.mark.parametrize("alt", ["a b", "a\u2028b"])  # a line's end to Python, and not to JSON
def test_json_lines_with_a_bad_line_and_numbers(alt, tmp_path):
    rows = [{"link": f"https://a.test/{i}", "alt": alt, "score": i} for i in (1, 2)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    put(tmp_path, **{"a.jsonl": "\n".join([lines[0], "{", lines[1]])})
    found = look(tmp_path / "a.jsonl")
    assert found.settings["extra"] == {"score": "double"}
    assert found.scores == ("score",)


def test_half_an_emoji_in_json_lines_is_read(tmp_path):
    line = (
        '{"link": "https://a.test/1", "alt": "a dog \\ud83d", "\\ud83d": 1, "m": {"\\ud83d": 1}}\n'
    )
    put(tmp_path, **{"a.jsonl": line})
    assert look(tmp_path / "a.jsonl").columns == {"url": "link", "caption": "alt"}


def test_pictures_with_texts_or_metadata_or_without(tmp_path):
    put(tmp_path / "a", **{"1.jpg": "", "1.txt": "one", "2.PNG": "", "2.txt": "", "3.jpg": ""})
    found = look(tmp_path / "a")
    assert (found.uses, found.rows) == ("ingest.image_folder", 3)
    assert found.notes == ("pictures without a file for their caption: 1",)
    put(tmp_path / "b", **{"train/1.jpg": "", "train/metadata.jsonl": LINE, "README.md": ""})
    found = look(tmp_path / "b")
    assert (found.rows, found.notes, found.aside) == (1, (), {})
    put(tmp_path / "c", **{"1.jpg": ""})
    found = look(tmp_path / "c")
    assert not found.has_captions
    assert found.notes == ("a caption is a .txt beside its picture: cat.jpg, cat.txt",)


@pytest.mark.parametrize(
    ("picture", "caption", "place"),
    [
        ("{n}/0.jpg", "{n}/0.txt", "{name}.txt"),
        ("{n}/images/0.jpg", "{n}/captions/0.txt", "../captions/{name}.txt"),
        ("images/{n}/0.jpg", "captions/{n}/0.txt", "../../captions/{folder}/{name}.txt"),
        ("{n}/0.jpg", "{n}/0.jpg.caption", "{file}.caption"),
        ("{n}/0.jpg", "{n}/text/0.json", "text/{name}.json"),
    ],
)
def test_captions_of_pictures_of_one_name_are_those_nearest_by(picture, caption, place, tmp_path):
    text = '{"text": "a red shoe"}' if place.endswith("json") else "a red shoe"
    names = [str(n) for n in range(30)]
    put(tmp_path, **{picture.format(n=n): "" for n in names})
    put(tmp_path, **{caption.format(n=n): text for n in names})
    found = look(tmp_path)
    assert (found.has_captions, found.notes) == (True, ())
    assert found.settings.get("caption_files", "{name}.txt") == place


def test_a_column_that_names_most_pictures_without_a_suffix_is_theirs(tmp_path):
    rows = "".join(f"{n % 2},{n:04d},a red shoe {n}\n" for n in range(30))
    put(tmp_path, **{"it.csv": f"label,number,text\n{rows}"})
    put(tmp_path, **{f"all/{n:04d}.jpg": "" for n in range(30)})
    assert look(tmp_path).columns == {"image": "number", "caption": "text"}
    assert look(tmp_path).settings["search"]
    assert look(tmp_path / "it.csv") == replace(look(tmp_path), aside={})


def test_pictures_of_the_same_names_in_two_folders_are_not_taken_by_chance(tmp_path):
    table = {"it.csv": "file,text\n" + "".join(f"{n}.jpg,a red shoe {n}\n" for n in range(9))}
    put(tmp_path / "lists", **table)
    for folder in ("a", "b"):
        put(tmp_path / folder, **{f"{n}.jpg": "" for n in range(9)})
    assert look(tmp_path / "lists" / "it.csv").settings.keys().isdisjoint({"pictures", "search"})
    assert "2 may be the data" in str(refused(tmp_path, UnsureError))


def test_metadata_beside_pictures_may_name_its_captions_otherwise(tmp_path):
    put(tmp_path, **{"1.jpg": "", "metadata.csv": "file_name,prompt\n1.jpg,a red shoe\n"})
    assert look(tmp_path).settings == {"caption_col": "prompt", "shard_rows": 100}
    found = look(tmp_path, caption="a {class}")  # of pictures without one
    assert found.what.endswith("captions in metadata.csv, else their folders' names")
    put(tmp_path, **{"metadata.csv": "file_name,prompt,title\n1.jpg,a red shoe,shoe 1\n"})
    assert refused(tmp_path, UnsureError).ask == "caption"
    assert look(tmp_path, caption="title").settings["caption_col"] == "title"


def test_pictures_whose_folder_or_one_above_has_metadata_have_captions(tmp_path):
    files = {f"{folder}/{n}.jpg": "" for folder in ("a", "a/deep", "ab") for n in range(2)}
    put(tmp_path, **files, **{"a/metadata.csv": "file_name,text\n0.jpg,a red shoe\n"})
    assert look(tmp_path).notes == ("pictures without a file for their caption: 2",)


def test_metadata_of_labels_alone_is_passed_over(tmp_path):
    files = {"1.jpg": "", "2.jpg": "", "metadata.csv": "file_name,label\n1.jpg,0\n2.jpg,1\n"}
    put(tmp_path / "a", **files)
    found = look(tmp_path / "a")
    assert (found.has_captions, found.settings) == (False, {"caption_col": None, "shard_rows": 100})
    put(tmp_path / "b", **files, **{"1.txt": "a red shoe", "2.txt": "a blue shoe"})
    assert look(tmp_path / "b").has_captions
    records = {f"{n}.json": '{"prompt": "a red shoe"}' for n in (1, 2)}
    put(tmp_path / "c", **files, **records)
    assert look(tmp_path / "c").settings["caption_key"] == "prompt"


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_letters_that_are_not_utf8_are_read(encoding, tmp_path):
    rows = "url\ttext\nhttps://a.test/1\tcaf\u00e9 au lait\n"
    put(tmp_path, **{"a.tsv": rows.encode(encoding)})
    found = look(tmp_path / "a.tsv")
    assert found.settings.get("encoding") == {"cp1252": "cp1252"}.get(encoding)
    assert (found.rows, found.columns) == (1, {"url": "url", "caption": "text"})


def test_links_into_ones_own_network_are_told(tmp_path):
    put(tmp_path, **{"a.csv": ROWS.replace("a.test", "192.168.1.7:80")})
    (note,) = look(tmp_path / "a.csv").notes
    assert note.splitlines() == [
        "the links lead into your own network, to 192.168.1.7:",
        "uncomment allow_private_addresses in the recipe,",
        "or run with --set images.allow_private_addresses=true",
    ]
    put(tmp_path, **{"a.csv": ROWS.replace("https://a.test", "http://localhost")})
    assert "localhost" in look(tmp_path / "a.csv").notes[0]


def test_img2datasets_files_and_tars_are_known_with_what_lies_beside(tmp_path):
    stats = json.dumps({"successes": 7})
    beside = {"00000.parquet": "x", "00000_stats.json": stats}
    put(tmp_path / "tars", **{"00000.tar": "x", **beside})
    found = look(tmp_path / "tars")
    assert (found.uses, found.rows, found.aside) == ("ingest.webdataset", 7, {})
    assert "img2dataset's output" in found.what
    pictures = {"00000/000000000.jpg": "", "00000/000000000.txt": "", "00000/000000000.json": ""}
    put(tmp_path / "files", **pictures, **beside)
    found = look(tmp_path / "files")
    assert (found.uses, found.rows, found.aside) == ("ingest.image_folder", 1, {})


def test_datacomp_is_known_by_its_scores_or_its_vectors(tmp_path):
    table = pa.table({"uid": ["0" * 32], "url": ["https://a.test/1"], "text": ["a b"]})
    pq.write_table(table, tmp_path / "0.parquet")
    assert look(tmp_path).uses == "ingest.parquet"
    np.savez(tmp_path / "0.npz", b32_img=np.ones(1))
    assert look(tmp_path).uses == "ingest.datacomp"
    scored = table.append_column("clip_l14_similarity_score", pa.array([0.5]))
    pq.write_table(scored, tmp_path / "0.parquet")
    found = look(tmp_path)
    assert found.settings == {"scores": True, "score_type": "float64", "shard_rows": 100}
    assert found.scores == ("clip_l14_similarity_score",)


def test_a_stated_sha256_that_is_not_of_the_pictures_is_not_used(tmp_path):
    rows = {"image": [b"\xff\xd8\xff a"], "caption": ["a b"], "sha256": ["0" * 64]}
    pq.write_table(pa.table(rows), tmp_path / "0.parquet")
    found = look(tmp_path)
    assert "sha256_col" not in found.settings
    assert any("sha256 is not that of the pictures" in note for note in found.notes)


def test_vectors_are_read_with_their_width(tmp_path):
    rows = {"url": ["https://a.test/1"], "text": ["a b"], "emb": pa.array([[0.5] * 48])}
    pq.write_table(pa.table(rows), tmp_path / "0.parquet")
    settings = look(tmp_path).settings
    assert (settings["image_embedding_col"], settings["embedding_width"]) == ("emb", 48)


def test_splits_of_hugging_face_are_named(tmp_path):
    rows = pa.table({"url": ["https://a.test/1"], "text": ["a b"]})
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        pq.write_table(rows, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    put(tmp_path, **{"README.md": "---\n---\n"})
    assert look(tmp_path).notes == (
        "splits test, train are read as one; give a glob for one of them",
    )
    assert look(tmp_path / "data" / "train-*.parquet").notes == ()


def test_two_kinds_of_data_are_a_question(tmp_path):
    put(tmp_path, **{"1.jpg": "", "1.txt": "a", "b.csv": ROWS})
    error = refused(tmp_path, UnsureError)
    assert error.ask == "data"
    assert list(error.candidates) == [f"{tmp_path}/*.jpg", f"{tmp_path}/*.csv"]
    assert look(tmp_path / "*.csv").rows == 3
    assert look(tmp_path / "*.jpg").uses == "ingest.image_folder"


def test_a_path_that_is_not_there_is_told_with_the_one_that_was_meant(tmp_path):
    put(tmp_path / "photos", **{"1.jpg": "", "1.txt": "a"})
    with pytest.raises(RecipeError) as error:
        look(tmp_path / "photo")
    found, where, do = error.value.args
    assert (found, where) == ("nothing there", f"{tmp_path}/photo")
    assert do.startswith("did you mean 'photos'? Else give a path that holds data")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "nothing there"),
        ({"a.pdf": "%PDF"}, "no data that can be read: 1 .pdf"),
        ({"a.ods": "PK"}, "save the sheet as CSV UTF-8"),
        ({"a.xlsx": "PK"}, "a file that cannot be read: File is not a zip file"),
        ({"a.db": "PK"}, "no database of SQLite or DuckDB"),
        ({"a.sqlite": "SQLite format 3\0" + "x" * 99}, "a file that cannot be read"),
        ({"a.feather": "FEA1"}, "a file that cannot be read"),
        ({"a.zip": "PK"}, "give the .zip itself"),
        ({"a.7z": "7z"}, "unpack it, and give the folder"),
        ({"a.csv": ""}, "no rows"),
        ({"a.csv": "\n\n"}, "no rows"),
        ({"a.csv": "url,text\n"}, "no rows below 'url', 'text'"),
        ({"a.csv": "url,text,text\nhttps://a.test/1,a b,c d\n"}, "two columns named 'text'"),
        ({"a.csv": "id,name\n1,Anna\n"}, "no column of links or of pictures among 'id', 'name'"),
        ({"a.csv": b"\x89PNG\r\n\x1a\n\0\0\0"}, "bytes that are no text"),
        ({"a.json": '[{"url": "https://a.test"}, '}, "a file that cannot be read: Input data was"),
        ({"a.json": '{"images": [], "annotations": []}'}, "neither an array of objects nor"),
        ({"a.jsonl": "no\n"}, "no rows"),
        ({"a.parquet": "PAR1 and no more"}, "a file that cannot be read"),
        ({"data-0.arrow": "", "state.json": "{}"}, "a file that cannot be read"),
        ({"dataset.json": '{"format": "uid_list"}', "uids.npy": ""}, "a list of uids"),
    ],
)
def test_what_no_stage_reads_is_refused_with_what_to_do(files, said, tmp_path):
    put(tmp_path / "it", **files)
    assert said in str(refused(tmp_path / "it"))


def test_pictures_that_are_only_named_and_types_of_any_kind_are_no_traceback(tmp_path):
    named = pa.array([{"bytes": None, "path": "a.jpg"}])
    pq.write_table(pa.table({"image": named, "text": ["a b"]}), tmp_path / "a.parquet")
    assert look(tmp_path / "a.parquet").uses == "ingest.table"
    rows = {"url": ["https://a.test/1"], "half": pa.array([1], pa.float16()), "none": pa.nulls(1)}
    rows["map"] = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32()))
    pq.write_table(pa.table(rows), tmp_path / "b.parquet")
    found = look(tmp_path / "b.parquet")
    assert found.settings["extra"] == {"half": "halffloat"}
    assert not found.has_captions


@pytest.mark.parametrize("name", ["filepath", "path", "file_name", "image", "whatever"])
def test_a_table_of_paths_is_known_by_its_values(name, tmp_path):
    put(tmp_path, **{"a.csv": f"title,{name}\na dog,imgs/1.jpg\na cat,file:///data/2.PNG\n"})
    found = look(tmp_path / "a.csv")
    assert found.uses == "ingest.table"
    assert found.settings == {"image_col": name, "caption_col": "title", "shard_rows": 100}
    assert not found.is_linked


def test_a_table_of_paths_without_a_header_and_two_columns_of_paths(tmp_path):
    put(tmp_path, **{"a.tsv": "1.jpg\ta dog\n2.jpg\ta cat\n"})
    assert look(tmp_path / "a.tsv").settings["columns"] == ["image", "text"]
    put(tmp_path, **{"a.csv": "front,back,title\n1.jpg,2.jpg,a dog\n"})
    assert refused(tmp_path / "a.csv", UnsureError).ask == "image"
    assert look(tmp_path / "a.csv", image="back").settings["image_col"] == "back"
    put(tmp_path, **{"b.csv": "url,path,title\nhttps://a.test/1,2.jpg,a dog\n"})
    assert look(tmp_path / "b.csv").uses == "ingest.url_list"  # links come first


def test_a_uri_of_no_known_kind_is_refused(tmp_path):
    assert "give a path, or a URI of file, s3" in str(refused("foo://bucket/data"))


@pytest.mark.parametrize(
    ("table", "rows", "pictures"),
    [
        ("captions.txt", "image,caption\na/1.jpg,a dog\na/2.jpg,a cat\n", None),
        ("metadata.csv", "filename;prompt\n1.jpg;a dog\n2.jpg;a cat\n", "a"),
        ("a/labels.csv", "filename,label\n1.jpg,a dog\n2.jpg,a cat\n", None),
        ("a/b/labels.tsv", "name\tlabel\na/1.jpg\ta dog\na/2.jpg\ta cat\n", ""),
        ("it.json", json.dumps([{"img": f"{i}.jpg", "text": "a dog"} for i in (1, 2)]), "a"),
        ("it.json", json.dumps({"1.jpg": "a dog", "2.jpg": ["a cat", "a red cat"]}), "a"),
        ("a/it.json", json.dumps({"images": [{"path": "1.jpg", "text": "a dog"}]}, indent=1), None),
    ],
)
def test_a_table_beside_pictures_names_them_in_any_column(table, rows, pictures, tmp_path):
    put(tmp_path, **{"a/1.jpg": "", "a/2.jpg": "", table: rows})
    found = look(tmp_path)
    assert (found.uses, found.path) == ("ingest.table", f"{tmp_path}/{table}")
    there = None if pictures is None else str(tmp_path / pictures)
    assert found.settings.get("pictures") == there
    assert set(found.columns) == {"image", "caption"}


def test_two_of_cocos_tables_are_a_question_and_one_with_its_pictures_is_taken(tmp_path):
    for part in ("train", "val"):
        links = {"coco_url": "http://a.test/1.jpg", "flickr_url": "http://a.test/1.jpg"}
        image = {"id": 1, "file_name": "1.jpg", **links}
        coco = {"images": [image], "annotations": [{"image_id": 1, "caption": "a dog"}]}
        put(tmp_path, **{f"{part}/1.jpg": "", f"notes/{part}.json": json.dumps(coco)})
    error = refused(tmp_path, UnsureError)
    assert list(error.candidates) == [f"{tmp_path}/notes/{part}.json" for part in ("train", "val")]
    found = look_at(f"{tmp_path}/notes/val.json", {}, f"{tmp_path}/val")
    assert found.settings["image_col"] == "file_name"


def test_a_table_beside_pictures_that_names_others_is_a_question(tmp_path):
    put(tmp_path, **{"1.jpg": "", "captions.txt": "image,caption\n2.jpg,a dog\n"})
    assert "is read where one of its columns has the paths" in str(refused(tmp_path, UnsureError))
    put(tmp_path, **{"captions.txt": "image,caption\n1.jpg,a dog\n", "more.csv": "a,b\n1.jpg,a\n"})
    error = refused(tmp_path, UnsureError)
    assert list(error.candidates) == [f"{tmp_path}/captions.txt", f"{tmp_path}/more.csv"]
    assert f"{tmp_path}/captions.txt --pictures {tmp_path}  or  " in str(error)


def test_pictures_may_start_elsewhere_and_only_of_a_table_of_paths(tmp_path):
    put(tmp_path, **{"a.csv": "image,caption\n2.jpg,a dog\n", "b.csv": ROWS})
    assert look_at(f"{tmp_path}/a.csv", {}, "/data").settings["pictures"] == "/data"
    with pytest.raises(RecipeError, match="--pictures, and CSV of links and captions"):
        look_at(f"{tmp_path}/b.csv", {}, "/data")


def test_of_a_database_with_several_tables_one_is_asked_for(tmp_path):
    with closing(sqlite3.connect(tmp_path / "it.db")) as connection, connection:
        for name in ("pairs", "users"):
            connection.execute(f"CREATE TABLE {name} (url, caption)")
            connection.execute(f"INSERT INTO {name} VALUES ('https://a.test/1', 'a dog')")
    error = refused(tmp_path, UnsureError)
    assert (error.ask, list(error.candidates)) == ("table", ["pairs", "users"])
    found = look_at(str(tmp_path), {}, table="users")
    assert found.what == "database with links and captions"
    assert found.settings["table"] == "users"
    with pytest.raises(RecipeError, match="no table 'none'"):
        look_at(str(tmp_path), {}, table="none")
    put(tmp_path / "b", **{"a.csv": ROWS})
    with pytest.raises(RecipeError, match="--table, and CSV"):
        look_at(f"{tmp_path}/b", {}, table="users")


def test_what_save_to_disk_wrote_is_read_without_its_cache(tmp_path):
    table = pa.table({"url": ["https://a.test/1"], "text": ["a dog"]})
    for name in ("train/data-00000", "test/data-00000", "test/cache-1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with pa.ipc.new_stream(str(tmp_path / f"{name}.arrow"), table.schema) as sink:
            sink.write_table(table)
        put(tmp_path / name.partition("/")[0], **{"state.json": "{}", "dataset_info.json": "{}"})
    put(tmp_path, **{"dataset_dict.json": "{}"})
    found = look(tmp_path)
    assert (found.path, found.rows) == (f"{tmp_path}/**/data-*.arrow", 2)
    assert found.notes[0].startswith("splits test, train are read as one")


def test_folders_that_are_classes_are_told_and_taken(tmp_path):
    put(tmp_path, **{"train/tabby_cat/1.jpg": "", "train/dog/1.jpg": ""})
    assert '--caption "a photo of a {class}"' in look(tmp_path).notes[1]
    found = look(tmp_path, caption="a photo of a {class}")
    assert found.settings == {"caption": "a photo of a {class}", "shard_rows": 100}
    assert found.has_captions


def test_an_empty_folder_is_not_nothing(tmp_path):
    (tmp_path / "it").mkdir()
    assert "an empty folder" in str(refused(tmp_path / "it"))


def test_a_column_that_is_asked_for_of_pictures_is_refused(tmp_path):
    put(tmp_path, **{"1.jpg": "", "1.txt": "a"})
    with pytest.raises(RecipeError, match="pictures have no columns"):
        look(tmp_path, caption="text")


@pytest.mark.parametrize(
    ("role", "column", "said"),
    [
        ("image", "title", "'title' holds no pictures: a red shoe"),
        ("image", "link", "'link' holds links: https://a.test/1"),
        ("url", "title", "'title' holds no links: a red shoe"),
    ],
)
def test_an_answer_that_holds_something_else_is_told_what(role, column, said, tmp_path):
    put(tmp_path, **{"a.csv": "link,title\nhttps://a.test/1,a red shoe\n"})
    with pytest.raises(RecipeError) as error:
        look(tmp_path / "a.csv", **{role: column})
    found, where, do = error.value.args
    assert (found, where) == (said, f"--{role}, {tmp_path}/a.csv")
    assert ("--url link" in do) is (column == "link")


def test_a_run_below_the_data_is_no_part_of_them(tmp_path):
    rows = {"run/run.json": "{}", "run/recipes/1.json": "{}", "run/stages/a/0.json": "{}"}
    put(tmp_path, **{"1.jpg": b"", "1.txt": "a red shoe", "run.yaml": "", **rows})
    assert look(tmp_path).rows == 1
    assert [file.name for file in files_of(str(tmp_path))] == ["1.jpg", "1.txt", "run.yaml"]
    assert [file.name for file in files_of(str(tmp_path / "run/stages"))] == ["a/0.json"]


def test_a_name_may_hold_a_line_end_and_one_that_is_no_utf_8_is_said(tmp_path):
    put(tmp_path, **{"a\nb.jpg": b"", "t.csv": "id,title\n1,a red shoe\n"})
    assert "a\nb.jpg" in [file.name for file in files_of(str(tmp_path))]
    (tmp_path / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"")
    assert "bad\\xff.jpg" in str(refused(tmp_path))
    assert "no column of links" in str(refused(tmp_path / "t.csv"))


def test_letters_of_neither_utf_8_nor_windows_are_said(tmp_path):
    rows = "url,text\n" + "https://a.test/1.jpg,赤い三角形の絵です\n" * 3
    (tmp_path / "a.csv").write_bytes(rows.encode("shift_jis"))
    assert "save it as UTF-8" in str(refused(tmp_path / "a.csv"))
