"""Pictures of a union's rows: those of the rows that it took, in `show --html` and the explorer."""

import json
from io import BytesIO

import pytest
import yaml
from PIL import Image

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.explore.session import Session
from clipmill.pipeline.ledger.rows.pictures import image_stages, pictured
from clipmill.pipeline.ledger.selection.show import ShowQuery, show
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.report.show_page import show_page
from clipmill.pipeline.run_folder.state import RunState

STAGES = """
left:  {uses: ingest.image_folder, path: LEFT, shard_rows: 2}
right: {uses: ingest.image_folder, path: RIGHT, shard_rows: 3}
links: {uses: ingest.url_list, path: LINKS}
two:   {uses: ingest.union, from: [left, links]}
words: {uses: annotate.caption, from: right}
both:  {uses: ingest.union, from: [words, two]}
count: {uses: annotate.caption, from: both}
"""
SIDES = {"left": [20, 21, 22, 23, 24], "right": [40, 41, 42, 43]}  # of each picture, in pixels
BOTH = [40, 41, 42, 43, 20, 21, 22, 23, 24, None, None]  # of a union's rows, in their order


@pytest.fixture(scope="module")
def union(tmp_path_factory) -> RunState:
    folder, text = tmp_path_factory.mktemp("pictured"), STAGES
    for name, sides in SIDES.items():
        (folder / name).mkdir()
        for side in sides:
            Image.new("RGB", (side, side), (side, 90, 40)).save(folder / name / f"{side}.png")
        text = text.replace(name.upper(), str(folder / name))
    links = [{"url": f"http://a.test/{i}", "text": f"row {i}"} for i in range(2)]
    (folder / "links.jsonl").write_text("\n".join(map(json.dumps, links)))
    stages = yaml.safe_load(text.replace("LINKS", str(folder / "links.jsonl")))
    plan = make_plan(Recipe(name="union", path="union.yaml", seed=0, stages=stages))
    outcome = run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    return outcome.state


def test_a_row_of_a_union_of_a_union_is_followed_to_its_pool(union):
    assert [*image_stages(union, "both")] == ["right", "left"]
    shards = union.stages["both"].shards
    places = [(shard, 0) for shard in sorted(shards)]
    assert pictured(union, "both", places) == [
        *(("right", (shard, 0)) for shard in range(2)),
        *(("left", (shard, 0)) for shard in range(3)),
        None,
    ]
    assert pictured(union, "left", [(1, 1)]) == [("left", (1, 1))]


def test_the_explorer_shows_the_pictures_of_a_unions_rows(union, tmp_path):
    session = Session(str(union.run.path), tmp_path / "mine.yaml")
    of = {it["root"]: it["pictures"] for it in session.facts()["roots"]}
    assert of == {"left": "left", "right": "right", "links": None, "two": "left", "both": "right"}
    rows = session.rows(json.dumps({"root": "both", "rows": [*range(11)]}).encode())
    assert [row["picture"] for row in rows] == [side is not None for side in BOTH]
    assert rows[-1]["no_picture"] == "no stage of these rows stores pictures"
    shown = [session.picture("both", row, "small") for row in range(11)]
    assert [it and Image.open(BytesIO(it[1])).width for it in shown] == BOTH


def test_a_page_of_a_unions_rows_has_their_pictures(union):
    answer = show(union, ShowQuery(stage="count", columns=("text",)))
    page, said = show_page(union, answer, "")
    assert page.count("data:image/") == 9
    assert said == "11 rows; 2 without a picture that can be decoded"
