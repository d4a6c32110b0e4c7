"""Arrow imports pandas with its first array where it is installed: clipmill goes without."""

import subprocess
import sys
from pathlib import Path

import pytest

PLAN = """
import sys
from clipmill.pipeline.cli import main
sys.argv = ["clipmill", "plan", sys.argv[1]]
assert main() == 0
print("pandas" in sys.modules)
"""
OPEN = """
import contextlib, sys
import clipmill
import pyarrow as pa
with contextlib.suppress(clipmill.ClipmillError):
    clipmill.open(sys.argv[1])
pa.array([1])
print("pandas" in sys.modules)
import pandas as pd
print(pa.array(pd.Series([1.0, None])).null_count)
"""
FRAME = """
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from clipmill.metadata.schema import REASON, REASON_TYPE, TEXT, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker

LENGTH = Column("length", pa.int64(), "", "Length of the text.")


@dataclass(frozen=True, kw_only=True)
class Length(RowStage):
    '''Length of the cat in a text, by pandas.'''

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (LENGTH,)

    def open(self, worker: Worker) -> RowFunction:
        return lengths


def lengths(batch: pa.Table) -> pa.Table:
    first = pd.Series(batch["text"].to_pylist()).str.extract("(cat)")[0]
    length = pa.array(first.str.len()).cast(pa.int64())  # NaN is null, for Arrow knows a Series
    return pa.table({"length": length, "reason": pa.nulls(len(batch), REASON_TYPE)})
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "links.csv").write_text(
        "url,text\nhttp://a.test/1.jpg,a dog\nhttp://a.test/2.jpg,cat\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"stages:\n  pool: {{uses: ingest.url_list, path: {tmp_path}/links.csv}}\n")
    return recipe


def said(*arguments: object) -> str:
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def test_a_command_imports_no_pandas(recipe):
    pytest.importorskip("pandas")
    assert said("-c", PLAN, recipe).splitlines()[-1] == "False"


@pytest.mark.slow("an interpreter that imports pandas")
def test_an_opened_run_imports_no_pandas_and_arrow_takes_a_series_still(tmp_path):
    pytest.importorskip("pandas")
    assert said("-c", OPEN, tmp_path / "none").split() == ["False", "1"]


@pytest.mark.slow("starts a command and its worker")
def test_a_stage_of_ones_own_may_hand_arrow_a_series(recipe, tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "stages" / "score").mkdir(parents=True)
    (tmp_path / "stages" / "score" / "length.py").write_text(FRAME)
    recipe.write_text(recipe.read_text() + "  long: {uses: score.length, from: pool}\n")
    run = ("run", recipe, "--out", tmp_path / "run", "--workers", 1)
    assert "done: 2 stages" in said("-m", "clipmill.pipeline.cli", *run)
