"""Lists the packages that clipmill, an extra, or the Python files of some stages need."""

import ast
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from clipmill.pipeline.extras import EXTRAS
from clipmill.pipeline.own_code import parsed

HERE = Path(__file__).parents[1]  # the folder imported as clipmill


def required(extra: str = "") -> Iterator[Requirement]:
    """Yields clipmill's requirements on this machine: the base's, or those an extra adds."""
    for text in metadata.requires("clipmill") or ():
        requirement = Requirement(text)
        always, here = (
            requirement.marker is None or requirement.marker.evaluate({"extra": name})
            for name in ("", extra)
        )
        if here and not (extra and always) and requirement.name != "clipmill":
            yield requirement


def extras_of(sources: Iterable[bytes]) -> set[str]:
    """Returns the extras that Python files import, directly or through clipmill's own files."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(sources)
    while waiting:
        for node in ast.walk(parsed(waiting.pop())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                top, _, below = name.partition(".")
                found |= {EXTRAS[top]} if top in EXTRAS else set()
                file = HERE / f"{below.replace('.', '/')}.py"
                if top == "clipmill" and name not in seen and file.is_file():
                    waiting.append(file.read_bytes())
                seen.add(name)
    return found
