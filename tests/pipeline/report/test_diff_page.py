"""The page of a diff: pictures of both ways, hostile captions as text, legible at any width."""

from pathlib import Path

import pytest
import yaml

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.selection.diff import Diff, diff
from clipmill.pipeline.ledger.selection.sides import side_of
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.report.diff_page import diff_page
from clipmill.pipeline.report.page import MINUS
from tests import drawn
from tests.legible import LEADING_NOWHERE, faults, looks
from tests.parsed import Page

STAGES = """
pool:    {uses: ingest.image_folder, path: none, shard_rows: 25}
caption: {uses: annotate.caption, from: pool}
look:    {uses: annotate.image, from: pool}
subset:
  uses: select.where
  from: [caption, look]
  where: caption_words >= 2 AND min_side >= 10
  top: {column: luma_std, fraction: 0.6}
"""


def as_variant(folder: Path, text: str) -> None:
    stages = yaml.safe_load(text)
    stages["pool"]["path"] = str(folder / "pool")
    plan = make_plan(Recipe(name="drawn", path="drawn.yaml", seed=0, stages=stages))
    assert run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines()).complete


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run with two variants, which keep other rows of a pool of pictures."""
    folder = tmp_path_factory.mktemp("drawn")
    drawn.run(folder, STAGES)
    changed = STAGES.replace("caption_words >= 2 AND min_side >= 10", "min_side >= 30")
    as_variant(folder, changed.replace("0.6", "0.7"))
    return folder


@pytest.fixture(scope="module")
def found(folder) -> tuple[Diff, str]:
    before, after = (side_of(text, str(folder / "run")) for text in ("1", "2"))
    answer = diff(before, after)
    return answer, diff_page(before, after, answer)


def test_the_page_has_every_count_and_pictures_of_both_ways(found):
    answer, html = found
    page = Page(html)
    assert min(answer.both, answer.gained, answer.lost, answer.moved) > 0
    for said in (f"+{answer.gained} gained", f"{MINUS}{answer.lost} lost", f"{answer.both} kept"):
        assert said in page.text
    assert "subset.where caption_words >= 2 AND min_side >= 10 min_side >= 30" in page.text
    for kind, title in (("gained", "Gained"), ("lost", "Lost")):
        part = html.partition(f'<h2 id="{kind}">{title}</h2>')[2].partition("<h2")[0]
        assert part.count("<img ") == sum(
            min(12, move.rows) for move in answer.moves if move.kind == kind
        )
        for move in answer.moves:
            if move.kind == kind:
                assert all(row.uid[:8] in part for row in move.examples)


def test_a_hostile_caption_stays_text_and_nothing_is_asked_for(found):
    _, html = found
    page = Page(html)
    assert page.asks_for_nothing()
    assert "<script>alert(2)" not in html
    assert "onerror=alert(1)> a tale" in page.text


def test_nothing_is_off_screen_and_all_is_legible(found, tab, tmp_path):
    (tmp_path / "diff.html").write_text(found[1])
    assert [bad for _ in looks(tab, tmp_path / "diff.html") for bad in faults(tab)] == []
    assert tab.value(LEADING_NOWHERE) == []


def test_the_verb_writes_it_and_two_equal_sides_make_a_page_too(folder, clipmill, tmp_path):
    for sides in (("1", "2"), ("2", "2"), ("look", "subset")):
        page = tmp_path / "diff.html"
        said = clipmill("diff", *sides, "--run", folder / "run", "--html", page)
        assert said.code == 0, said.err
        assert Page(page.read_text()).asks_for_nothing()
    assert clipmill("diff", "2", "2", "--run", folder / "run", "--html", page).code == 0
    assert "No row is kept by one side alone" in page.read_text()
