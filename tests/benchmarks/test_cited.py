"""Each benchmark holds up a claim that a document or source file makes by its name; ratios fall."""

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as bench
from tests.benchmarks.__main__ import HELPERS, HERE, Ran, names, ratios_in

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


@pytest.mark.parametrize(
    ("least", "median", "greatest", "is_fall"),
    [(1.3, 1.31, 1.32, False), (1.28, 1.29, 1.3, True), (1.0, 1.1, 1.5, False), (1, 1, 1, True)],
)
def test_a_ratio_that_fell_by_more_than_its_spread_fails(
    least, median, greatest, is_fall, monkeypatch, tmp_path, capsys
):
    line = "  minhash     20,000 script   1.25 (1.3)  {:.2f}x ({:.2f} to {:.2f})"
    said = [line.format(1.5, 1.4, 1.6)]
    (tmp_path / "medians.yaml").write_text("")
    monkeypatch.setattr(bench, "MEDIANS", tmp_path / "medians.yaml")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        bench, "ran", lambda name, _: Ran(name, "", "", 1, 1, "ok", ratios_in(f"a\n{said[-1]}\nb"))
    )
    monkeypatch.setattr(sys, "argv", ["", "store", "as_users"])
    assert not bench.main()
    monkeypatch.setattr(sys, "argv", ["", "as_users"])
    assert not bench.main()
    said.append(line.format(median, least, greatest))
    assert bench.main() == is_fall
    told = f"fell: as_users, minhash: 1.50x to {median:.2f}x"
    assert (told in capsys.readouterr().out) == is_fall
