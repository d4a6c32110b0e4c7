"""The files that a path means: a file, a folder with all below it, or a glob."""

import re
from dataclasses import dataclass

from pyarrow import fs

from clipmill.metadata.storage import Storage


@dataclass(frozen=True)
class FoundFile:
    """A file by its name below the folder that a path opens."""

    name: str
    size: int  # bytes
    mtime_ns: int


def open_pool(path: str) -> tuple[Storage, str]:
    """The folder that names are relative to, and the glob they match.

    `*` stands for any part of a name, `**/` for any folders; without a star, a folder means all
    that lies below it, and a file means itself.
    """
    # Behind a URI's `?` stand options, such as the address of an S3 server.
    head, mark, query = path.partition("?") if "://" in path else (path, "", "")
    head = head.rstrip("/") or "/"
    if "*" in head:
        folder = head[: head.index("*")].rpartition("/")[0]
        pattern = head[len(folder) :].lstrip("/")
    elif _is_file(Storage(head + mark + query)):
        folder, _, pattern = head.rpartition("/")
    else:
        folder, pattern = head, "**"
    return Storage(folder + mark + query), pattern


def files_of(path: str) -> list[FoundFile]:
    """The files of a path by name; those whose name, or a folder's, begins with a dot left out."""
    storage, pattern = open_pool(path)
    wanted = _glob(pattern)
    selector = fs.FileSelector(storage.path, recursive=True, allow_not_found=True)
    found = (
        FoundFile(info.path[len(storage.path) :].lstrip("/"), info.size, info.mtime_ns)
        for info in storage.fs.get_file_info(selector)
        if info.type == fs.FileType.File
    )
    named = (
        file
        for file in found
        if wanted.fullmatch(file.name) and not re.search(r"(^|/)\.", file.name)
    )
    return sorted(named, key=lambda file: file.name)


def _is_file(storage: Storage) -> bool:
    return bool(storage.fs.get_file_info(storage.path).type == fs.FileType.File)


def _glob(pattern: str) -> re.Pattern[str]:
    any_of_them = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    return re.compile("".join(any_of_them.get(part) or re.escape(part) for part in parts))
