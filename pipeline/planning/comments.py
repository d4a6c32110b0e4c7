"""Reads the comments of a stage's settings from its source."""

import ast
import inspect
import io
import tokenize
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from clipmill.pipeline.own_code import parsed


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
