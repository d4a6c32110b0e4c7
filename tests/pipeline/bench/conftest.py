"""A finished run over a folder of drawn pictures, from whose stages arms are made."""

import json
from pathlib import Path

import pytest
import yaml

from metadata.storage import Storage
from pipeline.engine.run import run_plan
from pipeline.executors.local import LocalExecutor
from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import Recipe
from pipeline.progress import Lines
from tests.drawn import draw

ROWS = 40
STAGES = """
pool:    {uses: ingest.image_folder, path: none, shard_rows: 15}
caption: {uses: annotate.caption, from: pool}
look:    {uses: annotate.image, from: pool}
long:    {uses: select.where, from: caption, where: caption_words >= 4}
large:   {uses: select.where, from: look, where: min_side >= 40}
nothing: {uses: select.where, from: caption, where: caption_words >= 99}
few:
  uses: select.where
  from: caption
  where: caption_words >= 2
  top: {column: caption_words, fraction: 0.08}
"""


def caption(row: int) -> str | None:
    """Every fifth one word, every third long, row 7 none."""
    if row == 7:
        return None
    number = f"number {row}" if row % 3 else f"large disc of number {row}"
    return "disc" if row % 5 == 0 else number


def run_of(folder: Path, stages: str = STAGES, rows: int = ROWS) -> Path:
    """The run folder: pictures of tests/drawn.py, of which each thirteenth does not decode."""
    pool = folder / "pool"
    pool.mkdir(parents=True)
    lines = []
    for row in range(rows):
        draw(pool / f"{row:03}.png", row)
        lines.append(json.dumps({"file_name": f"{row:03}.png", "text": caption(row)}))
    (pool / "metadata.jsonl").write_text("\n".join(lines))
    recipe = yaml.safe_load(stages)
    recipe["pool"]["path"] = str(pool)
    plan = make_plan(Recipe(name="drawn", path="drawn.yaml", seed=0, stages=recipe))
    outcome = run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    return folder / "run"


@pytest.fixture(scope="package")
def drawn_run(tmp_path_factory) -> Path:
    """The run folder."""
    return run_of(tmp_path_factory.mktemp("arms"))
