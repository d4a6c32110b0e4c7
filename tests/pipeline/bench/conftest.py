"""A finished run over a folder of drawn pictures, from whose stages arms are made."""

import io
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.pools.evaluation import EvaluationSet, write_set
from clipmill.pipeline.progress import Lines
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
    draw_pool(pool, rows)
    return run_over(pool, folder / "run", stages)


def draw_pool(pool: Path, rows: int) -> None:
    """Pictures and captions as an image folder has them."""
    lines = []
    for row in range(rows):
        draw(pool / f"{row:03}.png", row)
        lines.append(json.dumps({"file_name": f"{row:03}.png", "text": caption(row)}))
    (pool / "metadata.jsonl").write_text("\n".join(lines))


def run_over(pool: Path, run: Path, stages: str = STAGES) -> Path:
    """A finished run over a folder of pictures."""
    recipe = yaml.safe_load(stages)
    recipe["pool"]["path"] = str(pool)
    plan = make_plan(Recipe(name="drawn", path="drawn.yaml", seed=0, stages=recipe))
    outcome = run_plan(plan, Storage(str(run)), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    return run


def tasks_of(folder: Path) -> Path:
    """A folder of tasks: 14 classes, and captions of which one is a row's."""
    images = {f"{n:02}": _picture(n) for n in range(14)}
    names = [f"disc {n}" for n in range(14)]
    classes = {key: number for number, key in enumerate(images)}
    write_set(EvaluationSet("discs", images, classes, names), folder)
    captions = {key: [f"number {int(key)}"] for key in images}
    write_set(EvaluationSet("words", images, captions=captions), folder)
    return folder


def _picture(number: int) -> bytes:
    image, held = Image.new("RGB", (24, 24), "white"), io.BytesIO()
    ImageDraw.Draw(image).ellipse((2, 2, 8 + number, 20), fill=(19 * number % 256, 90, 9 * number))
    image.save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="package")
def drawn_run(tmp_path_factory) -> Path:
    """The run folder."""
    return run_of(tmp_path_factory.mktemp("arms"))
