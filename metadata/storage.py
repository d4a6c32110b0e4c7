"""Storage: folders on any file system of pyarrow.fs; an object is whole or missing.

Local objects are written beside their place under a hidden name, then renamed. In an object store
they are written to scratch disk, then uploaded; an upload shows when it is complete. Nothing is
fsynced: a killed process loses nothing; after a power cut a record may disagree with its data's
size, which the scan notices.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from clipmill.metadata import archives, elsewhere
from clipmill.metadata.elsewhere import UriError
from clipmill.metadata.faults import reached
from clipmill.metadata.keys import redacted, split_options
from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.scratch import scratch_folder

T = TypeVar("T")

HIDDEN = ".tmp-"  # prefix of local objects that are being written
BLOCK_BYTES = 8 << 20
COPIED_BYTES = 5 << 30  # largest object that S3 copies by itself
KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: no run stores the keys of its URIs"
RETRY_S = (0.1, 0.3, 1.0, 3.0)  # waits: a store that fails is asked five times


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing."""

    name: str
    size: int
    mtime_ns: int


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system and path of a URI or a plain local path.

    Keys of an object store come from the environment, or as `s3://KEY:SECRET@bucket/path`. The path
    of a zip is a folder of its files.
    """
    if parts := archives.split(uri):
        filesystem, path = _open_uri(parts[0])
        try:
            if inside := archives.opened(parts[0], filesystem, path):
                return inside, parts[1]
        except OSError as error:
            raise UriError(f"cannot open {redacted(uri)}: {error}") from None
    return _open_uri(uri)


def _open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    whole = uri
    if not uri.startswith(elsewhere.NATIVE):
        return elsewhere.opened(uri)
    if uri.startswith("s3://"):  # one request for a small object, not three of a multipart upload
        whole += ("&" if "?" in uri else "?") + "allow_delayed_open=true"
    try:
        filesystem, path = fs.FileSystem.from_uri(whole)
    except (ValueError, NotImplementedError) as error:
        message = str(error).replace(whole, redacted(uri))
        raise UriError(f"cannot open {redacted(uri)}: {message}") from None  # its text has the keys
    return filesystem, path


class Storage:
    """A folder. Picklable: workers open it again from its URI."""

    def __init__(self, uri: str) -> None:
        self.uri = uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))
        self.fs, self.path = open_uri(uri)
        self.is_local = isinstance(self.fs, fs.LocalFileSystem)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.uri,)

    def __str__(self) -> str:
        return redacted(self.uri)

    def child(self, name: str) -> "Storage":
        """Returns the folder of this name below."""
        if "://" not in self.uri:
            return Storage(f"{self.uri}/{name}")
        parts = urlsplit(self.uri)
        below = f"{parts.path.rstrip('/')}/{quote(name)}"
        return Storage(urlunsplit((parts.scheme, parts.netloc, below, parts.query, "")))

    def locate(self, name: str) -> str:
        """Returns an object's path for self.fs."""
        if not self.path.startswith(elsewhere.WEB):
            return f"{self.path}/{name}"
        head, mark, query = self.path.partition("?")  # a token, perhaps
        return f"{head}/{name}{mark}{query}"

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yields a local file to write; `commit` stores it under a name, else it is removed.

        In a local folder it lies there, so that the rename is atomic.
        """
        if self.is_local:
            folder = os.path.dirname(self.locate(name))
            if not os.path.isdir(folder):  # faster, as most are there
                os.makedirs(folder, exist_ok=True)
            path = Path(f"{folder}/{HIDDEN}{uuid.uuid4().hex}")
        else:
            handle, text = tempfile.mkstemp(dir=scratch_folder())
            os.close(handle)
            path = Path(text)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def commit(self, path: Path, name: str, point: str = "rename") -> None:
        """Puts a scratch file under its name: whole, or not at all."""
        reached("write", name)
        if self.is_local:
            target = self.locate(name)
            try:
                os.replace(path, target)
            except FileNotFoundError:  # another process removed the folder
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.replace(path, target)
        else:
            self._retried(lambda: self._upload(path, name))
        reached(point, name)

    def put(self, name: str, data: bytes, point: str) -> None:
        """Stores bytes under a name: whole, or not at all."""
        with self.scratch(name) as path:
            path.write_bytes(data)
            self.commit(path, name, point)

    def put_file(self, name: str, path: Path, point: str) -> None:
        """Moves a local file to a name: whole, or not at all."""
        with self.scratch(name) as stored:
            shutil.move(path, stored)  # scratch may be another disk
            self.commit(stored, name, point)

    def put_copy(self, name: str, source: "Storage", source_name: str) -> None:
        """Copies an object from a folder of the same file system: whole, or not at all.

        Local disks make a hard link where they can. An object store copies objects up to
        COPIED_BYTES by itself; larger ones are downloaded and uploaded.
        """
        if self.is_local:
            with self.scratch(name) as stored:
                try:
                    os.link(source.locate(source_name), stored)
                except OSError:
                    shutil.copyfile(source.locate(source_name), stored)
                self.commit(stored, name)
            return
        info = self.fs.get_file_info(source.locate(source_name))
        if info.size is not None and info.size > COPIED_BYTES:
            with self.scratch(name) as stored:
                self._retried(lambda: source.download(source_name, stored))
                self.commit(stored, name)
            return
        reached("write", name)
        self._retried(lambda: self.fs.copy_file(source.locate(source_name), self.locate(name)))
        reached("rename", name)

    def read(self, name: str) -> bytes:
        """Returns the bytes of an object."""

        def get() -> bytes:
            with self.fs.open_input_file(self.locate(name)) as file:
                return bytes(file.read())

        if self.is_local:
            return Path(self.locate(name)).read_bytes()
        return self._retried(get)

    def read_if_there(self, name: str) -> bytes | None:
        """Returns the bytes of an object, or None if it is missing."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def has(self, name: str) -> bool:
        """Returns whether an object or folder has that name."""
        path = self.locate(name)
        return bool(self._retried(lambda: self.fs.get_file_info(path)).type != fs.FileType.NotFound)

    def read_json(self, name: str, kind: type[T]) -> T | None:
        """Reads a JSON object as a `kind`; None if it is missing, torn or something else.

        All of these are made again. For a folder in its place, too, the answer is None: the later
        write names the folder to delete.
        """
        try:
            return msgspec.convert(json.loads(self.read(name)), kind)
        except (FileNotFoundError, IsADirectoryError, *PARSE_ERRORS):
            return None

    def sha256(self, name: str) -> str:
        """Returns the digest of an object, read in blocks; FileNotFoundError if it is missing."""
        total = hashlib.sha256()
        with self.open(name) as source:
            while block := source.read_buffer(BLOCK_BYTES):
                total.update(block)
        return total.hexdigest()

    def open(self, name: str) -> pa.NativeFile:
        """Opens an object for random access."""
        return self._retried(lambda: self.fs.open_input_file(self.locate(name)))

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Reads `size` bytes of an object from an offset; fewer at its end."""

        def get() -> bytes:
            with self.fs.open_input_file(self.locate(name)) as file:
                return bytes(file.read_at(min(size, max(0, file.size() - offset)), offset))

        return self._retried(get)

    def read_opened(self, file: pa.NativeFile, offset: int, size: int) -> bytes:
        """Reads `size` bytes of an opened object in one request; threads may share the file."""
        return self._retried(lambda: bytes(file.read_at(size, offset)))

    def entries(self, folder: str = "", below: bool = False) -> list[Entry]:
        """Lists a folder's objects; with `below`, those of its folders, too, as `data/0.parquet`.

        Empty if there is no folder.
        """
        path = f"{self.path}/{folder}" if folder else self.path
        if self.is_local:
            return _list_local(path, below)
        start = len(path.strip("/"))  # names in a zip have no slash before them
        return [
            Entry(info.path.lstrip("/")[start:].lstrip("/"), info.size, info.mtime_ns)
            for info in self._infos(path, below)
            if info.is_file
        ]

    def listing(self) -> pa.RecordBatch:
        """Lists the objects in this folder as columns: name, size, mtime_ns.

        Unlike scandir, it does not block threads that list other folders.
        """
        files = [info for info in self._infos(self.path) if info.is_file]
        columns = [
            pa.array(map(_name_of, files), pa.string()),
            pa.array((info.size for info in files), pa.int64()),
            pa.array((info.mtime_ns for info in files), pa.int64()),
        ]
        listed = pa.record_batch(columns, ["name", "size", "mtime_ns"])
        return listed.filter(pc.invert(pc.starts_with(listed["name"], HIDDEN)))

    def folders(self, folder: str = "") -> list[str]:
        """Returns the names of the folders in a folder."""
        path = f"{self.path}/{folder}" if folder else self.path
        infos = self._infos(path)
        return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)

    def _infos(self, path: str, below: bool = False) -> list[fs.FileInfo]:
        selector = fs.FileSelector(path, allow_not_found=True, recursive=below)
        return self._retried(lambda: self.fs.get_file_info(selector))

    def delete(self, name: str) -> None:
        """Removes an object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self.is_local:
                os.unlink(self.locate(name))
            else:
                self._retried(lambda: self.fs.delete_file(self.locate(name)))

    def delete_folder(self, name: str) -> None:
        """Removes a folder and all below, if it is there."""
        if self.is_local:
            shutil.rmtree(self.locate(name), ignore_errors=True)
            return
        with contextlib.suppress(FileNotFoundError):
            self._retried(lambda: self.fs.delete_dir(self.locate(name)))

    def sweep(self, besides: Collection[str] = ()) -> None:
        """Removes what killed writers left, not below `besides`. Only a lock's holder may call."""
        for place, folders, names in os.walk(self.path) if self.is_local else ():
            folders[:] = [name for name in folders if f"{place}/{name}" not in besides]
            for name in (name for name in names if name.startswith(HIDDEN)):
                Path(place, name).unlink(missing_ok=True)

    def download(self, name: str, path: Path) -> None:
        """Writes an object to a local file."""
        with self.open(name) as source, open(path, "wb") as sink:
            shutil.copyfileobj(source, sink, BLOCK_BYTES)

    def _upload(self, path: Path, name: str) -> None:
        with open(path, "rb") as source, self.fs.open_output_stream(self.locate(name)) as sink:
            shutil.copyfileobj(source, sink, BLOCK_BYTES)

    def _retried(self, call: Callable[[], T]) -> T:
        """Returns the call's result; retries if a remote store fails for a moment."""
        for wait_s in (*RETRY_S, None):
            try:
                return call()
            except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
                raise
            except OSError as error:
                is_refusal = wants_keys(error) or "NO_SUCH_BUCKET" in str(error)
                if self.is_local or wait_s is None or is_refusal:
                    raise
                time.sleep(wait_s)
        raise AssertionError("unreachable")


