"""What mkdocs changes in the documents as `make docs` makes pages of them."""

import posixpath
import re
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"\A```(\w+) (\S+)\n")
STAGE = re.compile(r"(?<![\[`])`([a-z]+)\.([a-z_0-9]+)`(?![\]`])")
LINK = re.compile(r"!?\[([^\]]*)\]\((?!https?:|#)([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Markdown with names of stages as links, without links that lead out of the documents."""
    here = posixpath.dirname(page.file.src_uri)
    stages = {
        name
        for kind in Path(config["docs_dir"], "stages").glob("*.md")
        for name in re.findall(r"^## (\S+)$", kind.read_text(encoding="utf-8"), re.MULTILINE)
    }

    def stage(found: re.Match[str]) -> str:
        kind, name = found.groups()
        target = posixpath.relpath(f"stages/{kind}.md", here or ".")
        is_there = f"{kind}.{name}" in stages and page.file.src_uri != f"stages/{kind}.md"
        return f"[{found[0]}]({target}#{kind}{name})" if is_there else found[0]

    def link(found: re.Match[str]) -> str:
        leaves = posixpath.normpath(posixpath.join(here, found[2])).startswith("..")
        return found[1] if leaves else found[0]

    def line(text: str) -> str:
        return text if text.startswith("#") else STAGE.sub(stage, LINK.sub(link, text))

    done, end = [], 0
    for fence in FENCE.finditer(markdown):
        done += map(line, markdown[end : fence.start()].splitlines(keepends=True))
        done.append(FILE.sub(r'```\1 title="\2"' + "\n", fence[0]))
        end = fence.end()
    return "".join([*done, *map(line, markdown[end:].splitlines(keepends=True))])
