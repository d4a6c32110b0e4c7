"""Checks that the operands of a comparison are of one kind: number, text, truth or time."""

from collections.abc import Iterator

import pyarrow as pa
from sqlglot import exp

from clipmill.stages.select import _lists as lists
from clipmill.stages.select._lists import Tree, text_of

NUMBER, TEXT, TRUTH, TIME = "a number", "text", "true or false", "a time"
COMPARED = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ)
MATCHED = (exp.Like, exp.ILike, exp.RegexpLike, exp.RegexpILike)
ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Pow, exp.Sqrt, exp.Ln)
OF_NUMBERS = (*ARITHMETIC, exp.Abs, exp.Ceil, exp.Floor, exp.Round, exp.Sign, exp.Exp, exp.Neg)
FIRST_OF = (exp.Coalesce, exp.Nullif, exp.Greatest, exp.Least)
OF_TEXT = (exp.Lower, exp.Upper, exp.Trim, exp.Left, exp.Right, exp.Substring, exp.Replace)
TRUTHS = (*COMPARED, *MATCHED, exp.And, exp.Or, exp.Not, exp.Between, exp.In, exp.Is, exp.Boolean)


def mismatch(tree: Tree, schema: pa.Schema) -> tuple[str, str] | None:
    """Returns the first comparison or call of the wrong kinds, and what to write; else None."""
    for node in tree.walk(prune=lists.quantified):
        if call := lists.quantified(node):
            inner = mismatch(call[1], lists.items_of(call[1], schema))
            if inner:
                return inner
            continue
        for left, right in _compared(node):
            kinds = kind_of(left, schema), kind_of(right, schema)
            if None not in kinds and kinds[0] != kinds[1] and set(kinds) != {NUMBER, TRUTH}:
                found = f"`{text_of(node)}` compares {kinds[0]} with {kinds[1]}"
                return found, _instead(left, right, schema)
        for needed, inner in _needed(node):
            actual = kind_of(inner, schema)
            if actual not in (needed, None) and (needed == TEXT or actual == TEXT):
                do = f"{text_of(inner)} is {actual}{_dtype(inner, schema)}: ask something else"
                return f"`{text_of(node)}` asks {actual} as if it were {needed}", do
    if kind_of(tree, schema) not in (TRUTH, None):
        found = f"`{text_of(tree)}` is {kind_of(tree, schema)}{_dtype(tree, schema)}, no condition"
        return found, f"compare it with something: {text_of(tree)} = …"
    return None


def kind_of(node: Tree, schema: pa.Schema) -> str | None:
    """Returns the kind of an operand; None if only the engine can tell."""
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


def _needed(node: Tree) -> Iterator[tuple[str, Tree]]:
    """Yields each operand of an operation, after the kind that it must have."""
    if isinstance(node, (*MATCHED, *OF_TEXT, exp.Length, exp.StartsWith, exp.EndsWith)):
        yield TEXT, node.this
    elif isinstance(node, OF_NUMBERS):
        yield from ((NUMBER, inner) for inner in (node.this, node.args.get("expression")) if inner)


def _instead(left: Tree, right: Tree, schema: pa.Schema) -> str:
    """Returns what to write in place of the operand that is no column."""
    column, other = (left, right) if isinstance(left.unnest(), exp.Column) else (right, left)
    kind, other = kind_of(column, schema), other.unnest()
    is_kind = f"{text_of(column)} is {kind}{_dtype(column, schema)}"
    if kind == TEXT and isinstance(other, exp.Literal):
        return f"{is_kind}: write '{other.name}', in quotes"
    if kind == TRUTH:
        return f"{is_kind}: write TRUE or FALSE"
    if kind == NUMBER and isinstance(other, exp.Literal) and _is_number(other.name):
        return f"{is_kind}: write {other.name}, without quotes"
    if kind == TIME:
        return f"{is_kind}: write CAST({text_of(column)} AS VARCHAR) to compare it as text"
    return f"{is_kind}: compare it with {kind}, or CAST one of the two"


def _type_of(column: Tree, schema: pa.Schema) -> pa.DataType:
    return schema.field(lists.full_name(column)).type


def _dtype(node: Tree, schema: pa.Schema) -> str:
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
