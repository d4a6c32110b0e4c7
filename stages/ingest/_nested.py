"""Captions and images as data sets nest them: lists of texts, structs of bytes and path."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import IMAGE
from clipmill.stages.ops.tables import Values, fit

TEXT_FIELDS = ("text", "caption", "raw", "value")  # of a struct that holds a caption
LIST_TYPES = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
BINARY_TYPES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def caption_of(values: Values) -> tuple[pa.Array, pa.Array]:
    """One caption a row, and which values are none: of a list, the first that is not empty.

    An item may be a struct with a `text`, as `texts` of an export; a list of empty ones is null.
    """
    array = one_array(values)
    if not _is_list(array.type):
        return fit(_text_of(array), pa.string())
    text, misfit = fit(_text_of(pc.list_flatten(array)), pa.string())
    row_T = pc.list_parent_indices(array).to_numpy()
    is_said_T = np.asarray(pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(text), ""), False))
    said_T = np.flatnonzero(is_said_T)
    row_S, first_S = np.unique(row_T[said_T], return_index=True)
    at_N = np.zeros(len(array), np.int64)
    at_N[row_S] = said_T[first_S]
    has_N = np.isin(np.arange(len(array)), row_S)
    bad_N = np.isin(np.arange(len(array)), row_T[np.asarray(misfit)]) & ~has_N
    return text.take(pa.array(at_N, mask=~has_N)), pa.array(bad_N)


def images_of(values: Values) -> tuple[pa.Array, pa.Array]:
    """Encoded bytes of each image, and its path where the value is a struct that has one."""
    array = one_array(values)
    path = pa.nulls(len(array), pa.string())
    if pa.types.is_struct(array.type):
        if array.type.get_field_index("path") >= 0:
            path, _ = fit(pc.struct_field(array, "path"), pa.string())
        array = pc.struct_field(array, "bytes")
    image = array.cast(IMAGE.dtype)
    return pc.if_else(pc.equal(pc.binary_length(image), 0), None, image), path


def holds_images(dtype: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images: bytes, or a struct with `bytes`."""
    if pa.types.is_struct(dtype) and dtype.get_field_index("bytes") >= 0:
        dtype = dtype.field("bytes").type
    return any(is_one(dtype) for is_one in BINARY_TYPES)


def digests_of(images: pa.Array) -> pa.Array:
    """SHA-256 of each image in hex; null without one."""
    views = (None if it is None else hashlib.sha256(it).hexdigest() for it in images.to_pylist())
    return pa.array(list(views), pa.string())


def one_array(values: Values) -> pa.Array:
    """The values as one array."""
    if isinstance(values, list):
        return pa.array(values)
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _is_list(dtype: pa.DataType) -> bool:
    return any(is_one(dtype) for is_one in LIST_TYPES)


def _text_of(array: pa.Array) -> pa.Array:
    """The texts of structs that hold one; anything else as it is."""
    if pa.types.is_struct(array.type):
        for name in TEXT_FIELDS:
            if array.type.get_field_index(name) >= 0:
                return pc.struct_field(array, name)
    return array
