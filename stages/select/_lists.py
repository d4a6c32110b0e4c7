"""Functions over the items of a list: any(…), all(…), len(x), max(x), min(x).

Nulls follow SQL. A null list gives null. For an empty list `any` is false, `all` true, `len` 0, and
`max` and `min` are null. A null item makes `any` null unless another is true, and `all` null unless
another is false; `max` and `min` skip it, `len` counts it. Inside `any` and `all` several lists of
a row are iterated together; if their lengths differ, the result is null.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from sqlglot import exp
from sqlglot.dialects.postgres import Postgres

from clipmill.metadata.schema import CAPTIONS, TEXT_FIELDS, TEXTS

# Shapes: N rows, V items of all their lists.

Tree = Any  # exp.Expr, a node of sqlglot, whose parents and parts are typed too loosely
Wrong = tuple[str, str] | None  # what was found, and what to write
LISTS = (TEXTS.name, CAPTIONS.name)
ROW = "#row"


def quantified(node: Tree) -> tuple[str, Tree] | None:
    """Returns `any` or `all`, and the condition on an item; None for another node."""
    if isinstance(node, exp.Any):
        return "any", node.this.unnest()
    # sqlglot's own ALL holds a subquery only, which is refused; ours is a function unknown to it.
    is_all = isinstance(node, exp.Anonymous) and node.name.lower() == "all"
    return ("all", node.expressions[0].unnest()) if is_all and len(node.expressions) == 1 else None


def is_extreme(node: Tree) -> bool:
    """Returns whether the node is the maximum or minimum of one column's items."""
    is_one = isinstance(node, exp.Max | exp.Min) and not node.expressions
    return is_one and isinstance(node.this, exp.Column)


def named(column: exp.Column) -> tuple[str, str | None]:
    """Returns a column's name, and the field of captions read from it, inside any and all only."""
    *before, last = (part.name for part in column.parts)
    # `stage.column.field`, or `texts.field`; another `a.b` is the column b of stage a.
    is_field = len(before) == 2 or (len(before) == 1 and before[0] in LISTS)
    if is_field and last in TEXT_FIELDS and around(column):
        return ".".join(before), last
    return ".".join((*before, last)), None


def misplaced(node: Tree) -> Wrong:
    """Returns error and remedy if a list function is misplaced, or names no list; else None."""
    call = quantified(node)
    if (call or is_extreme(node)) and around(node):
        return f"`{text_of(node)}` stands inside another list function", "ask in two conditions"
    if call and not node.find(exp.Column):
        return f"`{text_of(node)}` names no list", f"name it inside: {call[0]}(scores > 0.3)"
    # SQL's `value < ANY(list)`: the comparison belongs inside.
    if call and isinstance(node.parent, exp.Predicate) and node is node.parent.expression:
        inside = node.parent.copy()
        inside.set("expression", call[1].copy())
        return (
            f"`{text_of(node.parent)}` is no condition on an item",
            f"write {call[0]}({text_of(inside)})",
        )
    return None


def mistaken(column: exp.Column, schema: pa.Schema) -> Wrong:
    """Returns the error and its remedy if a column of this type cannot stand there; else None."""
    name, field = named(column)
    dtype, above, call = schema.field(name).type, column.parent, around(column)
    items = dtype.value_type if pa.types.is_list(dtype) else None
    holds = f"{name} holds {dtype}"
    if call is not None and field is not None:
        if items is not None and pa.types.is_struct(items) and items.get_field_index(field) >= 0:
            return None
        return f"`{text_of(call)}` asks a field of captions, and {holds}", f"ask {name} itself"
    if call is not None:
        if items is not None and pa.types.is_nested(items):
            found = f"`{text_of(call)}` asks more than one value of an item: {holds}"
            return found, f"ask {name}.label"
        others = [schema.field(named(operand)[0]).type for operand in call.find_all(exp.Column)]
        if any(map(pa.types.is_list, others)):
            return None
        _, inner = quantified(call) or ("", call)
        return f"`{text_of(call)}` asks the items of a list, and {holds}", f"write {text_of(inner)}"
    if is_extreme(above):
        if items is None:
            found = f"`{text_of(above)}` is an aggregate over rows, as {name} is no list: {holds}"
            return found, f"ask one row's {name}; `top` keeps the rows where it is largest"
        if pa.types.is_integer(items) or pa.types.is_floating(items):
            return None
        return f"`{text_of(above)}` asks for numbers, and {holds}", f"ask any({name} = …)"
    if items is None or isinstance(above, exp.Is | exp.Length):
        return None
    do = f"say of which items: any({name} …), all({name} …), max({name}), min({name}), len({name})"
    return f"`{text_of(above)}` takes a list for one value: {holds}", do


