"""What stands beside the settings of a stage, from its source."""

import ast
import inspect
import io
import tokenize
from dataclasses import is_dataclass
from typing import Any


def comments_of(cls: type[Any]) -> dict[str, str]:
    """What stands beside each field, and on the lines of comment right above it.

    A field that is declared again without a comment keeps that of the class before.
    """
    found: dict[str, str] = {}
    for one in reversed([it for it in cls.__mro__ if is_dataclass(it)]):
        found |= {name: said for name, said in _own_comments(one).items() if said}
    return found


def _own_comments(cls: type[Any]) -> dict[str, str]:
    source = inspect.cleandoc("\n" + inspect.getsource(cls))
    beside: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            beside[token.start[0]] = token.string.lstrip("# ").strip()
    lines = source.splitlines()
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first, last = node.lineno, node.end_lineno or node.lineno
            while first - 1 in beside and lines[first - 2].lstrip().startswith("#"):
                first -= 1
            said = [beside[line] for line in range(first, last + 1) if line in beside]
            found[node.target.id] = " ".join(said)
    return found
