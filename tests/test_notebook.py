"""docs/python.ipynb runs from its first cell to its last, and its counts are the funnel's."""

import ast
import json
from pathlib import Path

import pytest

import clipmill
from tests.parsed import Page

NOTEBOOK = Path(__file__).parents[1] / "docs" / "python.ipynb"


def shown_by(code: str, names: dict) -> object:
    """Runs a cell; the value of its last line, if that is one, as a notebook would show it."""
    *lines, last = ast.parse(code).body
    if not isinstance(last, ast.Expr):
        exec(compile(ast.parse(code), "cell", "exec"), names)
        return None
    exec(compile(ast.Module(lines, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.slow("all cells of the notebook, and the run that they start")
def test_the_notebook_runs_and_its_counts_are_those_of_the_funnel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (
        4,
        len(notebook["cells"]),
    )
    names: dict = {}
    pages = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "a reader's own run fills them"
            code = "".join(cell["source"])
            answer = shown_by(code, names)
            if hasattr(answer, "_repr_html_"):
                pages[code.splitlines()[-1]] = Page(answer._repr_html_())
    (end,) = clipmill.open(tmp_path / "run").funnel().ends
    assert (end.kept, end.rows) == answer == (4, 24)
    assert "4 16.7% kept by best" in pages["run.funnel()"].text
    assert len(pages['run.images("best", some[:8])'].all("img")) == 8
    assert len(pages["run.why(some[0])"].all("img")) == 1
    assert pages['run.sweep("best", "caption_words=1:7:2")'].all("img")
