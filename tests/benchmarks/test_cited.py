"""Each benchmark holds up a claim that a document or a source file makes by its name."""

import re
from pathlib import Path

from tests.benchmarks.__main__ import HELPERS, HERE, names

ROOT = HERE.parents[1]
CITED = re.compile(r"tests[./]benchmarks[./]([a-z]\w*)")


def cited(*files: Path) -> dict[str, Path]:
    """A file that names it, for each name."""
    return {name: file for file in files for name in CITED.findall(file.read_text("utf-8"))}


def test_each_benchmark_is_cited_begins_alike_and_each_cited_one_is_there():
    documents = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    folders = (ROOT / "clipmill" / name for name in ("metadata", "pipeline", "stages"))
    sources = [file for it in folders for end in ("py", "yaml") for file in it.rglob(f"*.{end}")]
    claimed = cited(*documents, *sources)
    named = claimed | cited(*ROOT.glob("tests/**/*.py"))
    every = set(names())
    faults = [f"{name}: no document, no source cites it" for name in every - claimed.keys()]
    faults += [f"{named[it]} cites {it}: none" for it in named.keys() - every - HELPERS]
    faults += [
        f"{name}: does not end in begin(main, …)"
        for name in every
        if "begin(main" not in (HERE / f"{name}.py").read_text("utf-8")
    ]
    assert not faults, "\n".join(sorted(faults))
