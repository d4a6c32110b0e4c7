"""A folder of whole objects on a local disk; on an object store: tests/chaos/test_s3.py."""

import os
import pickle
from contextlib import nullcontext

import pytest

from clipmill.metadata import storage
from clipmill.metadata.elsewhere import UriError
from clipmill.metadata.globs import open_pool
from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import Storage, folder_of, local_path

SECRET = "s3://KEY:SECRET@bucket/run?endpoint_override=127.0.0.1:1&scheme=http"


@pytest.fixture
def folder(tmp_path) -> Storage:
    return Storage(str(tmp_path / "folder"))


def test_what_is_put_is_read_back(folder):
    folder.put("a/b.json", b"[1]", point="rename")
    assert folder.read("a/b.json") == b"[1]"
    assert folder.read_json("a/b.json", list[int]) == [1]
    assert folder.open("a/b.json").read() == b"[1]"


def test_what_is_not_there_is_none_or_an_error(folder):
    assert folder.read_if_there("none") is None
    assert folder.read_json("none", dict[str, int]) is None
    with pytest.raises(FileNotFoundError):
        folder.read("none")
    folder.delete("none")
    folder.delete_folder("none")


def test_json_that_is_torn_or_of_another_kind_is_none(folder):
    for held in (b"", b'{"a": ', b"\xff\xfe", b"null", b"[1]", b'{"a": "1"}', b'{"a": 1.5}'):
        folder.put("it.json", held, point="rename")
        assert folder.read_json("it.json", dict[str, int]) is None
    folder.put("folder.json/a", b"", point="rename")
    assert folder.read_json("folder.json", dict[str, int]) is None
    assert folder.has("folder.json")
    assert not folder.has("none")


def test_a_listing_names_objects_and_folders_apart_and_goes_no_deeper(folder):
    for name in ("b", "a", "x/c", "x/y/d"):
        folder.put(name, name.encode(), point="rename")
    assert sorted((entry.name, entry.size) for entry in folder.entries()) == [("a", 1), ("b", 1)]
    assert [entry.name for entry in folder.entries("x")] == ["c"]
    assert folder.folders() == ["x"]
    assert folder.folders("x") == ["y"]
    assert folder.entries("none") == []
    assert folder.folders("none") == []


def test_a_file_that_is_deleted_during_a_listing_hides_no_other(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).touch()
    scandir = os.scandir

    def deleting(path):
        entries = list(scandir(path))
        (tmp_path / "b").unlink()
        return nullcontext(entries)

    monkeypatch.setattr(os, "scandir", deleting)
    assert {entry.name for entry in Storage(str(tmp_path)).entries()} == {"a", "c"}


def test_the_folder_of_a_file_keeps_the_options_of_its_uri_and_may_be_the_root():
    folder, name = folder_of("s3://bucket/a/b.parquet?endpoint_override=http://127.0.0.1:9")
    assert (folder.path, name) == ("bucket/a", "b.parquet")
    assert folder.uri.endswith("?endpoint_override=http://127.0.0.1:9")
    assert [(folder_of(uri)[0].path, folder_of(uri)[1]) for uri in ("/a", "file:///a", "a")] == [
        ("/", "a"),
        ("/", "a"),
        (os.getcwd(), "a"),
    ]
    assert [open_pool(glob)[0].path for glob in ("/*.parquet", "*.parquet")] == ["/", os.getcwd()]


@pytest.mark.parametrize("is_local", [True, False])
def test_a_listing_goes_below_where_it_is_asked_to(folder, is_local):
    folder.put("a.json", b"1", point="put")
    folder.put("data/b.parquet", b"22", point="put")
    folder.put("data/more/c.parquet", b"333", point="put")
    folder.is_local = is_local  # as an object store is listed
    found = {entry.name: entry.size for entry in folder.entries(below=True)}
    assert found == {"a.json": 1, "data/b.parquet": 2, "data/more/c.parquet": 3}
    assert [entry.name for entry in folder.entries("data")] == ["b.parquet"]
    assert {entry.name for entry in folder.entries("data", below=True)} == {
        "b.parquet",
        "more/c.parquet",
    }
    assert folder.entries("nowhere", below=True) == []


