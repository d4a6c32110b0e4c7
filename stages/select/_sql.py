"""Row-wise SQL predicates, split into top-level conjuncts that polars evaluates.

Nulls follow SQL: a comparison with null is null. The tree is rewritten where polars differs:

- NaN counts as null, in a column and out of arithmetic (polars ranks it above infinity);
- a float32 column meets a literal in float32, as in NumPy, in every form of comparison;
- integers are 64 bits wide, so that width * height and LENGTH(a) - LENGTH(b) don't wrap, and
  unsigned ones of 64 bits 128, in arithmetic: a difference may be below 0;
- a CAST that fails gives null: one bad row doesn't stop the others;
- a uid is its 32 hex digits, in lower case.

`/` is true division, of integers too. GREATEST and LEAST skip nulls.

Conditions that are too long or too deep are refused: both parsers recurse, and the time of polars
grows with the square of a chain. Values do not count: IN may list thousands.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import polars as pl
import polars.selectors as cs
import pyarrow as pa
import sqlglot
from numpy.typing import NDArray
from sqlglot import exp
from sqlglot.dialects.postgres import Postgres  # the dialect nearest to that of polars
from sqlglot.tokens import TokenType  # type: ignore[attr-defined]  # re-exported

from clipmill.metadata.schema import TEXT_FIELDS, UID
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.select import _kinds as kinds
from clipmill.stages.select import _lists as lists
from clipmill.stages.select._kinds import ARITHMETIC, mismatch
from clipmill.stages.select._lists import Tree, full_name, text_of

COMPARISONS = (*kinds.COMPARED, *kinds.MATCHED, exp.Between, exp.In, exp.Is)
ROW_WISE = (
    *(*COMPARISONS, *kinds.OF_NUMBERS, *kinds.OF_TEXT, *kinds.FIRST_OF),
    *(exp.Case, exp.If, exp.Cast, exp.Length, exp.StartsWith, exp.EndsWith, exp.Concat, exp.DPipe),
    *(exp.And, exp.Or, exp.Not, exp.Paren, exp.Column, exp.Identifier),
    *(exp.Literal, exp.Boolean, exp.Null, exp.DataType, exp.DataTypeParam),
)
VALUES = (TokenType.STRING, TokenType.NUMBER, TokenType.COMMA)
MOST_WORDS = 1000  # without values and commas; a chain of 333 comparisons
DEEPEST = 40  # a chain of AND or of OR counts once
NAN = exp.cast(exp.Literal.string("nan"), "REAL", dialect=Postgres)


class PolarsSQL(Postgres):
    class Generator(Postgres.Generator):  # type: ignore[misc, valid-type]  # set at load
        TRANSFORMS: ClassVar = {
            **Postgres.Generator.TRANSFORMS,
            exp.Cast: lambda self, e: f"TRY_CAST({self.sql(e, 'this')} AS {self.sql(e, 'to')})",
            exp.Length: lambda self, e: f"TRY_CAST(LENGTH({self.sql(e, 'this')}) AS BIGINT)",
        }


@dataclass(frozen=True)
class Conjunct:
    """One operand of the top-level AND: its text, and its columns in order of appearance."""

    text: str
    columns: tuple[str, ...]  # `name`, or `stage.name`
    tree: Tree

    def broken(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Returns (N,) whether the condition is false for each row; null counts as not false."""
        is_true = truth(self, as_frame(rows)).fill_null(True)
        return np.asarray(is_true.not_().to_numpy())


@lru_cache(maxsize=1024)  # a sweep asks a condition for every number
def conjuncts(where: str) -> tuple[Conjunct, ...]:
    """Returns the top-level conjuncts, each once, in order; RecipeError if not row-wise SQL."""
    try:
        trees = _parsed(where)
    except sqlglot.errors.ParseError as error:
        raise _no_sql(error) from None
    except sqlglot.errors.SqlglotError:  # from the tokenizer
        do = "close it; an apostrophe inside a text is written twice: 'it''s'"
        raise _wrong(f"not SQL: a quote is not closed in `{where}`", do) from None
    if len(trees) != 1 or trees[0] is None:
        raise _wrong(f"`{where}` is not one condition", "write one; AND joins several")
    _refuse_unless_row_wise(trees[0])
    by_text = {text_of(tree): tree for tree in _operands_of_and(trees[0])}
    return tuple(_conjunct(text, tree) for text, tree in by_text.items())


