"""`--json` of every question: the same text as ever, which scripts read."""

import re
from pathlib import Path

import pytest

from tests import numbered
from tests.pipeline.ledger.test_planted import RECIPE, STAGE
from tests.pipeline.ledger.test_why import NAMED, ROWS, number, write_named

pytestmark = pytest.mark.usefixtures("own_stages")
ANSWERS = Path(__file__).parent / "json"


def same(said, name: str, folder: Path) -> None:
    """The answer is the stored one, but for the folder and the digests in names."""
    assert said.code == 0, said.err
    shown = re.sub(r"-[0-9a-f]{12}\b", "-DIGEST", said.out.replace(str(folder), "FOLDER"))
    assert shown == (ANSWERS / f"{name}.json").read_text()


def test_funnel_and_sweep_and_why(clipmill, tmp_path):
    numbered.write_pool(tmp_path)
    numbered.run(tmp_path)
    run = ("--run", tmp_path / "run", "--json")
    same(clipmill("funnel", *run), "funnel", tmp_path)
    vary = ("--stage", "last", "--vary", "b=16:19:1")
    same(clipmill("sweep", *vary, *run), "sweep", tmp_path)
    for row in (6, 9, 10, 16):
        same(clipmill("why", numbered.uid(row), *run), f"why_{row}", tmp_path)


def test_why_of_rows_that_have_a_keeper_or_are_one(clipmill, tmp_path):
    write_named(tmp_path)
    numbered.run(tmp_path, NAMED.replace("tasks: none", f"tasks: {tmp_path / 'tasks'}"))
    for row in range(len(ROWS)):
        said = clipmill("why", number(row), "--run", tmp_path / "run", "--json")
        same(said, f"why_named_{row}", tmp_path)


def test_pool_score(clipmill, generated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages" / "mine").mkdir(parents=True)
    (tmp_path / "stages" / "mine" / "length.py").write_text(STAGE)
    (tmp_path / "it.yaml").write_text(RECIPE % generated)
    assert clipmill("run", "it.yaml", "--out", "run", "--workers", "0").code == 0
    run = ("--run", tmp_path / "run", "--json")
    same(clipmill("pool", "score", generated, *run), "score", tmp_path)
