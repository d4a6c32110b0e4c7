"""What the two sides of a comparison hold, so that a wrong one is refused in a reader's words."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from sqlglot import exp
from sqlglot.dialects.postgres import Postgres

from clipmill.stages.select import _lists as lists

Tree = Any  # a node of sqlglot
NUMBER, TEXT, TRUTH, TIME = "a number", "text", "true or false", "a time"
COMPARED = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ)
MATCHED = (exp.Like, exp.ILike, exp.RegexpLike, exp.RegexpILike)
OF_NUMBERS = (
    *(exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Pow, exp.Sqrt, exp.Ln),
    *(exp.Abs, exp.Ceil, exp.Floor, exp.Round, exp.Sign, exp.Exp, exp.Neg),
)
FIRST_OF = (exp.Coalesce, exp.Nullif, exp.Greatest, exp.Least)
OF_TEXT = (exp.Lower, exp.Upper, exp.Trim, exp.Left, exp.Right, exp.Substring, exp.Replace)
TRUTHS = (*COMPARED, *MATCHED, exp.And, exp.Or, exp.Not, exp.Between, exp.In, exp.Is, exp.Boolean)


def mismatch(tree: Tree, schema: pa.Schema) -> tuple[str, str] | None:
    """What is compared or asked that has no answer, and what to write; None where nothing is."""
    for node in tree.walk(prune=lists.quantified):
        if call := lists.quantified(node):
            inner = mismatch(call[1], lists.items_of(call[1], schema))
            if inner:
                return inner
            continue
        for left, right in _compared(node):
            kinds = kind_of(left, schema), kind_of(right, schema)
            if None not in kinds and kinds[0] != kinds[1] and set(kinds) != {NUMBER, TRUTH}:
                found = f"`{_text(node)}` compares {kinds[0]} with {kinds[1]}"
                return found, _instead(left, right, schema)
        for wanted, inner in _asked(node):
            have = kind_of(inner, schema)
            if have not in (wanted, None) and (wanted == TEXT or have == TEXT):
                do = f"{_text(inner)} is {have}{_held(inner, schema)}: ask something else"
                return f"`{_text(node)}` asks {have} as if it were {wanted}", do
    if kind_of(tree, schema) not in (TRUTH, None):
        found = f"`{_text(tree)}` is {kind_of(tree, schema)}{_held(tree, schema)}, no condition"
        return found, f"compare it with something: {_text(tree)} = …"
    return None


def kind_of(node: Tree, schema: pa.Schema) -> str | None:
    """What a side of a comparison is; None where that is left to the engine."""
    node = node.unnest()
    if isinstance(node, exp.Column):
        return _kind_of_type(_type_of(node, schema))
    if isinstance(node, exp.Literal):
        return TEXT if node.is_string else NUMBER
    if isinstance(node, (*OF_NUMBERS, exp.Length)) or lists.is_extreme(node):
        return NUMBER
    if lists.quantified(node):
        return TRUTH
    if isinstance(node, (*OF_TEXT, exp.Concat, exp.DPipe)):
        return TEXT
    if isinstance(node, FIRST_OF):
        return kind_of(node.this, schema)
    return TRUTH if isinstance(node, TRUTHS) else None


def _compared(node: Tree) -> Iterator[tuple[Tree, Tree]]:
    if isinstance(node, COMPARED):
        yield node.this, node.expression
    elif isinstance(node, exp.Between):
        yield node.this, node.args["low"]
        yield node.this, node.args["high"]
    elif isinstance(node, exp.In):
        yield from ((node.this, value) for value in node.expressions)
    elif isinstance(node, FIRST_OF):
        others = [*node.expressions, node.args.get("expression")]
        yield from ((node.this, other) for other in others if other)


def _asked(node: Tree) -> Iterator[tuple[str, Tree]]:
    """The kind that an operation needs, of each thing that it is asked about."""
    if isinstance(node, (*MATCHED, *OF_TEXT, exp.Length, exp.StartsWith, exp.EndsWith)):
        yield TEXT, node.this
    elif isinstance(node, OF_NUMBERS):
        yield from ((NUMBER, inner) for inner in (node.this, node.args.get("expression")) if inner)


def _instead(left: Tree, right: Tree, schema: pa.Schema) -> str:
    """What to write in the place of the side that is no column."""
    column, other = (left, right) if isinstance(left.unnest(), exp.Column) else (right, left)
    kind, other = kind_of(column, schema), other.unnest()
    said = f"{_text(column)} is {kind}{_held(column, schema)}"
    if kind == TEXT and isinstance(other, exp.Literal):
        return f"{said}: write '{other.name}', in quotes"
    if kind == TRUTH:
        return f"{said}: write TRUE or FALSE"
    if kind == NUMBER and isinstance(other, exp.Literal) and _is_number(other.name):
        return f"{said}: write {other.name}, without quotes"
    if kind == TIME:
        return f"{said}: write CAST({_text(column)} AS VARCHAR) to compare it as text"
    return f"{said}: compare it with {kind}, or CAST one of the two"


def _type_of(column: Tree, schema: pa.Schema) -> pa.DataType:
    return schema.field(".".join(part.name for part in column.parts)).type


def _held(node: Tree, schema: pa.Schema) -> str:
    node = node.unnest()
    return f" ({_type_of(node, schema)})" if isinstance(node, exp.Column) else ""


def _kind_of_type(dtype: pa.DataType) -> str | None:
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    kinds = {
        NUMBER: (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
        TEXT: (pa.types.is_string, pa.types.is_large_string, pa.types.is_fixed_size_binary),
        TRUTH: (pa.types.is_boolean,),
        TIME: (pa.types.is_temporal,),
    }
    return next((kind for kind, tests in kinds.items() if any(t(dtype) for t in tests)), None)


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def _text(node: Tree) -> str:
    return node.sql(dialect=Postgres, comments=False)
