"""Finds the files of a path: one file, all files below a folder, or those of a glob."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from clipmill.metadata.elsewhere import UriError
from clipmill.metadata.keys import split_options
from clipmill.metadata.storage import Storage, folder_of

ARROW = (".arrow", ".arrows", ".feather", ".ipc")
DATABASES = (".sqlite", ".sqlite3", ".db", ".duckdb")
SHEETS = (".xlsx", ".xlsm")
STARS = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*"}  # of a glob, as regular expressions
FORMS = (*ARROW, *DATABASES, *SHEETS)  # of tables beside text and Parquet


@dataclass(frozen=True)
class FoundFile:
    """A file, named relative to the folder that its path opens."""

    name: str
    size: int  # bytes
    mtime_ns: int


def open_pool(path: str) -> tuple[Storage, str]:
    """Splits a path into a base folder and a glob of names below it.

    `*` matches any part of a name, `**/` any folders. Without a star, a folder means all files
    below it, and a file means itself.
    """
    head, options = split_options(path)
    head = head.rstrip("/") or "/"
    start, star, rest = head.partition("*")
    if star:
        storage, name = folder_of(start + options)
        return storage, name + star + rest
    whole = Storage(head + options)
    is_file = whole.fs.get_file_info(whole.path).is_file
    return folder_of(head + options) if is_file else (whole, "**")


def files_of(path: str) -> list[FoundFile]:
    """Returns the files of a path, sorted by name; without hidden files and hidden folders."""
    storage, pattern = open_pool(path)
    if "*" not in pattern:  # one file, whose folder may hold millions, or give no list
        info = storage.fs.get_file_info(storage.locate(pattern))
        is_file = info.type == fs.FileType.File and not pattern.startswith(".")
        return [FoundFile(pattern, info.size or 0, info.mtime_ns)] if is_file else []
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    glob = re.compile("".join(STARS.get(part) or re.escape(part) for part in parts), re.DOTALL)
    is_deep = "/" in pattern or "**" in pattern
    try:
        files = [
            FoundFile(info.path[len(storage.path) :].lstrip("/"), info.size or 0, info.mtime_ns)
            for info in infos_of(storage, is_deep)
            if info.type == fs.FileType.File
        ]
    except UnicodeDecodeError as error:
        name = bytes(error.object).decode(errors="backslashreplace")
        raise UriError(f"a file name that is no UTF-8: {name}") from None
    names = {file.name for file in files}
    heads = {name[: name.index("/recipes/") + 1] for name in names if "/recipes/" in name}
    runs = tuple(head for head in heads if f"{head}run.json" in names)  # a run is no data
    visible = (
        file
        for file in files
        if glob.fullmatch(file.name)
        and not re.search(r"(^|/)\.", file.name)
        and not file.name.startswith(runs)
    )
    return sorted(visible, key=lambda file: file.name)


def infos_of(storage: Storage, is_deep: bool) -> Iterator[fs.FileInfo]:
    """Yields what lies in a folder, and below; a link to a folder above it is not followed."""
    waiting = [storage.path]
    while waiting:
        is_whole = is_deep and not storage.is_local
        selector = fs.FileSelector(waiting.pop(), recursive=is_whole, allow_not_found=True)
        infos = storage.fs.get_file_info(selector)
        yield from infos
        if is_deep and storage.is_local:
            folders = (info.path for info in infos if info.type == fs.FileType.Directory)
            waiting += [path for path in folders if not is_loop(path)]


def is_loop(path: str) -> bool:
    """Returns whether a symbolic link leads to a folder above it, whose files would come again."""
    if not os.path.islink(path):
        return False
    target, folders = os.path.realpath(path), map(os.path.realpath, Path(path).parents)
    return any(os.path.commonpath([target, folder]) == target for folder in folders)
