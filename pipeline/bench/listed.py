"""Reads a list of uids: DataComp's .npy of `u8,u8`, or text with one uid per line."""

import hashlib
import io
from codecs import BOM_UTF8

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.storage import open_uri
from clipmill.metadata.uid import from_hex, halves
from clipmill.pipeline.errors import RecipeError

DTYPE = np.dtype("u8,u8")


def read_list(path: str, arm: str) -> tuple[NDArray[np.uint64], str]:
    """Returns (U, 2) the halves of each uid, in the file's order, and the digest of the file."""
    where = f"arm '{arm}', {path}"
    store, name = open_uri(path)
    try:
        with store.open_input_file(name) as file:
            data = file.read()
        uids = _of_npy(data) if data.startswith(b"\x93NUMPY") else _of_text(data)
    except (OSError, *PARSE_ERRORS) as error:
        do = "give a .npy of dtype u8,u8, as export.uid_list writes it, or text of one uid a line"
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise RecipeError(f"no list of uids: {found}", where, do) from None
    return uids, hashlib.sha256(data).hexdigest()


def _of_npy(data: bytes) -> NDArray[np.uint64]:
    uids = np.load(io.BytesIO(data), allow_pickle=False)
    if uids.dtype != DTYPE or uids.ndim != 1:
        raise ValueError(f"an array of {uids.dtype}, shape {uids.shape}")
    halves_U2: NDArray[np.uint64] = uids.view(np.uint64).reshape(-1, 2)
    return halves_U2


def _of_text(data: bytes) -> NDArray[np.uint64]:
    text = data.removeprefix(BOM_UTF8).decode("latin-1")  # some editors write that mark first
    lines = pc.split_pattern(pa.array([text]), "\n").flatten()
    line = pc.utf8_trim_whitespace(lines)
    uid = from_hex(line)
    bad = pc.and_(uid.is_null(), pc.not_equal(line, "")).index(True).as_py()
    if bad >= 0:
        raise ValueError(f"line {bad + 1} is {line[bad].as_py()[:40]!r}, and no uid")
    return halves(uid.drop_null())
