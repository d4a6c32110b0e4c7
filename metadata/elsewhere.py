"""Reads what `fsspec` reaches: https:// files, hf://datasets/…, and all that it knows beside."""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import fs

from clipmill.metadata.keys import redacted
from clipmill.metadata.scratch import scratch_folder

WEB = ("http://", "https://")
# URIs that pyarrow opens by itself.
NATIVE = tuple(f"{kind}://" for kind in ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs"))
NATIVE += ("viewfs://", "mock://")


class UriError(FileNotFoundError):
    """A URI that cannot be opened; its message holds no keys. `package` is what it needs."""

    def __init__(self, message: str, package: str = "") -> None:
        super().__init__(message)
        self.package = package


def opened(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system and path of a URI."""
    try:
        filesystem, path = fs.FileSystem.from_uri(f"fsspec+{uri}")
    except ImportError as error:
        is_hub = uri.startswith("hf://") and "`fsspec`" not in str(error)  # Arrow's own words
        name = error.name or ("huggingface_hub" if is_hub else "fsspec")
        name = name.partition(".")[0]
        message = f"cannot open {redacted(uri)}: the package '{name}' is not installed"
        raise UriError(message, name) from None
    except ValueError as error:
        raise UriError(f"cannot open {redacted(uri)}: {error}") from None
    return fs.PyFileSystem(Elsewhere(filesystem.handler.fs)), path


@contextmanager
def as_os_errors(path: str) -> Iterator[None]:
    """Turns what a client raises into an OSError: each has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{path.partition('?')[0]}: {str(error) or repr(error)}") from error


class Elsewhere(fs.FSSpecHandler):  # type: ignore[misc]  # pyarrow ships no types
    """Files that are read through `fsspec`."""

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        with as_os_errors(paths[0] if paths else ""):
            return list(super().get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        with as_os_errors(selector.base_dir):
            return list(super().get_file_info_selector(selector))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Opens a file to be read once, from its start: of the web in one request."""
        options = {"block_size": 0} if path.startswith(WEB) else {}
        with as_os_errors(path):
            return pa.PythonFile(Reader(self.fs.open(path, "rb", **options), path), "r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Opens a file for random access; a copy where a server gives no parts of it."""
        with as_os_errors(path):
            file = self.fs.open(path, "rb")
            if path.startswith(WEB) and not gives_parts(file):
                file = self.copied(path)
            return pa.PythonFile(Reader(file, path), "r")

    def copied(self, path: str) -> Any:
        """Opens a copy on scratch disk, made once while the server states the same of the file."""
        info = self.fs.info(path)
        stated = [path, *(info.get(name) for name in ("size", "ETag", "Last-Modified"))]
        place = scratch_folder() / hashlib.sha256(repr(stated).encode()).hexdigest()
        if not place.exists():
            part = place.with_suffix(f".{os.urandom(4).hex()}")
            with self.fs.open(path, "rb", block_size=0) as source, part.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            part.replace(place)
        return place.open("rb")


def gives_parts(file: Any) -> bool:
    """Returns whether a file of the web can be entered midway."""
    try:
        file.seek(-1, io.SEEK_END)
        file.read(1)
        file.seek(0)
    except (ValueError, TypeError, AttributeError):  # a stream, an unknown size, no ranges
        return False
    return True


class Reader(io.RawIOBase):
    """A file whose errors are OSErrors."""

    def __init__(self, source: Any, path: str) -> None:
        self.source, self.path = source, path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self.source.seekable())

    def readinto(self, buffer: Any) -> int:
        with as_os_errors(self.path):
            block = self.source.read(len(buffer))
            buffer[: len(block)] = block
            return len(block)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with as_os_errors(self.path):
            return int(self.source.seek(offset, whence))

    def tell(self) -> int:
        return int(self.source.tell())

    def close(self) -> None:
        self.source.close()
        super().close()
