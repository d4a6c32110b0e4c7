"""`--json` of every question: the same text as ever, which scripts read."""

import re
from pathlib import Path

import pytest

from tests import numbered
from tests.pipeline.ledger.conftest import ROWS, number

pytestmark = pytest.mark.usefixtures("own_stages")
ANSWERS = Path(__file__).parent / "json"


def same(said, name: str, folder: Path) -> None:
    """The answer is the stored one, but for the folder and the digests in names."""
    assert said.code == 0, said.err
    shown = re.sub(r"-[0-9a-f]{12}\b", "-DIGEST", said.out.replace(str(folder), "FOLDER"))
    assert shown == (ANSWERS / f"{name}.json").read_text()


def test_funnel_and_sweep_and_why(clipmill, numbered_run):
    run = ("--run", numbered_run / "run", "--json")
    same(clipmill("funnel", *run), "funnel", numbered_run)
    vary = ("--stage", "last", "--vary", "b=16:19:1")
    same(clipmill("sweep", *vary, *run), "sweep", numbered_run)
    for row in (6, 9, 10, 16):
        same(clipmill("why", numbered.uid(row), *run), f"why_{row}", numbered_run)


def test_why_of_rows_that_have_a_keeper_or_are_one(clipmill, named):
    run = Path(str(named.run))
    for row in range(len(ROWS)):
        said = clipmill("why", number(row), "--run", run, "--json")
        same(said, f"why_named_{row}", run.parent)


def test_pool_score(clipmill, generated, ran):
    same(clipmill("pool", "score", generated, "--run", ran, "--json"), "score", ran.parent)
