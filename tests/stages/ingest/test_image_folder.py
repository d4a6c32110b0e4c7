"""ImageFolder: order, captions from three places, files that cannot be read."""

import hashlib
import json
import zipfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.uid import uid_of
from clipmill.pipeline.errors import ShardError, StageError
from clipmill.stages.ingest.image_folder import ImageFolder, read


def test_no_link_leads_out_of_the_folder_unless_that_is_allowed(tmp_path, pool_of):
    """A stranger's folder could bring in any file of its reader's."""
    folder, own = tmp_path / "given", tmp_path / "own"
    folder.mkdir()
    own.mkdir()
    for place in (folder, own):
        (place / "a.jpg").write_bytes(b"image")
        (place / "a.txt").write_text("a secret")
    (own / "metadata.csv").write_text("file_name,text\ninside.jpg,a secret\n")
    for name, target in (
        ("file.jpg", own / "a.jpg"),
        ("inside.jpg", folder / "a.jpg"),
        ("inside.txt", own / "a.txt"),
        ("metadata.csv", own / "metadata.csv"),
        ("way", own),
    ):
        (folder / name).symlink_to(target)
    stage = ImageFolder(path=str(folder))
    rows = pool_of(stage)
    assert rows["url"].to_pylist() == ["a.jpg", "file.jpg", "inside.jpg", "way/a.jpg"]
    assert rows["reason"].to_pylist() == [None, "outside", None, "outside"]
    assert rows["image"].to_pylist() == [b"image", None, b"image", None]
    assert rows["text"].to_pylist() == ["a secret", None, None, None]
    rows = pool_of(replace(stage, follow_links=True))
    assert rows["image"].to_pylist() == [b"image"] * 4
    assert rows["text"].to_pylist() == ["a secret", None, "a secret", "a secret"]


def test_metadata_out_of_the_folder_is_not_looked_at(tmp_path, pool_of):
    folder, own = tmp_path / "given", tmp_path / "own.csv"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"image")
    own.write_text("name,phone\nA. Nother,555\n")
    (folder / "metadata.csv").symlink_to(own)
    stage = ImageFolder(path=str(folder))
    assert pool_of(stage)["text"].to_pylist() == stage.head(1)["text"].to_pylist() == [None]
    with pytest.raises(StageError, match="no column 'file_name'"):
        pool_of(replace(stage, follow_links=True))


