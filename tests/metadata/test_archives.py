"""Zips as folders: what is in them, what would lead out of them, and what would fill a machine."""

import io
import stat
import zipfile

import pytest

from clipmill.metadata import archives
from clipmill.metadata.archives import MemberError
from clipmill.metadata.elsewhere import UriError
from clipmill.metadata.globs import files_of
from clipmill.metadata.storage import Storage

HOSTILE = ("../up.jpg", "/root.jpg", "a/../../up.jpg", "C:/a.jpg", "a\\b.jpg", "a//b.jpg")


@pytest.fixture
def packed(tmp_path):
    """A zip of two files in folders, and the path of it."""
    with zipfile.ZipFile(tmp_path / "it.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a/1.jpg", b"one")
        out.writestr("a/b/2.jpg", b"two" * 1000)
        out.writestr("__MACOSX/a/._1.jpg", b"no")
    return tmp_path / "it.zip"


@pytest.mark.parametrize(
    ("below", "names"),
    [
        ("", ["a/1.jpg", "a/b/2.jpg"]),
        ("/", ["a/1.jpg", "a/b/2.jpg"]),
        ("/a", ["1.jpg", "b/2.jpg"]),
        ("/a/*.jpg", ["1.jpg"]),
        ("/**/2*", ["a/b/2.jpg"]),
        ("/a/1.jpg", ["1.jpg"]),
        ("/c", []),
    ],
)
def test_a_zip_is_a_folder(below, names, packed):
    assert [file.name for file in files_of(f"{packed}{below}")] == names
    assert [file.name for file in files_of(f"file://{packed}{below}")] == names


def test_a_storage_lists_the_names_in_a_zip_and_below_a_folder_of_it(packed):
    storage, pictures = Storage(str(packed)), ["1.jpg", "b/2.jpg"]
    every = {"a/1.jpg", "a/b/2.jpg", "__MACOSX/a/._1.jpg"}
    assert {entry.name for entry in storage.entries(below=True)} == every
    assert [entry.name for entry in storage.entries("a", below=True)] == pictures
    assert [entry.name for entry in storage.child("a").entries()] == ["1.jpg"]


def test_members_are_read_at_once_and_in_parts(packed, monkeypatch):
    storage = Storage(str(packed))
    for most in (1 << 20, 100):  # in memory, and on scratch disk
        monkeypatch.setattr(archives, "IN_MEMORY_BYTES", most)
        assert storage.read("a/b/2.jpg") == b"two" * 1000
        assert storage.read_at("a/b/2.jpg", 4, 5) == b"wotwo"
    with storage.fs.open_input_stream("a/b/2.jpg") as stream:
        assert stream.read(4) + stream.read() == b"two" * 1000
    with pytest.raises(FileNotFoundError):
        storage.read("a/3.jpg")
    with pytest.raises(PermissionError, match="only read"):
        storage.put("a/3.jpg", b"", "put")


def test_a_folder_that_is_named_so_is_none_and_a_file_may_be_broken(tmp_path):
    (tmp_path / "it.zip").mkdir()
    (tmp_path / "it.zip" / "1.jpg").write_bytes(b"one")
    assert Storage(f"{tmp_path}/it.zip").read("1.jpg") == b"one"
    (tmp_path / "no.zip").write_bytes(b"PK")
    with pytest.raises(UriError, match=r"no.zip.*not a zip file"):
        Storage(f"{tmp_path}/no.zip")
    with zipfile.ZipFile(tmp_path / "name.zip", "w") as out:
        out.writestr("\u00e9.jpg", b"one")
    data = (tmp_path / "name.zip").read_bytes().replace("\u00e9".encode(), b"\xff\xfe")
    (tmp_path / "name.zip").write_bytes(data)
    with pytest.raises(UriError, match=r"name.zip.*can't decode"):
        Storage(f"{tmp_path}/name.zip")


def test_names_below_a_dot_are_those_of_the_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as out:  # bsdtar -acf it.zip .
        for name in ("./", "./a.jpg", "./b/2.jpg", "./b/.hidden.jpg"):
            out.writestr(name, b"one")
    assert [file.name for file in files_of(f"{tmp_path}/it.zip")] == ["a.jpg", "b/2.jpg"]
    assert [file.name for file in files_of(f"{tmp_path}/it.zip/b")] == ["2.jpg"]
    assert Storage(f"{tmp_path}/it.zip").read("b/2.jpg") == b"one"


def test_names_that_lead_out_and_links_are_not_listed(tmp_path):
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as out:
        for name in (*HOSTILE, link, "good.jpg"):
            out.writestr(name, b"/etc/passwd")
    assert [file.name for file in files_of(f"{tmp_path}/it.zip")] == ["good.jpg"]
    storage = Storage(f"{tmp_path}/it.zip")
    for name in (*HOSTILE, "link.jpg"):
        with pytest.raises(FileNotFoundError):
            storage.read(name)


def test_bombs_and_broken_and_locked_members_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_MAX_BATCH_BYTES", "1000")
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("bomb.jpg", bytes(1 << 20))
        out.writestr("bad.jpg", bytes(range(256)), zipfile.ZIP_STORED)
        out.writestr("lzma.jpg", b"x" * 99, zipfile.ZIP_LZMA)
        out.writestr("locked.jpg", b"x", zipfile.ZIP_STORED)
    data = body.getvalue().replace(bytes(range(256)), bytes(range(1, 256)) + b"\0")
    data = bytearray(data)
    data[data.rindex(b"PK\1\2") + 8] |= 1  # the flag of a password
    start = data.index(b"lzma.jpg") + len("lzma.jpg") + 9  # behind the method's properties
    data[start : start + 5] = b"\xff" * 5
    (tmp_path / "it.zip").write_bytes(data)
    storage = Storage(f"{tmp_path}/it.zip")
    for name, words in (
        ("bomb", "a bomb"),
        ("bad", "CRC"),
        ("lzma", "Corrupt"),
        ("locked", "encrypted"),
    ):
        with pytest.raises(MemberError, match=words):
            storage.read_at(f"{name}.jpg", 0, 10)
