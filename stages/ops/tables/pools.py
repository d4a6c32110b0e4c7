"""Lists a pool's files, and fits their values to declared columns."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileType

from clipmill.metadata.globs import files_of, open_pool
from clipmill.metadata.keys import redacted
from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import from_hex, uid_of
from clipmill.pipeline.errors import RetryableError, ShardError, StageError

T = TypeVar("T")
Values: TypeAlias = pa.Array | pa.ChunkedArray | list[Any]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
BATCH_ROWS = 1024
BATCH_BYTES = 32 << 20
MIXED = pa.opaque(pa.string(), "mixed", "clipmill")  # JSON of values that no other type has


def list_files(path: str, suffixes: Sequence[str], stage: str) -> list[dict[str, Any]]:
    """Returns the pool's files with these suffixes, by name: path, digest and size of each.

    The digest is name, size and time of change: reading all bytes would cost as much as the work.
    """
    files = [
        {"path": file.name, "digest": f"{file.name} {file.size} {file.mtime_ns}", "size": file.size}
        for file in files_of(path)
        if file.name.lower().endswith(tuple(suffixes))
    ]
    if not files:
        storage, _ = open_pool(path)
        is_there = storage.fs.get_file_info(storage.path).type != FileType.NotFound
        ends = f"no file that ends in {', '.join(suffixes)}"
        raise StageError(
            found=ends if is_there else f"{ends}: nothing is there",
            where=f"stage '{stage}', key `path`: {redacted(path)}",
            do="give a file, a folder or a glob that holds the pool",
        )
    return files


def leads_out(storage: Storage, name: str, below: str = "") -> bool:
    """Returns whether a symbolic link takes a file's path out of the folder `below`."""
    root = os.path.join(os.path.realpath(os.path.join(storage.path, below)), "")
    may_lead = storage.is_local and "\0" not in name
    return may_lead and not os.path.realpath(storage.locate(name)).startswith(root)


def read_if_allowed(storage: Storage, name: str, most: int) -> bytes | None:
    """Returns the file's first bytes, at most `most`; None if it is gone or forbidden."""
    try:
        return storage.read_at(name, 0, most)
    except (FileNotFoundError, PermissionError):
        return None


def sizes_of(files: list[dict[str, Any]]) -> dict[str, int]:
    """Returns the bytes of each file by name, from a listing."""
    return {file["path"]: file["size"] for file in files}


@contextmanager
def failing_its_shard(where: str, *also: type[Exception]) -> Iterator[None]:
    """Turns an error in reading a file into a ShardError that names the file.

    An OSError is tried again: a corrupt page and a store that does not answer both raise it.
    """
    try:
        yield
    except (pa.ArrowException, KeyError, EOFError, RecursionError, MemoryError, *also) as error:
        message = str(error) or repr(error)  # a MemoryError has no words
        raise ShardError(f"a file that cannot be read: {message}", where, _MEND) from error
    except OSError as error:
        raise RetryableError(f"a file that cannot be read: {error}", where, _MEND) from error


_MEND = "put the whole file in its place and run again: only its shards are redone"