def test_a_file_name_is_a_path_in_any_spelling(folder, pool_of):
    names = r"./a.JPG", r"b\\10.webp", r"b/../b/2.png"
    lines = [f'{{"file_name": "{name}", "text": "found"}}' for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert set(captions(pool_of(ImageFolder(path=str(folder)))).values()) == {"found"}


@pytest.fixture
def folder(tmp_path):
    files = {
        "b/2.png": b"two",
        "b/2.txt": b" two's caption\n",
        "a.JPG": b"a",
        "b/10.webp": b"ten",
        ".hidden.jpg": b"no",
        "notes.md": b"no",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def captions(rows) -> dict:
    return dict(zip(rows["url"].to_pylist(), rows["text"].to_pylist(), strict=True))


@pytest.mark.parametrize("shard_rows", [1, 2, 100])
def test_images_come_by_name_with_the_caption_beside_them(folder, pool_of, shard_rows):
    rows = pool_of(ImageFolder(path=str(folder), shard_rows=shard_rows))
    urls, texts = ["a.JPG", "b/10.webp", "b/2.png"], [None, None, "two's caption"]
    assert rows.to_pydict() == {
        "uid": list(map(uid_of, urls, texts)),
        "url": urls,
        "text": texts,
        "image": [b"a", b"ten", b"two"],
        "image_bytes": [1, 3, 3],
        "sha256": [hashlib.sha256(data).hexdigest() for data in (b"a", b"ten", b"two")],
        "reason": [None] * 3,
    }


@pytest.mark.parametrize("shard_rows", [1, 100])
def test_the_nearest_metadata_file_tells_the_caption(folder, pool_of, shard_rows):
    lines = [{"file_name": "a.JPG", "text": "far"}, {"file_name": "b/2.png", "text": "far"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "b" / "metadata.csv").write_text(f'text,file_name\n"near, {"x" * 200_000}",2.png\n')
    rows = pool_of(ImageFolder(path=str(folder), shard_rows=shard_rows))
    assert captions(rows) == {
        "a.JPG": "far",
        "b/10.webp": None,
        "b/2.png": "near, " + "x" * 200_000,
    }


def test_captions_need_not_match_a_glob_of_images(folder, pool_of):
    rows = pool_of(ImageFolder(path=f"{folder}/b/*.png"))
    assert captions(rows) == {"2.png": "two's caption"}


@pytest.mark.parametrize("form", ["{name}.{folder}.txt", "{name}.d/../{name}.{folder}.txt"])
def test_names_of_caption_files_have_any_number_of_places(form, folder, pool_of):
    (folder / "b" / "2.b.txt").write_text("of the folder's name")
    rows = pool_of(ImageFolder(path=str(folder), caption_files=form))
    assert captions(rows)["b/2.png"] == "of the folder's name"


def test_what_cannot_be_read_is_null_with_a_reason(folder, run):
    (folder / "b" / "2.txt").write_bytes(b"\xff")
    (folder / "c.png").write_bytes(b"large")
    stage = ImageFolder(path=str(folder), max_image_bytes=4)
    ctx = run(stage)
    assert ctx.shards[0]["reason"].to_pylist() == [None, None, "bad_caption", "too_large"]
    assert ctx.shards[0]["image"].to_pylist() == [b"a", b"ten", b"two", None]


def test_a_caption_above_the_limit_is_not_read(tmp_path, pool_of):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"image")
    (tmp_path / "a.txt").write_text("short")
    with (tmp_path / "b.txt").open("wb") as file:
        file.truncate(40 << 30)
    rows = pool_of(ImageFolder(path=str(tmp_path), max_caption_bytes=5))
    assert rows["text"].to_pylist() == ["short", None]
    assert rows["reason"].to_pylist() == [None, "bad_caption"]


def test_an_image_that_is_gone_since_the_listing_is_unreadable(folder, run):
    stage = ImageFolder(path=str(folder))
    (source,) = run(stage).sources
    (folder / "a.JPG").unlink()
    (rows,) = read(stage, source, task=None)  # type: ignore[arg-type]  # it needs none
    assert rows["reason"].to_pylist() == ["unreadable", None, None]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("metadata.jsonl", '{"file_name": "a.JPG", "text": "a"}\n{"file'),
        ("metadata.csv", "file_name,text\na.JPG,c,c\n"),
        ("metadata.parquet", "no Parquet"),
    ],
)
def test_a_broken_metadata_file_fails_the_shards_it_speaks_of_by_name(folder, run, name, data):
    (folder / "b" / name).write_text(data)
    shards = run(ImageFolder(path=str(folder), shard_rows=1)).shards
    assert [isinstance(shard, ShardError) for shard in shards] == [False, True, True]
    assert name in shards[1].args[1]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_hugging_face_metadata_of_each_split_has_captions_under_any_name(folder, pool_of, kind):
    (folder / "train").mkdir()
    (folder / "train" / "3.jpg").write_bytes(b"three")
    rows = {"train": [("3.jpg", "three")], "b": [("2.png", "two"), ("10.webp", None)]}
    for split, pairs in rows.items():
        path = folder / split / f"metadata.{kind}"
        table = pa.table({"file_name": [n for n, _ in pairs], "prompt": [t for _, t in pairs]})
        if kind == "parquet":
            pq.write_table(table, path)
        elif kind == "csv":
            pacsv.write_csv(table, path)
        else:
            path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    stage = ImageFolder(path=str(folder), caption_col="prompt")
    found = {"a.JPG": None, "b/10.webp": None, "b/2.png": "two", "train/3.jpg": "three"}
    assert captions(pool_of(stage)) == found
    assert stage.head(2)["url"].to_pylist() == ["a.JPG", "b/10.webp"]
    beside = ImageFolder(path=str(folder), caption_col=None)
    assert captions(pool_of(beside))["b/2.png"] == "two's caption"


