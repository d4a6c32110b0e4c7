"""Plain English, counted: what may only fall. `python -m tests.test_words` prints the counts."""

import ast
import re
from collections import Counter
from contextlib import suppress

from tests.test_layers import SOURCE

# Docstrings that say neither what is returned nor what is done, by their first word.
OPENING = re.compile(
    r"(The same|It|Those|Which|What|Whether|Of|That|Where|How|As|None|Nothing|So many|Who|When"
    r"|Why|One that|Them|These|Such|With|By|To)\b"
)
NAMES = {"it", "one", "at", "of", "told", "asked"}  # that say nothing of a value
MOST = {"openings": 5, "it": 22, "one": 3, "at": 5, "of": 12, "told": 0, "asked": 3}


def counts() -> Counter[str]:
    """Docstrings that open so, and uses of each name, in all of the source."""
    found: Counter[str] = Counter()
    for folder in ("metadata", "pipeline", "stages"):
        for path in (SOURCE / folder).rglob("*.py"):
            for node in ast.walk(parsed(path.read_text("utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    found["openings"] += bool(OPENING.match(ast.get_docstring(node) or ""))
                elif isinstance(node, ast.Name | ast.arg):
                    name = node.id if isinstance(node, ast.Name) else node.arg
                    found.update({name} & NAMES)
    return found


def parsed(text: str) -> ast.Module:
    """Parses it again where another thread parsed at the same time: Python 3.11 counts their
    depths together, and raises SystemError."""
    for _ in range(9):
        with suppress(SystemError):
            return ast.parse(text)
    raise AssertionError("a thread that parses without end")


def test_words_that_say_little_do_not_spread():
    found = counts()
    assert {name: found[name] for name, most in MOST.items() if found[name] > most} == {}


if __name__ == "__main__":
    print(dict(counts()))
