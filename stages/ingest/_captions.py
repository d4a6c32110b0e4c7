"""Reads captions of rows, of which each may have a list."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    ANSWERERS,
    CAPTION_FIELDS,
    CAPTIONS,
    ORIGINAL,
    TEXT,
    TEXT_LIST,
    TURNS,
)
from clipmill.stages.ops.tables.pools import Values, fit, one_array, python

# Shapes: N rows, T texts in all their lists.

LIST_TYPES = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
MARK = "\ufeff"  # a byte-order mark, which is no letter of a caption


def caption_of(values: Values) -> tuple[pa.Array, pa.Array]:
    """Returns a caption per row, of a list the first that is not empty; and which are invalid.

    An item may be a struct with a `text`, as in `texts` of an export; a list of empty ones is null.
    """
    found = python(values)
    if isinstance(found, list) and not any(isinstance(row, list) for row in found):
        return fit([_text_in(row) for row in found], pa.string())
    if not isinstance(found, list) and not _is_list(found.type):
        return fit(_text_of(one_array(found)), pa.string())
    return _first(*_listed(found))[:2]


def captions_of(values: Values, all_captions: bool) -> tuple[dict[str, pa.Array], pa.Array]:
    """Returns `text`, with `all_captions` also each list's others as `captions`; and misfits.

    A byte-order mark before the first letter is left out.
    """
    if not all_captions:
        text, misfit = fit(values, pa.string())
        return {TEXT.name: without_mark(text)}, misfit
    text, misfit, row_T, rows = _listed(values)
    text = without_mark(text)
    caption, bad, more = _first(text, misfit, row_T, rows)
    count_N = np.bincount(row_T[more], minlength=rows)
    own = pa.array(np.full(len(more), ORIGINAL), pa.string())
    part = {"text": text.take(pa.array(more)), "source": own, "label": own}
    fields = list(TEXT_LIST.value_type)
    columns = [part.get(field.name, pa.nulls(len(more), field.type)) for field in fields]
    others = pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(count_N)), pa.int32()),
        pa.StructArray.from_arrays(columns, fields=fields),
        mask=pa.array(count_N == 0),
    )
    return {TEXT.name: caption, CAPTIONS.name: others}, bad


def answers_of(values: Values) -> Values:
    """Returns the answers in each conversation, a list of turns; other values as they are."""
    if isinstance(found := python(values), list):
        return [_answers_in(row) if isinstance(row, list) else row for row in found]
    array = one_array(found)
    turn = array.type.value_type if _is_list(array.type) else pa.null()
    if pa.types.is_fixed_size_list(array.type):  # polars has another type for these
        array = array.cast(pa.list_(turn))
    for names in TURNS.items() if pa.types.is_struct(turn) else ():
        if min(map(turn.get_field_index, names)) >= 0:
            import polars as pl  # late: few pools have conversations

            who, said = (pl.element().struct.field(name) for name in names)
            return pl.Series(array).list.eval(said.filter(who.is_in(ANSWERERS))).to_arrow()
    return array


def _answers_in(turns: list[Any]) -> list[Any]:
    said = [(t, *n) for t in turns if isinstance(t, dict) for n in TURNS.items() if n[0] in t]
    answers = [turn.get(what) for turn, who, what in said if turn[who] in ANSWERERS]
    return answers if said else turns


def without_mark(text: pa.Array) -> pa.Array:
    """Returns texts without a byte-order mark before their first letter."""
    return pc.utf8_ltrim(text, MARK)


def _listed(values: Values) -> tuple[pa.Array, pa.Array, NDArray[np.int64], int]:
    """Returns the texts of all rows, which are invalid, the row of each, and the rows' number."""
    if isinstance(values := python(values), list):
        lists = [row if isinstance(row, list) else [] if row is None else [row] for row in values]
        row_T = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
        items: Any = [_text_in(item) for items in lists for item in items]
    else:
        items, row_T = one_array(values), np.arange(len(values))
        if _is_list(items.type):  # a null may hide texts, which `list_flatten` passes over
            row_T = np.repeat(row_T, pc.list_value_length(items).fill_null(0))
            items = pc.list_flatten(items)
        items = _text_of(items)
    return *fit(items, pa.string()), row_T, len(values)


def _first(
    text: pa.Array, misfit: pa.Array, row_T: NDArray[np.int64], rows: int
) -> tuple[pa.Array, pa.Array, NDArray[np.int64]]:
    """Returns each row's first filled text, which rows have unfit ones only, and other places."""
    is_filled_T = np.asarray(pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(text), ""), False))
    filled_T = np.flatnonzero(is_filled_T)
    row_S, first_S = np.unique(row_T[filled_T], return_index=True)
    index_N = np.zeros(rows, np.int64)
    index_N[row_S] = filled_T[first_S]
    has_N = np.isin(np.arange(rows), row_S)
    bad_N = np.isin(np.arange(rows), row_T[np.asarray(misfit)]) & ~has_N
    others = np.delete(filled_T, first_S)
    return text.take(pa.array(index_N, mask=~has_N)), pa.array(bad_N), others


def _is_list(dtype: pa.DataType) -> bool:
    return any(is_one(dtype) for is_one in LIST_TYPES)


def _text_of(array: pa.Array) -> pa.Array:
    """Returns the texts of structs that hold one; anything else as it is."""
    if pa.types.is_struct(array.type):
        for name in CAPTION_FIELDS:
            if array.type.get_field_index(name) >= 0:
                return pc.struct_field(array, name)
    return array


def _text_in(item: Any) -> Any:
    """Returns the text of an object that holds one; anything else as it is."""
    if isinstance(item, dict):
        return next((item[name] for name in CAPTION_FIELDS if name in item), item)
    return item
