"""Files and folders that settings name: whether they are there, and whether they have changed.

Asked at plan and at each run, without reading them.
"""

from pyarrow.fs import FileType

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import open_uri
from clipmill.pipeline.errors import StageError

STAGE = "stage:"  # begins a setting that names a stage of the recipe


def named(setting: str | None) -> str:
    """The file or folder that a setting names; empty where it names a stage, or nothing."""
    return "" if setting is None or setting.startswith(STAGE) else setting


def listing_digest(setting: str | None) -> str:
    """A digest that changes with the size or time of the file; empty where none is named."""
    if not (uri := named(setting)):
        return ""
    store, path = open_uri(uri)
    info = store.get_file_info(path)
    return digest([info.size, info.mtime_ns])


def need_file(uri: str, key: str, do: str) -> None:
    """StageError where a setting names no file."""
    _need(uri, key, "file", do)


def need_folder(uri: str, key: str, do: str) -> None:
    """StageError where a setting names no folder."""
    _need(uri, key, "folder", do)


def need_either(uri: str, key: str, do: str) -> None:
    """StageError where a setting names neither a file nor a folder."""
    _need(uri, key, "file or folder", do)


def _need(uri: str, key: str, wanted: str, do: str) -> None:
    kinds = {FileType.File: "file", FileType.Directory: "folder"}
    store, path = open_uri(uri)
    there = kinds.get(store.get_file_info(path).type)
    if there is None or there not in wanted:
        at = f"'{redacted(uri)}'"
        found = f"{at} is a {there}, not a {wanted}" if there else f"no {wanted} {at}"
        raise StageError(found, f"key `{key}`", do)