def test_of_a_list_of_captions_the_first_that_is_not_empty_is_taken(folder, pool_of):
    lines = [{"file_name": "a.JPG", "text": ["", "a", "b"]}, {"file_name": "b/2.png", "text": []}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert captions(pool_of(ImageFolder(path=str(folder))))["a.JPG"] == "a"


@pytest.mark.parametrize(
    ("name", "data", "found", "do"),
    [
        ("metadata.csv", "file_name,caption\na.JPG,c\n", "no column 'text'",
         "did you mean `caption_col: caption`?"),
        ("metadata.jsonl", '{"file_name": "a.JPG", "label": 3}\n', "the file has file_name, label",
         "`caption_col` how the file names it, or null"),
        ("metadata.csv", "image,text\na.JPG,c\n", "no column 'file_name'", "as `file_name`"),
    ],
)  # fmt: skip
def test_metadata_without_the_captions_stops_the_stage_with_what_to_write(
    folder, run, name, data, found, do
):
    (folder / name).write_text(data)
    for read_all in (run, lambda stage: stage.head(1)):
        with pytest.raises(StageError) as error:
            read_all(ImageFolder(path=str(folder)))
        assert found in error.value.args[0]
        assert error.value.args[1] == str(folder / name)
        assert do in error.value.args[2]


@pytest.mark.parametrize("name", ["b/2.png", "b/2.txt", "metadata.jsonl"])
def test_a_changed_file_changes_the_digest_of_its_shard(folder, run, name):
    (folder / "metadata.jsonl").write_text("")
    before = run(ImageFolder(path=str(folder), shard_rows=2)).sources
    (folder / name).write_text('{"file_name": "other", "text": "t"}')
    after = run(ImageFolder(path=str(folder), shard_rows=2)).sources
    assert before[1]["digest"] != after[1]["digest"]
    assert (before[0]["digest"] != after[0]["digest"]) == (name == "metadata.jsonl")


def test_a_folder_without_images_stops_the_stage(tmp_path, run):
    with pytest.raises(StageError, match="no file"):
        run(ImageFolder(path=str(tmp_path)))


def test_a_byte_order_mark_is_no_letter_of_a_caption(folder, pool_of):
    (folder / "a.txt").write_bytes("\ufeff one\n".encode())
    (folder / "b" / "metadata.jsonl").write_text(
        "".join(
            json.dumps({"file_name": name, "text": "\ufefftwo"}) + "\n"
            for name in ("2.png", "10.webp")
        ),
        encoding="utf-8-sig",
    )
    rows = pool_of(ImageFolder(path=str(folder)))
    assert captions(rows) == {"a.JPG": "one", "b/10.webp": "two", "b/2.png": "two"}


def test_a_caption_that_cannot_be_read_is_bad_and_no_empty_one(tmp_path, pool_of):
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as out:
        out.writestr("a/1.jpg", b"image")
        out.writestr("a/1.json", '{"says": "one"}')
    whole = (tmp_path / "it.zip").read_bytes()
    (tmp_path / "it.zip").write_bytes(whole.replace(b"one", b"two"))  # its checksum is another's
    stage = ImageFolder(path=f"{tmp_path}/it.zip", caption_files="{name}.json", caption="a {class}")
    for reads in (stage, replace(stage, caption_key="says")):
        rows = pool_of(reads)
        assert rows["image"].to_pylist() == [b"image"]
        assert (rows["text"][0].as_py(), rows["reason"][0].as_py()) == (None, "bad_caption")


@pytest.mark.parametrize("all_captions", [False, True])
def test_a_json_without_a_caption_leaves_it_to_the_template_and_a_broken_one_is_bad(
    all_captions, tmp_path, pool_of
):
    (tmp_path / "b").mkdir()
    for name, data in (("1", '{"says": "on'), ("2", '{"says": [""]}'), ("3", "{}")):
        (tmp_path / "b" / f"{name}.json").write_text(data)
        (tmp_path / "b" / f"{name}.png").write_bytes(b"image")
    stage = ImageFolder(path=str(tmp_path), caption_files="{name}.json", caption_key="says")
    rows = pool_of(replace(stage, caption="a {class}", all_captions=all_captions))
    assert rows["text"].to_pylist() == [None, "a b", "a b"]
    assert rows["reason"].to_pylist() == ["bad_caption", None, None]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_lists_of_captions_at_a_dotted_path_are_kept_whole(kind, folder, pool_of):
    table = [{"file_name": "a.JPG", "says": {"en": ["one", "two"]}},
             {"file_name": "b/2.png", "says": {"en": [""]}}]  # fmt: skip
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), folder / "metadata.parquet")
    else:
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)))
    stage = ImageFolder(path=str(folder), caption_col="says.en", all_captions=True)
    rows = pool_of(stage)
    assert captions(rows) == {"a.JPG": "one", "b/10.webp": None, "b/2.png": "two's caption"}
    assert [row and [text["text"] for text in row] for row in rows["captions"].to_pylist()] == [
        *(["two"], None, None)
    ]
    assert captions(pool_of(replace(stage, all_captions=False)))["a.JPG"] == "one"
    with pytest.raises(StageError, match=r"no column 'says\.de'"):
        pool_of(replace(stage, caption_col="says.de"))


def test_a_folders_name_makes_the_caption_of_a_picture_without_one(folder, pool_of):
    (folder / "tabby_cat").mkdir()
    (folder / "tabby_cat" / "1.png").write_bytes(b"one")
    rows = pool_of(ImageFolder(path=str(folder), caption="a photo of a {class}"))
    assert captions(rows) == {
        "a.JPG": None,
        "b/10.webp": "a photo of a b",
        "b/2.png": "two's caption",
        "tabby_cat/1.png": "a photo of a tabby cat",
    }
