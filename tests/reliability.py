"""Fills docs/reliability.md: where each row's tests run, how often, and which tests find faults.

    python -m tests.reliability [SOAK.json ...]

A row names its tests by links, `[name](../tests/file.py)`, and may narrow a file down to one test
in backticks behind the link. The files are what shares of a soak leave in `.soak/`. Rows of faults
have their number and their tests from tests/mutants.yaml.
"""

import ast
import json
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

from tests.mutants import all_mutants

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
LINK = re.compile(r"\]\(\.\./(tests/[^)]+\.py)\)(?: `(\w+)`)?")
FAULTS = re.compile(r"^\| `([a-z ]+)` (?=\| \d+ \| )")
MARK = re.compile(r"\bmark\.(chaos|drawn|soak)\b")


def filled(page: str, tries: Counter[str] | None) -> str:
    """The page with its columns `runs in` and, where tries are given, `last soak`."""
    lines = [with_faults(line) for line in page.splitlines(keepends=True)]
    for number, line in enumerate(lines):
        tests = ids_of(line)
        if line.startswith("| ") and tests:
            cells = line.rstrip("\n").split(" | ")
            parts = set().union(*map(parts_of, tests))
            cells[-2] = " and ".join(sorted(parts, reverse=True))
            if tries is not None:
                count = sum(n for name, n in tries.items() if any(named(it, name) for it in tests))
                cells[-1] = f"{count:,} |" if "soak" in parts else "- |"
            lines[number] = " | ".join(cells) + "\n"
    return "".join(lines)


def with_faults(line: str) -> str:
    """A row of faults with all that break its promise, and links to the tests; others as is."""
    row = FAULTS.match(line)
    if row is None:
        return line
    faults = [fault for fault in all_mutants() if fault.promise == row[1]]
    files = sorted({test.partition("::")[0] for fault in faults for test in fault.tests})
    names = [re.sub(r"^tests/(pipeline/|stages/|metadata/)?|\.py$", "", file) for file in files]
    links = [f"[{name}](../{file})" for name, file in zip(names, files, strict=True)]
    return " | ".join([row[0].rstrip(), str(len(faults)), ", ".join(links), *line.split(" | ")[3:]])


def ids_of(line: str) -> list[str]:
    """Ids of the tests that a row names: of a file, or of one test in it."""
    return [f"{file}::{name}" if name else f"{file}::" for file, name in LINK.findall(line)]


def named(test: str, name: str) -> bool:
    return name == test or (test.endswith("::") and name.startswith(test))


def parts_of(test: str) -> set[str]:
    """`test` and `soak`: where a file's tests, or the cases of one, run."""
    file, _, name = test.partition("[")[0].partition("::")
    name = name.rpartition("::")[2]  # without its class
    text = (ROOT / file).read_text(encoding="utf-8")
    is_there = re.search(rf"^ *def {name or 'test_[a-z0-9_]+'}\(", text, re.MULTILINE)
    assert is_there, f"docs/reliability.md or tests/mutants.yaml names {test}, which is not there"
    if not MARK.search(text):  # nor need it be parsed, which takes ten times as long
        return {"test"}
    nodes = nodes_of(text)
    whole = [ast.unparse(node) for node in nodes if _is_pytestmark(node)]
    parts: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and re.fullmatch(name or "test_.*", node.name):
            marks = "".join([*whole, *map(ast.unparse, node.decorator_list)])
            found = set(MARK.findall(marks))
            parts |= {"soak"} if found & {"soak", "drawn"} else set()
            parts |= {"test"} if "soak" not in found or "pytest.param(" in marks else set()
    return parts


@cache
def nodes_of(text: str) -> list[ast.stmt]:
    """What stands in a file of tests, and in its classes."""
    body = ast.parse(text).body
    return body + [node for top in body if isinstance(top, ast.ClassDef) for node in top.body]


def _is_pytestmark(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"


if __name__ == "__main__":
    shares = [json.loads(Path(path).read_text()) for path in sys.argv[1:]]
    tries = sum((Counter(share) for share in shares), Counter()) if shares else None
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tries), encoding="utf-8")