def in_batches(items: Iterable[T], size_bytes: Callable[[T], int]) -> Iterator[list[T]]:
    """Yields the items in lists of at most 1,024 items, cut after 32 MB."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_bytes(item)
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def fit(values: Values, dtype: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """Returns the values as this type, and which of them are unfit and null.

    NaN in a column of no floats, which is how pandas writes a missing value, is null and fits. A
    vector fits if it has the width of a fixed-size list of floats, and finite numbers only.
    """
    values = python(values)
    if pa.types.is_fixed_size_list(dtype) and pa.types.is_floating(dtype.value_type):
        return _fit_vectors(values, dtype)
    if not isinstance(values, list) and values.type in (pa.string(), pa.large_string()):
        values = values.cast(pa.large_binary())  # not checked to be UTF-8 yet: _cast does
    try:
        array = one_array(values)
        return _cast(array, dtype), pa.array(np.zeros(len(array), bool))
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        pass  # one value is bad, or all are: each is tried
    items = values if isinstance(values, list) else values.to_pylist()
    if not pa.types.is_floating(dtype):
        items = [item if item == item else None for item in items]  # NaN is not
    fitted = pa.array([_one(value, dtype) for value in items], dtype)
    present = pa.array([item is not None and item == item for item in items], pa.bool_())
    return fitted, pc.and_(present, fitted.is_null())


def python(values: Values) -> Values:
    """Returns values of an extension's type as Python's, UUIDs as text; others as they are."""
    if isinstance(values, list) or not isinstance(values.type, pa.BaseExtensionType):
        return values
    items = values.to_pylist()
    if values.type == MIXED:
        return [item and json.loads(item) for item in items]
    return [str(item) if isinstance(item, UUID) else item for item in items]


def one_array(values: Values) -> pa.Array:
    """Returns the values as one array, copied if they lie in several."""
    if isinstance(values, list) and {float, bool} <= {*map(type, values)}:
        raise pa.ArrowInvalid("truths among numbers, which Arrow takes for 0 and 1")
    if not isinstance(values, pa.ChunkedArray):
        return pa.array(values) if isinstance(values, list) else values
    return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()


def uid_values(values: Values) -> pa.Array:
    """Returns uids from 16 bytes or 32 hex digits; null if a value is neither."""
    if not isinstance(values, list) and values.type in (pa.binary(16), pa.uuid()):
        return one_array(values).cast(pa.binary(16))
    return from_hex(fit(values, pa.string())[0])


def uid_column(uid: pa.Array | None, url: pa.Array, text: pa.Array) -> pa.Array:
    """Returns the given uids; the hash of url and text if one is null."""
    if uid is not None and not uid.null_count:
        return uid
    pairs = zip(url.to_pylist(), text.to_pylist(), strict=True)
    hashed = pa.array([uid_of(*pair) for pair in pairs], pa.binary(16))  # one at a time
    return hashed if uid is None else pc.coalesce(uid, hashed)


def first_rows(tables: Iterable[pa.Table], rows: int) -> pa.Table:
    """Returns the first `rows` rows, reading no further table; at least one table is given."""
    head: list[pa.Table] = []
    for table in tables:
        head.append(table)
        if sum(map(len, head)) >= rows:
            break
    return pa.concat_tables(head).slice(0, rows).unify_dictionaries()


def first_reason(masks: Mapping[str, pa.Array]) -> pa.Array:
    """Returns a reason column: the first code whose mask is true."""
    if not any(mask.true_count for mask in masks.values()):  # most batches: a fast path
        none = pa.nulls(len(next(iter(masks.values()))), pa.int32())
        return pa.DictionaryArray.from_arrays(none, pa.array([], pa.string()))
    return pc.case_when(pc.make_struct(*masks.values()), *masks).dictionary_encode()


def any_of(masks: Sequence[pa.Array], rows: int) -> pa.Array:
    """Returns whether at least one of the masks is true."""
    some = [np.asarray(mask) for mask in masks if mask.true_count]
    return pa.array(np.logical_or.reduce([np.zeros(rows, bool), *some]))


def _cast(array: pa.Array, dtype: pa.DataType) -> pa.Array:
    if pa.types.is_floating(array.type) and not pa.types.is_floating(dtype):
        array = pc.if_else(pc.is_nan(array), None, array)
    if array.type in (pa.binary(), pa.large_binary()) and not pa.types.is_binary(dtype):
        array = array.cast(pa.string())  # checks UTF-8
    return array.cast(dtype)


def _fit_vectors(values: Values, dtype: pa.DataType) -> tuple[pa.Array, pa.Array]:
    array = _lists(values)
    present_N = np.asarray(array.is_valid())
    length_N = np.asarray(pc.fill_null(pc.list_value_length(array), -1))
    fits_N = length_N == dtype.list_size
    flat = pc.list_flatten(array.filter(pa.array(fits_N))).cast(dtype.value_type, safe=False)
    part_KD = flat.to_numpy(zero_copy_only=False).reshape(-1, dtype.list_size)  # null is NaN
    finite_K = np.isfinite(part_KD).all(axis=1)
    fits_N[fits_N] = finite_K
    row_ND = np.zeros((len(array), dtype.list_size), part_KD.dtype)
    row_ND[fits_N] = part_KD[finite_K]
    fitted = pa.FixedSizeListArray.from_arrays(
        pa.array(row_ND.reshape(-1), dtype.value_type), type=dtype, mask=pa.array(~fits_N)
    )
    return fitted, pa.array(present_N & ~fits_N)


def _lists(values: Values) -> pa.Array:
    """Returns the values as lists of numbers; any other value as an empty list."""
    if not isinstance(values, list):
        kind = (array := one_array(values)).type
        holds = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if holds or pa.types.is_fixed_size_list(kind):
            number = kind.value_type
            if pa.types.is_floating(number) or pa.types.is_integer(number):
                return array
        values = [None if value is None else [] for value in array.to_pylist()]

    def are_numbers(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, (int, float)) for item in value)

    every = [value if value is None or are_numbers(value) else [] for value in values]
    return pa.array(every, pa.list_(pa.float64()))


def _one(value: Any, dtype: pa.DataType) -> Any:
    """Returns the value as this type, also from a number written as text; None if it is unfit."""
    errors = (pa.ArrowException, ValueError, TypeError, OverflowError)
    with suppress(*errors):
        value = str(value) if isinstance(value, int) and abs(value) >= 2**63 else value  # exact
        if isinstance(value, bytes) and not pa.types.is_binary(dtype):
            value = value.decode()
        return pa.scalar(value).cast(dtype).as_py()
    with suppress(*errors):
        return pa.scalar(float(value)).cast(dtype).as_py()  # "512.0", as pandas writes integers
    return None


def json_object(line: bytes) -> dict[str, Any] | None:
    """Returns the JSON object in these bytes; None if there is none."""
    try:
        value = json.loads(line)
    except PARSE_ERRORS:
        return None
    return value if isinstance(value, dict) else None