def items_of(inner: Tree, schema: pa.Schema) -> pa.Schema:
    """Returns the types that columns have inside the condition of any and all."""
    types = {}
    for column in inner.find_all(exp.Column):
        name, field = named(column)
        dtype = schema.field(name).type
        dtype = dtype.value_type if pa.types.is_list(dtype) else dtype
        types[full_name(column)] = dtype.field(field).type if field else dtype
    return pa.schema(types)


def asks_a_list(node: Tree, dtypes: Mapping[str, pl.DataType]) -> bool:
    """Returns whether the node is a function over a list; LENGTH may also be of a text."""
    if isinstance(node, exp.Length):
        return isinstance(node.this, exp.Column) and isinstance(
            dtypes.get(full_name(node.this)), pl.List
        )
    return quantified(node) is not None or is_extreme(node)


def answers(
    node: Tree, frame: pl.DataFrame, value: Callable[[Tree, pl.DataFrame], pl.Series]
) -> pl.Series:
    """Returns (N,) the function's value in every row; `value` evaluates a condition on an item."""
    call = quantified(node)
    if call is None:
        items = frame[full_name(node.this)].list
        if isinstance(node, exp.Length):
            return items.len().cast(pl.Int64)
        return items.max() if isinstance(node, exp.Max) else items.min()
    which, inner = call
    columns = {full_name(column): named(column) for column in inner.find_all(exp.Column)}
    read = dict.fromkeys(name for name, _ in columns.values())
    lists = [name for name in read if isinstance(frame.schema[name], pl.List)]
    rows = frame.select(pl.int_range(pl.len()).alias(ROW), *read)
    lengths = [pl.col(name).list.len() for name in lists]
    fits = pl.all_horizontal(length == lengths[0] for length in lengths)
    fits_N = rows.select(fits.fill_null(False)).to_series().to_numpy()
    flat = rows.filter(pl.Series(fits_N) & (rows[lists[0]].list.len() > 0)).explode(lists)
    fields = [
        pl.col(name).struct.field(field).alias(full)
        for full, (name, field) in columns.items()
        if field
    ]
    verdict = value(inner, flat.with_columns(fields)).cast(pl.Boolean)
    deciding = verdict if which == "any" else ~verdict  # one true item decides any, a false one all
    row_V = flat[ROW].to_numpy()
    decided_N, null_N = (
        np.bincount(row_V[mask.to_numpy()], minlength=len(frame)) > 0
        for mask in (deciding.fill_null(False), verdict.is_null())
    )
    known_N = fits_N & (decided_N | ~null_N)
    true_N = decided_N if which == "any" else ~decided_N
    return pl.Series(values=pa.array(true_N, mask=~known_N), dtype=pl.Boolean)


def full_name(column: exp.Column) -> str:
    """Returns the name as written: `column`, `stage.column`, `texts.label`."""
    return ".".join(part.name for part in column.parts)


def around(node: Tree) -> Tree | None:
    """Returns the any or all that encloses a node; None if there is none."""
    above = node.parent
    while above is not None and quantified(above) is None:
        above = above.parent
    return above


def text_of(tree: Tree) -> str:
    """Returns an expression as a recipe has it."""
    return tree.sql(dialect=Postgres, comments=False)