def test_a_writer_that_fails_leaves_nothing(folder):
    def fail(path):
        path.write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), folder.scratch("a") as path:
        fail(path)
    assert folder.read_if_there("a") is None
    assert list((folder_path(folder)).iterdir()) == []


def test_what_a_dead_writer_left_is_not_listed_and_swept_at_any_depth(folder):
    folder.put("a/b", b"1", point="rename")
    for place in (folder_path(folder), folder_path(folder) / "a"):
        (place / ".tmp-1").write_bytes(b"half")
    assert folder.entries() == []
    assert [entry.name for entry in folder.entries("a")] == ["b"]
    folder.sweep()
    assert sorted(path.name for path in folder_path(folder).rglob("*")) == ["a", "b"]


def test_an_object_is_replaced_as_a_whole(folder):
    folder.put("a", b"long and old", point="rename")
    with folder.open("a") as reader:
        folder.put("a", b"new", point="rename")
        assert reader.read() == b"long and old"
    assert folder.read("a") == b"new"


def test_a_child_lies_below(folder):
    folder.child("a").child("b").put("c", b"1", point="rename")
    assert folder.read("a/b/c") == b"1"


def test_a_storage_survives_pickling(folder):
    folder.put("a", b"1", point="rename")
    assert pickle.loads(pickle.dumps(folder)).read("a") == b"1"


def test_keys_are_never_shown():
    assert redacted(SECRET) == "s3://bucket/run"
    assert redacted("s3://KEY:SEC/RET+@bucket/run") == "s3://bucket/run"
    assert redacted("s3://bucket/a@b/run?x=SECRET") == "s3://bucket/a@b/run"
    folder = Storage(SECRET)
    for said in (str(folder), repr(folder), str(folder.child("stages")), f"{folder}"):
        assert "SECRET" not in said
        assert "KEY" not in said


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:SECRET@bucket/run?no_such_option=1",
        "s3://KEY:SEC RET@bucket/run",
        "nofs://KEY:SECRET@bucket/run",
    ],
)
def test_a_uri_that_cannot_be_opened_is_said_without_its_keys(uri):
    with pytest.raises(UriError, match="bucket/run") as refused:
        Storage(uri)
    assert "SEC" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_a_store_that_fails_for_a_moment_is_asked_again_and_one_that_refuses_is_not(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_S", (0.0, 0.0))
    asked = []

    def answer(*errors: Exception | None):
        asked.append(errors)
        error = errors[min(len(asked), len(errors)) - 1]
        if error is not None:
            raise error
        return "there"

    busy = OSError("AWS Error SLOW_DOWN during PutObject")
    assert Storage(SECRET)._retried(lambda: answer(busy, busy, None)) == "there"
    assert len(asked) == 3
    for error, times in ((busy, 3), (OSError("AWS Error ACCESS_DENIED"), 1), (KeyError(), 1)):
        asked.clear()
        with pytest.raises(type(error)):
            Storage(SECRET)._retried(lambda error=error: answer(error))
        assert len(asked) == times


def test_a_file_uri_is_a_local_folder(tmp_path):
    uri = (tmp_path / "with space").as_uri()
    Storage(uri).put("a", b"1", point="rename")
    assert (tmp_path / "with space" / "a").read_bytes() == b"1"
    assert local_path(uri) == tmp_path / "with space"
    assert local_path("s3://bucket/run") is None
    Storage(uri).child("below").put("b", b"2", point="rename")
    assert (tmp_path / "with space" / "below" / "b").read_bytes() == b"2"


def folder_path(folder: Storage):
    return local_path(folder.uri)
