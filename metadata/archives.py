"""Reads a zip as a folder: `pictures.zip`, or `pictures.zip/train` of it. Nothing is unpacked."""

import io
import lzma
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import fs

from clipmill.metadata.keys import split_options
from clipmill.metadata.limits import limit
from clipmill.metadata.scratch import scratch_folder

IN_MEMORY_BYTES = 64 << 20  # larger members are unpacked to scratch disk while they are read
KEPT = 4  # opened zips
_opened: dict[tuple[str, int | None, int | None], fs.FileSystem] = {}
UNSAFE = re.compile(r"(^|/)\.\.(/|$)|^/|\\|^[A-Za-z]:|//|\0")  # a name that leads out, or nowhere
# RuntimeError: it needs a password, or (a NotImplementedError) a method that Python has not.
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeError, RuntimeError)


def split(uri: str) -> tuple[str, str] | None:
    """Returns the part of a path up to `.zip`, and the rest; None if it names no zip."""
    head, options = split_options(uri)
    found = re.match(r"(.+?\.zip)(?:/(.*))?$", head, re.IGNORECASE)
    return (found[1] + options, (found[2] or "").strip("/")) if found else None


def opened(uri: str, filesystem: fs.FileSystem, path: str) -> fs.FileSystem | None:
    """Returns a zip's files as a file system; None if no file has this path.

    MemberError for a file that is no zip. All readers of a zip share its list of members.
    """
    info = filesystem.get_file_info(path)
    if not info.is_file:
        return None
    key = uri, info.size, info.mtime_ns
    if (files := _opened.get(key)) is None:  # not looked up again: another thread may drop it
        is_local = isinstance(filesystem, fs.LocalFileSystem)
        with as_os_errors(path):
            archive = zipfile.ZipFile(path if is_local else filesystem.open_input_file(path))
        while len(_opened) >= KEPT:
            _opened.pop(next(iter(_opened)), None)
        files = _opened[key] = fs.PyFileSystem(ZipFiles(archive))
    return files


class MemberError(PermissionError):
    """A file that cannot be had of a zip: broken, encrypted, or a bomb. Asking again is no help."""


@contextmanager
def as_os_errors(name: str) -> Iterator[None]:
    """Turns what a broken, encrypted or unknown zip raises into a MemberError."""
    try:
        yield
    except BROKEN as error:
        raise MemberError(f"{name} cannot be read: {error}") from error


class ZipFiles(fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow ships no types
    """The members of a zip. Links, and names that lead out of the zip, are none."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.members = {
            info.filename.removeprefix("./"): info  # as bsdtar writes all names
            for info in archive.infolist()
            if not info.is_dir()
            and not UNSAFE.search(info.filename)
            and not stat.S_ISLNK(info.external_attr >> 16)
        }
        self.folders = {
            name[: match.start()] for name in self.members for match in re.finditer("/", name)
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZipFiles) and other.archive is self.archive

    def get_type_name(self) -> str:
        return "zip"

    def normalize_path(self, path: str) -> str:
        return path.strip("/")

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self.info(path.strip("/")) for path in paths]

    def info(self, path: str) -> fs.FileInfo:
        """Returns size and checksum of a member; the latter as time, for a zip has no other."""
        if member := self.members.get(path):
            size, crc = member.file_size, member.CRC
            return fs.FileInfo(path, fs.FileType.File, size=size, mtime_ns=crc)
        is_folder = not path or path in self.folders
        return fs.FileInfo(path, fs.FileType.Directory if is_folder else fs.FileType.NotFound)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        base = selector.base_dir.strip("/")
        start = f"{base}/" if base else ""
        names = [name for name in (*self.members, *self.folders) if name.startswith(start)]
        if not selector.recursive:
            names = [name for name in names if "/" not in name[len(start) :]]
        if not names and not selector.allow_not_found:
            raise FileNotFoundError(base)
        return [self.info(name) for name in names]

    def open_input_stream(self, path: str) -> pa.NativeFile:
        member = self.member(path)
        with as_os_errors(path):
            return pa.PythonFile(Reader(self.archive.open(member)), "r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Opens a member for random access: in memory, or on scratch disk if it is large."""
        member = self.member(path)
        with as_os_errors(path), self.archive.open(member) as source:
            if member.file_size <= IN_MEMORY_BYTES:
                return pa.PythonFile(io.BytesIO(source.read()), "r")
            file = tempfile.TemporaryFile(dir=scratch_folder())  # noqa: SIM115  # its reader's
            shutil.copyfileobj(source, file, 1 << 20)
            file.seek(0)
            return pa.PythonFile(file, "r")

    def member(self, path: str) -> zipfile.ZipInfo:
        """Returns a member that may be read; MemberError for a bomb."""
        member = self.members.get(path.strip("/"))
        if member is None:
            raise FileNotFoundError(path)
        ratio, most = limit("MAX_ZIP_RATIO"), limit("MAX_BATCH_BYTES")
        if member.file_size > max(most, ratio * member.compress_size):
            found = f"{path} takes over {ratio:,} times its {member.compress_size:,} bytes: a bomb"
            raise MemberError(f"{found}, or raise CLIPMILL_MAX_ZIP_RATIO")
        return member

    def _read_only(self, *_: Any) -> Any:
        raise PermissionError("a zip is only read")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _read_only
    delete_file = move = copy_file = open_output_stream = open_append_stream = _read_only


class Reader(io.RawIOBase):
    """A member that is unpacked as it is read; OSError where it is broken."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with as_os_errors(os.path.basename(self.source.name)):
            return int(self.source.readinto(buffer))
