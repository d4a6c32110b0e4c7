"""Fills the last two columns of docs/reliability.md: where each row's tests run, and how often.

    python -m tests.reliability [SOAK.json ...]

A row names its tests by links, `[name](../tests/file.py)`, and may narrow a file down to one test
in backticks behind the link. The files are what shares of a soak leave in `.soak/`.
"""

import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
LINK = re.compile(r"\]\(\.\./(tests/[^)]+\.py)\)(?: `(\w+)`)?")
MARK = re.compile(r"\bmark\.(chaos|drawn|soak)\b")


def filled(page: str, tries: Counter[str] | None) -> str:
    """The page with its columns `runs in` and, where tries are given, `last soak`."""
    lines = page.splitlines(keepends=True)
    for number, line in enumerate(lines):
        tests = ids_of(line)
        if line.startswith("| ") and tests:
            cells = line.rstrip("\n").split(" | ")
            cells[-2] = " and ".join(sorted(set().union(*map(parts_of, tests)), reverse=True))
            if tries is not None:
                count = sum(n for name, n in tries.items() if any(named(it, name) for it in tests))
                cells[-1] = f"{count:,} |" if count else "0 |"
            lines[number] = " | ".join(cells) + "\n"
    return "".join(lines)


def ids_of(line: str) -> list[str]:
    """Ids of the tests that a row names: of a file, or of one test in it."""
    return [f"{file}::{name}" if name else f"{file}::" for file, name in LINK.findall(line)]


def named(test: str, name: str) -> bool:
    return name == test or (test.endswith("::") and name.startswith(test))


def parts_of(test: str) -> set[str]:
    """`test` and `soak`: where a file's tests, or the cases of one, run."""
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    whole = [ast.unparse(node) for node in tree.body if _is_pytestmark(node)]
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and is_test(node)]
    parts: set[str] = set()
    for node in tests:
        if node.name == (name or node.name):
            marks = "".join([*whole, *map(ast.unparse, node.decorator_list)])
            found = set(MARK.findall(marks))
            parts |= {"soak"} if found & {"soak", "drawn"} else set()
            parts |= {"test"} if "soak" not in found or "pytest.param(" in marks else set()
    assert parts, f"docs/reliability.md names {test}, which is not there"
    return parts


def is_test(node: ast.FunctionDef) -> bool:
    return node.name.startswith("test_")


def _is_pytestmark(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"


if __name__ == "__main__":
    shares = [json.loads(Path(path).read_text()) for path in sys.argv[1:]]
    tries = sum((Counter(share) for share in shares), Counter()) if shares else None
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tries), encoding="utf-8")
