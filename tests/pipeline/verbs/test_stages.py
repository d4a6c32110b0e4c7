"""`clipmill stages`: every stage described from its file, its example planned, its page in docs."""

import re
from pathlib import Path

import pytest

from clipmill.pipeline.planning.described import described, recipe_of
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.planning.settings import NO_STAGES, known_uses, stage_class
from clipmill.pipeline.verbs.stages import pages

ROOT = Path(__file__).parents[3]
OURS = sorted(
    f"{file.parent.name}.{file.stem}"
    for file in (ROOT / "clipmill" / "stages").glob("*/[a-z]*.py")
    if file.parent.name not in NO_STAGES
)
OWN = """
from dataclasses import dataclass
import pyarrow as pa
from clipmill.metadata.schema import TEXT, Column
from clipmill.pipeline.stage import RowStage

@dataclass(frozen=True, kw_only=True)
class Shouting(RowStage):
    \"\"\"Share of capitals.

    Error: none.
    Example: {min_letters: 4}
    \"\"\"

    min_letters: int  # fewer are
    # too few
    weight: float = 1.5

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (Column("capitals", pa.float32(), "0 to 1", "Capitals among the letters."),)

    def open(self, worker): ...
"""


def test_every_setting_and_column_of_every_stage_has_a_meaning():
    for said in map(described, OURS):
        assert said.title, said.uses
        assert said.gives, said.uses
        assert "Example: {" in stage_class(said.uses, "").__doc__, said.uses
        silent = [setting.name for setting in said.settings if not setting.meaning]
        assert not silent, f"{said.uses}: these want a comment beside them"
        assert all(column["doc"] for column in said.writes), said.uses


@pytest.mark.slow("a plan a stage")
def test_the_example_of_every_stage_plans(tmp_path):
    for uses in OURS:
        (tmp_path / "it.yaml").write_text(recipe_of(uses))
        plan = make_plan(load_recipe(str(tmp_path / "it.yaml")))
        assert uses in {stage.uses for stage in plan.stages.values()}
    assert len(OURS) > 50


def test_a_users_own_stage_changes_the_example_of_no_other(tmp_path, clipmill):
    ours = clipmill("stages", "select.combine").out
    (tmp_path / "stages/select").mkdir(parents=True)
    own = (ROOT / "clipmill/stages/select/sample.py").read_text()
    (tmp_path / "stages/select/per_host.py").write_text(own)
    assert clipmill("stages", "select.combine", "--stages", str(tmp_path / "stages")).out == ours


def test_the_list_has_a_line_for_each_by_kind(clipmill, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    lines = clipmill("stages").out.splitlines()
    assert set(OURS) <= {line.split()[0] for line in lines if line}
    assert all(len(line.split()) > 3 for line in lines if line)
    ingest = clipmill("stages", "ingest").out
    assert "ingest.url_list" in ingest
    assert "select.where" not in ingest
    listed = clipmill("stages", "--json").json
    assert {"uses": "score.clip_score", "title": described("score.clip_score").title} in listed


def test_a_page_has_settings_columns_reasons_source_and_an_example(clipmill, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = clipmill("stages", "download.images").out
    assert "  image_size  (whole number" in page
    assert "default: 512)\n      Pixels of the side that `resize` fits." in page
    assert "  http_status  (int16, code)\n      Last HTTP status" in page
    assert "  {uses: download.images, from: pool}" in page.replace("    images: ", "  ")
    for part in (
        "reasons:  no_url",
        "source:  img2dataset",
        "error:  results depend on the day",
        "--retry",
        "1 CPU",
    ):
        assert part in page
    assert "\n  refused: nothing listens there: start the server, or check host and port of" in page
    told = [line for line in page.splitlines() if not re.match(r"  \w+  \(|  \s*\w+: \{", line)]
    assert max(map(len, told)) <= 80


def test_json_says_the_same(clipmill):
    said = clipmill("stages", "select.where", "--json").json
    names = [setting["name"] for setting in said["settings"]]
    assert names[:3] == ["where", "top", "top.column"]
    assert said["writes"][0]["name"] == "keep"
    assert "uses: select.where" in said["recipe"]


def test_a_stage_in_the_folder_stages_is_listed_and_described(tmp_path, monkeypatch, clipmill):
    (tmp_path / "stages/score").mkdir(parents=True)
    (tmp_path / "stages/score/help_shouting.py").write_text('"""How loud it is."""\n' + OWN)
    (tmp_path / "stages/score/broken.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    own = ("--stages", "stages")
    listed = clipmill("stages", "score", *own).out
    assert "score.help_shouting  How loud it is." in listed
    assert "score.broken         cannot be read: mend the file" in listed
    page = clipmill("stages", "score.help_shouting", *own).out
    assert "  min_letters  (whole number; needed)\n      Fewer are.\n" in page
    assert "  weight  (number; default: 1.5)\n      Too few.\n" in page
    assert "help_shouting: {uses: score.help_shouting, from: pool, min_letters: 4}" in page
    broken = clipmill("stages", "score.broken", *own)
    assert broken.code == 2
    assert "cannot be imported" in broken.err
    text = OWN.replace("{min_letters: 4}", "min_letters: 4\n    weight: 2")
    (tmp_path / "stages/score/lines.py").write_text(text)
    lines = clipmill("stages", "score.lines", *own)
    assert (lines.code, "`Example:` of Shouting" in lines.err) == (2, True)


@pytest.mark.slow("describes every stage")
def test_the_list_in_docs_is_what_make_docs_writes():
    written = (ROOT / "docs/stages.md").read_text(encoding="utf-8")
    assert written == pages()["stages.md"], "run `make docs`"
    assert set(OURS) <= set(known_uses())
    assert all(f"\n| `{uses}` | " in written for uses in OURS)


@pytest.mark.slow("describes every stage, twice")
def test_docs_have_a_page_of_each_kind_with_all_of_its_stages(tmp_path, clipmill):
    assert clipmill("stages", "--docs", tmp_path / "site").code == 0
    there = {it.name: it.read_text("utf-8") for it in (tmp_path / "site/stages").iterdir()}
    assert {f"stages/{name}": page for name, page in there.items()} == {
        name: page for name, page in pages().items() if name != "stages.md"
    }
    assert all(f"\n## {uses}\n" in there[f"{uses.partition('.')[0]}.md"] for uses in OURS)
    assert not [name for name, page in there.items() if "](" in page.replace("`](", "")]