def _parsed(where: str) -> list[Tree]:
    """Parses the text into conditions; RecipeError if one is too long or too deep."""
    dialect = Postgres()
    tokens = dialect.tokenize(where)
    words = sum(token.token_type not in VALUES for token in tokens)
    if words > MOST_WORDS:
        raise _wrong(
            f"{words:,} words beside its values, and {MOST_WORDS:,} are the most",
            "write `a IN (…)` for a chain of `a = … OR`",
        )
    try:
        trees = dialect.parser().parse(tokens, where)
        deep = any(_is_deep(tree) for tree in trees if tree)
    except RecursionError:
        deep = True
    if deep:
        raise _wrong(f"nested more than {DEEPEST} deep", "take brackets out")
    return trees


def _wrong(found: str, do: str) -> RecipeError:
    return RecipeError(found, "key `where`", do)


def _no_sql(error: sqlglot.errors.ParseError) -> RecipeError:
    """Returns the error for a text that ends too early, or goes on where SQL does not."""
    detail = error.errors[0]
    before, token = detail["start_context"].strip()[-60:], detail["highlight"]
    if detail["description"].startswith("Required"):
        found = f"not SQL: something is missing beside `{token}`, at the end of `{before} {token}`"
    elif detail["description"] == "Expecting )":
        found = f"not SQL: a bracket is not closed after `{before}{token}`"
    else:
        found = f"not SQL: `{token}` cannot follow `{before}`"
    return _wrong(found, "mend it there: `score >= 0.3 AND language = 'en'` is a condition")


def _is_deep(tree: Tree) -> bool:
    level = [tree]
    for _ in range(DEEPEST):
        level = [inner for node in level for inner in _nodes_in(node)]
    return bool(level)


def _nodes_in(node: Tree) -> Iterator[Tree]:
    return node.flatten() if isinstance(node, exp.Connector) else node.iter_expressions()


def as_frame(table: pa.Table) -> pl.DataFrame:
    """Returns the table for `truth`: NaN null, dictionaries and uids as text, 64-bit integers."""
    uids = [field.name for field in table.schema if field.type == UID.dtype]
    items = {f.name: f.type.value_type for f in table.schema if pa.types.is_list(f.type)}
    return pl.DataFrame(table).with_columns(
        *(_items(name, dtype) for name, dtype in items.items()),
        pl.col(uids).bin.encode("hex"),
        cs.float().fill_nan(None),
        cs.categorical().cast(pl.String),
        (cs.integer() - cs.by_dtype(pl.UInt64)).cast(pl.Int64),
    )


def _items(name: str, dtype: pa.DataType) -> pl.Expr:
    """Returns the items of a list, normalized as a column's values are."""
    if pa.types.is_floating(dtype):
        return pl.col(name).list.eval(pl.element().fill_nan(None))
    if pa.types.is_dictionary(dtype):
        return pl.col(name).cast(pl.List(pl.String))
    is_narrow = pa.types.is_integer(dtype) and dtype != pa.uint64()
    return pl.col(name).cast(pl.List(pl.Int64)) if is_narrow else pl.col(name)


def check(conjunct: Conjunct, no_row: pa.Table) -> None:
    """Raises StageError if the condition cannot be evaluated on columns of the table's types."""
    for column in conjunct.tree.find_all(exp.Column):
        if wrong := lists.mistaken(column, no_row.schema):
            raise StageError(wrong[0], "key `where`", wrong[1])
        name, _ = lists.named(column)
        dtype = no_row.schema.field(name).type
        has_parts = pa.types.is_nested(dtype) or pa.types.is_binary(dtype)
        if has_parts and not (pa.types.is_list(dtype) or isinstance(column.parent, exp.Is)):
            raise StageError(
                found=f"`{conjunct.text}` asks what is in {name}, which holds {dtype}",
                where="key `where`",
                do=f"ask {name} IS NOT NULL, or let a stage write what you ask for",
            )
    if wrong := mismatch(conjunct.tree, no_row.schema):
        found, do = wrong
        raise StageError(found, "key `where`", do)
    truth(conjunct, as_frame(no_row))