def folder_of(uri: str) -> tuple[Storage, str]:
    """Returns the folder of a file, given its URI or path, and the file's name."""
    place, options = split_options(uri)
    folder, slash, name = place.rpartition("/")
    if folder in ("", "file://"):  # of `/a`, the root; of `a`, the current folder
        folder += slash
    return Storage(folder + options), name


def wants_keys(error: OSError) -> bool:
    """Returns whether the store refused for missing or wrong keys."""
    return bool(re.search("ACCESS_DENIED|ACCESS_KEY|InvalidAccessKey|SIGNATURE", str(error)))


def _name_of(info: fs.FileInfo) -> str:
    try:
        return str(info.base_name)
    except UnicodeDecodeError:  # not ours: no object of ours is named so
        return ""


def _list_local(path: str, below: bool, prefix: str = "") -> list[Entry]:
    """Lists by scandir: six times as fast as pyarrow's selector for 20,000 files."""
    listed: list[Entry] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if below and entry.is_dir(follow_symlinks=False):
                listed += _list_local(entry.path, below, f"{name}/")
            elif entry.is_file() and not entry.name.startswith(HIDDEN):
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # deleted since it was listed
                    continue
                listed.append(Entry(name, stat.st_size, stat.st_mtime_ns))
    return listed


def local_path(uri: str) -> Path | None:
    """Returns the path of a local URI; None for others."""
    if "://" not in uri:
        return Path(uri)
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
