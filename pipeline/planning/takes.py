"""Describes the type, range and meaning of a setting in words."""

import ast
import inspect
import io
import re
import tokenize
from dataclasses import is_dataclass
from functools import cache
from typing import Any

import msgspec.inspect as types

from clipmill.pipeline.own_code import parsed

PART = re.compile(r"\.(\w+)|\[(\d+)\]")  # of a path as msgspec writes it: `$.keep[0].order`


def setting_types(cls: type) -> dict[str, types.Type]:
    """Returns the type of each setting of a stage, or of a group of settings such as `top`."""
    info = types.type_info(cls)
    assert isinstance(info, types.DataclassType)
    return {field.name: field.type for field in info.fields}


def in_words(kind: types.Type) -> str:
    """Returns what to write for a setting of this type: `a whole number, at least 1`."""
    match kind:
        case types.UnionType(types=several):
            named = (part for part in several if not isinstance(part, types.NoneType))
            return " or ".join(map(in_words, named))  # to leave the setting out does the same
        case types.IntType() | types.FloatType():
            word = "a whole number" if isinstance(kind, types.IntType) else "a number"
            return ", ".join(part for part in (word, range_of(kind)) if part)
        case types.StrType():
            return "text, not empty" if kind.min_length else "text"
        case types.LiteralType(values=values):
            return f"one of: {', '.join(map(str, values))}" if len(values) > 1 else str(values[0])
        case types.DataclassType(fields=fields):
            return f"{{{', '.join(f'{field.name}: …' for field in fields)}}}"
        case types.VarTupleType(item_type=item):
            return f"a list [{in_words(item)}, …]"
        case types.DictType(key_type=key, value_type=value):
            return f"{{{in_words(key)}: {in_words(value)}}}"
        case types.BoolType():
            return "true or false"
    return str(kind)  # a type that only a user's own stage has


def range_of(kind: types.IntType | types.FloatType) -> str:
    """Returns `at least 1`, `above 0, at most 1`; empty if any number is valid."""
    bounds = ((kind.ge, "at least"), (kind.gt, "above"), (kind.le, "at most"), (kind.lt, "below"))
    return ", ".join(f"{word} {bound:,}" for bound, word in bounds if bound is not None)


def at_path(cls: type, settings: Any, path: str) -> tuple[tuple[str, ...], Any, types.Type]:
    """Returns keys, value and type at a path as msgspec writes it: `$.top.fraction`."""
    keys: list[str] = []
    kind: types.Type = types.type_info(cls)
    value = settings
    for name, number in PART.findall(path):
        several = kind.types if isinstance(kind, types.UnionType) else (kind,)
        for part in several:
            if name and isinstance(part, types.DataclassType):
                kind = next(field.type for field in part.fields if field.name == name)
                value = value.get(name)
                keys.append(name)
            elif number and isinstance(part, types.VarTupleType):
                kind, value = part.item_type, value[int(number)]
    return tuple(keys), value, kind


def comments_of(cls: type[Any]) -> dict[str, str]:
    """Returns the comment of each field: on its line and on comment lines right above it.

    A field that is declared again without a comment keeps the comment of its base class.
    """
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            comments |= {name: text for name, text in _own_comments(base).items() if text}
    return comments


@cache  # finding a class parses its whole file
def _own_comments(cls: type[Any]) -> dict[str, str]:
    source = inspect.cleandoc("\n" + inspect.getsource(cls))
    beside: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            beside[token.start[0]] = token.string.lstrip("# ").strip()
    lines = source.splitlines()
    (body,) = (node.body for node in parsed(source).body if isinstance(node, ast.ClassDef))
    comments = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first, last = node.lineno, node.end_lineno or node.lineno
            while first - 1 in beside and lines[first - 2].lstrip().startswith("#"):
                first -= 1
            texts = [beside[line] for line in range(first, last + 1) if line in beside]
            comments[node.target.id] = " ".join(texts)
    return comments
