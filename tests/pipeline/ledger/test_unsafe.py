"""Pictures that score as unsafe: blurred on every page and in the explorer, unless asked for."""

import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from clipmill.metadata.schema import PUNSAFE, SAFETY_TAG
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.explore.session import Session
from clipmill.pipeline.explore.shown import picture_of
from clipmill.pipeline.ledger.rows.pictures import images
from clipmill.pipeline.ledger.rows.unsafe import unsafe_at
from clipmill.pipeline.notebook.answers import Images
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder.state import RunState
from clipmill.stages.annotate.image import AnnotateImage

STAGES = """
pool: {uses: ingest.image_folder, path: PICTURES, shard_rows: 2}
look: {uses: annotate.image, from: pool}
light: {uses: select.where, from: look, where: mean_luma >= 100}
first: {uses: ingest.image_folder, path: PICTURES}
both:  {uses: ingest.union, from: [first, look], images: true}
"""
PLACES = [(0, 0), (0, 1), (1, 0)]


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunState:
    """Stripes of black and grey, of black and white, and a file that is no picture."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, light in (("a", 80), ("b", 255)):
        stripes = np.zeros((96, 96, 3), np.uint8)
        stripes[:, ::2] = light
        Image.fromarray(stripes).save(pictures / f"{name}.png")
    (pictures / "c.png").write_bytes(b"no picture")
    columns = (
        replace(column, unsafe_above=60.0) if column.name == "mean_luma" else column
        for column in AnnotateImage.writes
    )
    monkeypatch.setattr(AnnotateImage, "writes", tuple(columns))
    stages = yaml.safe_load(STAGES.replace("PICTURES", str(pictures)))
    plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages))
    return run_plan(plan, Storage(str(tmp_path / "run")), LocalExecutor(0), Lines()).state


def contrast(body: bytes) -> float:
    inside = np.asarray(Image.open(BytesIO(body)).convert("L"))[30:-30, 30:-30]  # edges bleed in
    return float(inside.std())


def test_only_a_picture_above_the_bound_is_unsafe_and_none_where_they_are_asked_for(run):
    assert unsafe_at(run, "pool", PLACES) == [False, True, False]
    run.show_unsafe = True
    assert unsafe_at(run, "pool", PLACES) == [False, False, False]


def test_what_was_unsafe_before_a_union_is_after_it(run):
    shards = [(0, position) for position in range(3)] + [(1, 0), (1, 1), (2, 0)]
    assert unsafe_at(run, "both", shards) == [False] * 3 + [False, True, False]
    drawn = [sample["picture"] for sample in samples_at(run, "both", shards[3:5]).values()]
    assert [contrast(b64decode(p["src"].partition(",")[2])) > 5 for p in drawn] == [True, False]


@pytest.mark.parametrize("show_unsafe", [False, True])
def test_it_is_blurred_past_recognition_wherever_it_is_drawn(run, tmp_path, show_unsafe):
    run.show_unsafe = show_unsafe
    pages = [sample["picture"] for sample in samples_at(run, "look", PLACES).values()]
    safe, unsafe = (contrast(b64decode(p["src"].partition(",")[2])) for p in pages[:2])
    assert safe > 30
    assert (unsafe > 100) == show_unsafe
    assert show_unsafe or unsafe < 5
    session = Session(run.run.uri, tmp_path / "it.yaml", show_unsafe=show_unsafe)
    columns = session.roots["pool"]
    drawn = [picture_of(columns, row, 96) for row in range(2)]
    assert [contrast(body) > 30 for _, body in drawn] == [True, show_unsafe]


def test_a_notebook_draws_it_blurred_and_has_its_bytes(run):
    uids = [sample["uid"] for sample in samples_at(run, "look", PLACES[:2]).values()]
    found = Images(images(run, "look", uids))
    assert [image.is_unsafe for image in found.values()] == [False, True]
    bodies = re.findall(r'base64,([^"]+)', found._repr_html_())
    assert [contrast(b64decode(body)) > 30 for body in bodies] == [True, False]
    assert contrast([*found.values()][1].image) > 100


VERBS = [
    ("report", "--out"),
    ("show", "look", "--html"),
    ("sweep", "--stage", "light", "--vary", "mean_luma=0:200:100", "--html"),
]


@pytest.mark.parametrize("verb", VERBS, ids=["report", "show", "sweep"])
def test_the_verbs_blur_unless_told_not_to(verb, run, clipmill, tmp_path):
    page = tmp_path / "page.html"
    bodies = []
    for more in ((), ("--show-unsafe",)):
        said = clipmill(*verb[:-1], "--run", run.run.uri, verb[-1], page, *more)
        assert said.code == 0, said.err
        bodies.append(page.read_text())
    assert bodies[0] != bodies[1]


def test_a_tag_that_is_not_safe_is_unsafe_and_one_that_is_missing_is_not():
    tags = pa.array(["UNLIKELY", "UNSURE", "NSFW", None])
    assert SAFETY_TAG.unsafe(tags).tolist() == [False, True, True, False]
    scores = pa.array([0.5, 0.51, None], pa.float32())
    assert PUNSAFE.unsafe(scores).tolist() == [False, True, False]
    assert not replace(PUNSAFE, unsafe_above=None).unsafe(scores).any()