def truth(conjunct: Conjunct, frame: pl.DataFrame) -> pl.Series:
    """Returns (N,) true, false or null for every row of a frame that `as_frame` made."""
    try:
        verdict = _value(conjunct.tree, frame)
        if verdict.dtype not in (pl.Boolean, pl.Null):
            raise pl.exceptions.SchemaError(f"it is {verdict.dtype}, neither true nor false")
    except pl.exceptions.PolarsError as error:
        types = ", ".join(f"{name} is {frame.schema[name]}" for name in conjunct.columns)
        raise StageError(
            found=f"`{conjunct.text}` has no answer: {str(error).splitlines()[0]}",
            where="key `where`",
            do=f"compare numbers with numbers and text with text, or CAST: {types}",
        ) from error
    return verdict.cast(pl.Boolean)


def _value(tree: Tree, frame: pl.DataFrame) -> pl.Series:
    """Returns (N,) an expression's value; list functions are evaluated first, each as a column."""
    sql = _without_lists(tree, tuple(frame.schema.items()))
    if sql is None:
        root = exp.Paren(this=tree.copy())
        for node in [node for node in root.walk() if lists.asks_a_list(node, frame.schema)]:
            frame = frame.with_columns(lists.answers(node, frame, _value).alias(text_of(node)))
            node.replace(exp.column(text_of(node)))
        sql = _polars_sql(root, frame.schema)
    return frame.with_columns(pl.sql_expr(sql).alias("")).get_column("")


@lru_cache(maxsize=1024)
def _without_lists(tree: Tree, types: tuple[tuple[str, pl.DataType], ...]) -> str | None:
    """Returns an expression in polars SQL, cached for every shard; None if it reads a list."""
    schema, root = dict(types), exp.Paren(this=tree.copy())
    if any(lists.asks_a_list(node, schema) for node in root.walk()):
        return None
    return _polars_sql(root, schema)


def _refuse_unless_row_wise(tree: Tree) -> None:
    """Raises RecipeError for the first part that one row cannot answer, or that polars cannot."""
    if node := tree.find(exp.Query, exp.Exists):
        do = "ask one row's columns; `select.uid_list` keeps the rows that a list names"
        raise _wrong(f"`{text_of(node)}` asks other rows too: a subquery", do)
    over_rows = (node for node in tree.find_all(exp.AggFunc, exp.Window))
    if node := next((node for node in over_rows if not lists.is_extreme(node)), None):
        do = "ask one row's columns; `top` keeps a share of the rows"
        raise _wrong(f"`{text_of(node)}` asks other rows too: an aggregate", do)
    for node in tree.walk():
        if wrong := lists.misplaced(node):
            raise _wrong(*wrong)
        if not (isinstance(node, ROW_WISE) or lists.quantified(node) or lists.is_extreme(node)):
            do = "docs/select.md lists what it knows"
            raise _wrong(f"`where` does not know `{text_of(node)}`", do)
        if isinstance(node, exp.In) and not node.expressions:
            raise _wrong(f"`{text_of(node)}` has no list", "write IN (…), with brackets")
        if isinstance(node, exp.Case) and node.this:
            raise _wrong(f"`{text_of(node)}`", f"write CASE WHEN {text_of(node.this)} = … THEN …")
        if isinstance(node, exp.Is) and isinstance(node.expression, exp.Boolean):
            do = f"write {text_of(node.this)} IS NOT DISTINCT FROM {text_of(node.expression)}"
            raise _wrong(f"`{text_of(node)}` is null where its operand is", do)
        if isinstance(node, exp.Column) and len(lists.named(node)[0].split(".")) > 2:
            do = "write `column` or `stage.column`"
            raise _wrong(f"`{text_of(node)}` names no column: it has {len(node.parts)} parts", do)


