"""Collects the texts of a row, without repeats: the original, then those of caption stages."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import CAPTIONS, ORIGINAL, TEXT, TEXT_FIELDS, TEXT_LIST, TEXTS
from clipmill.pipeline.stage import NonEmpty

# Shapes: N rows, V texts of all rows.

Captions = bool | tuple[NonEmpty, ...]  # false: none; true: those present; or lists by name


def lists_in(schema: pa.Schema, captions: Captions) -> tuple[str, ...]:
    """Returns the columns from which a table's texts are taken, in order.

    `captions` is one only if it holds texts: a pool may have another column of that name.
    """
    if captions is True:
        present = (name for name in (TEXTS.name, CAPTIONS.name) if name in schema.names)
        return next(((name,) for name in present if _has_texts(schema.field(name).type)), ())
    return captions or ()


def _has_texts(dtype: pa.DataType) -> bool:
    is_list = pa.types.is_list(dtype) and pa.types.is_struct(dtype.value_type)
    return is_list and dtype.value_type.get_field_index("text") >= 0


def texts_of(rows: pa.Table, captions: Captions) -> pa.Array:
    """Returns a TEXT_LIST, never null: each row's texts without repeats, the first of equal ones.

    Empty texts are left out, except an original that is the row's only text. If rows have `texts`,
    the original is taken from there alone, as it may have been removed. Without captions, each row
    has one text, which is empty.
    """
    if not captions:
        return as_texts(pa.chunked_array([np.full(len(rows), "")], TEXT.dtype))
    names = lists_in(rows.schema, captions)
    lists = [as_text_list(rows[name]) for name in names]
    if TEXTS.name not in names:
        lists = [as_texts(rows[TEXT.name]), *lists]
    return _each_once(lists) if names else lists[0]


def first_texts(texts: pa.Array) -> pa.Array:
    """Returns the first text of each row; null if there is none."""
    count_N = pc.list_value_length(texts).fill_null(0).to_numpy()
    start_N = pa.array(np.cumsum(count_N) - count_N, mask=count_N == 0)
    return pc.struct_field(pc.list_flatten(texts), "text").take(start_N)


def captions_of(rows: pa.Table, texts: pa.Array) -> pa.Array:
    """Returns the first text of each row; if there is none, as in dropped rows, the pool's."""
    first = first_texts(texts)
    return pc.coalesce(first, rows[TEXT.name]) if TEXT.name in rows.column_names else first


def as_texts(text: pa.ChunkedArray) -> pa.Array:
    """Converts the pool's texts to lists of one; empty for null."""
    text = text.combine_chunks()
    count_N = text.is_valid().to_numpy(zero_copy_only=False)
    text = text.drop_null()
    source = pa.array(np.full(len(text), ORIGINAL), pa.string())
    return _listed(count_N, {"text": text, "source": source, "label": source})


def as_text_list(lists: pa.ChunkedArray) -> pa.Array:
    """Converts lists of structs with a `text` to TEXT_LIST; other fields are optional."""
    lists = lists.combine_chunks()
    if lists.type == TEXT_LIST:
        return lists
    values = pc.list_flatten(lists)
    names = [name for name in TEXT_FIELDS if values.type.get_field_index(name) >= 0]
    fields = {name: pc.struct_field(values, name) for name in names}
    return _listed(pc.list_value_length(lists).fill_null(0).to_numpy(), fields)


def _each_once(lists: list[pa.Array]) -> pa.Array:
    """Joins several lists a row, in order, and removes empty and repeated texts."""
    rows = len(lists[0])
    counts = [pc.list_value_length(texts).fill_null(0).to_numpy() for texts in lists]
    row_V = np.concatenate([np.repeat(np.arange(rows), count_N) for count_N in counts])
    values = pa.concat_arrays([pc.list_flatten(texts) for texts in lists])
    order_V = np.argsort(row_V, kind="stable")
    row_V, values = row_V[order_V], values.take(pa.array(order_V))
    text = pc.struct_field(values, "text")
    has_words_V = pc.not_equal(pc.utf8_trim_whitespace(text), "").fill_null(False).to_numpy(False)
    is_original = pc.equal(pc.struct_field(values, "source"), ORIGINAL)
    is_original_V = pc.and_(is_original, text.is_valid()).fill_null(False).to_numpy(False)
    row_has_words_V = np.isin(row_V, row_V[has_words_V])
    stays_V = has_words_V | (is_original_V & ~row_has_words_V)
    row_V, values, text = row_V[stays_V], values.filter(stays_V), text.filter(stays_V)
    code_V = text.dictionary_encode().indices.to_numpy().astype(np.int64)
    _, first_V = np.unique(row_V * len(text) + code_V, return_index=True)
    first_V.sort()
    values = values.take(pa.array(first_V))
    count_N = np.bincount(row_V[first_V], minlength=rows)
    return _listed(count_N, {name: pc.struct_field(values, name) for name in TEXT_FIELDS})


def _listed(count_N: np.ndarray, columns: Mapping[str, pa.Array]) -> pa.Array:
    """Builds a TEXT_LIST of `count_N` structs a row; missing columns are null."""
    length = int(count_N.sum())
    fields = list(TEXT_LIST.value_type)
    values = [columns.get(field.name, pa.nulls(length, field.type)) for field in fields]
    offsets = pa.array(np.concatenate([[0], np.cumsum(count_N)]).astype(np.int32))
    structs = pa.StructArray.from_arrays(values, fields=fields)
    return pa.ListArray.from_arrays(offsets, structs, type=TEXT_LIST)