def _operands_of_and(tree: Tree) -> Iterator[Tree]:
    stack = [tree]
    while stack:
        tree = stack.pop().unnest()
        if isinstance(tree, exp.And):
            stack += [tree.right, tree.left]
        else:
            yield tree


def _conjunct(text: str, tree: Tree) -> Conjunct:
    columns = tree.find_all(exp.Column, bfs=False)
    names = dict.fromkeys(lists.named(column)[0] for column in columns)
    try:
        _try(tree)
    except pl.exceptions.PolarsError as error:
        do = "ask it in other words; docs/select.md lists what a condition may hold"
        raise _wrong(f"`{text}` cannot be evaluated: {error}", do) from None
    return Conjunct(text=text, columns=tuple(names), tree=tree)


def _try(tree: Tree) -> None:
    """Raises PolarsError if polars has no such expression."""
    root = exp.Paren(this=tree.copy())
    for node in [node for node in root.walk() if lists.asks_a_list(node, {})]:
        if call := lists.quantified(node):
            _try(call[1])
        node.replace(exp.Null())
    pl.sql_expr(_polars_sql(root, {}))


def compared_with(conjunct: Conjunct, name: str) -> bool:
    """Returns whether the name stands for a value: `en` in `language = en`, or in IN's list."""
    return any(
        full_name(column) == name
        and isinstance(column.parent, COMPARISONS)
        and column is not column.parent.this
        for column in conjunct.tree.find_all(exp.Column)
    )


def is_field(name: str) -> bool:
    """Returns whether the name reads as a field of captions: `texts.label`."""
    before, _, last = name.rpartition(".")
    return before in lists.LISTS and last in TEXT_FIELDS


def _polars_sql(tree: Tree, schema: Mapping[str, pl.DataType]) -> str:
    """Returns the tree in polars SQL, rewritten where polars differs (see the module)."""
    root = exp.Paren(this=tree.copy())  # a parent for every node, as `replace` needs
    for node in list(root.find_all(*COMPARISONS)):
        inside = _inside(node)
        dtypes = [schema.get(full_name(n)) for n in inside if isinstance(n, exp.Column)]
        numeric = {dtype for dtype in dtypes if dtype is not None and dtype.is_numeric()}
        if numeric == {pl.Float32} and not any(isinstance(n, exp.Cast) for n in inside):
            for n in inside:
                if isinstance(n, exp.Literal) and not n.is_string and not n.is_int:
                    n.replace(exp.cast(n.copy(), "REAL", dialect=Postgres))
    for node in reversed(list(root.find_all(*ARITHMETIC, exp.Cast))):  # the innermost first
        if _may_be_nan(node) and not _is_mended_around(node):
            node.replace(exp.Nullif(this=node.copy(), expression=NAN.copy()))
    for node in list(root.find_all(exp.Column)):
        column: Tree = exp.column(full_name(node))
        if schema.get(full_name(node)) == pl.UInt64 and node.find_ancestor(*ARITHMETIC, exp.Neg):
            column = exp.cast(column, "INT128", dialect=Postgres)
        node.replace(column)
    return root.sql(dialect=PolarsSQL, identify=True, comments=False)


def _inside(comparison: Tree) -> list[Tree]:
    """Returns the nodes of a comparison, without those inside another comparison."""
    return list(comparison.walk(prune=lambda n: n is not comparison and isinstance(n, COMPARISONS)))


def _is_mended_around(node: Tree) -> bool:
    """Returns whether an enclosing node is NaN whenever this one is, and is rewritten for both.

    In brackets inside POWER it is not: POWER((NaN), 0) is 1 in polars, and null here.
    """
    around = node.parent
    if _may_be_nan(around):
        return True
    is_passed_on = False
    while isinstance(around, exp.Paren) or _may_be_nan(around):
        if isinstance(around, exp.Pow):
            return False
        is_passed_on |= not isinstance(around, exp.Paren)
        around = around.parent
    return is_passed_on


def _may_be_nan(node: Tree) -> bool:
    cast_to_float = isinstance(node, exp.Cast) and node.to.is_type("float", "double")
    return isinstance(node, ARITHMETIC) or (cast_to_float and not node.this.is_number)
