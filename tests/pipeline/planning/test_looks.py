"""What a plan finds of what a recipe names, before anything runs."""

import re
import socket
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.planning.looks import Seen, look, refuse_missing
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.stages.ingest.url_list import UrlList

TEXTS = "pool: {uses: ingest.url_list, path: PATH/pool.csv}"
LANG = "lang: {uses: annotate.language, from: pool, MORE}"
PARTS = {
    "concepts": "it: {uses: annotate.concepts, from: pool, concepts: PATH/none.parquet}",
    "path": "it: {uses: select.uid_list, from: pool, path: PATH/none.npy}",
    "tasks": "it: {uses: evaluate.zero_shot, model: reference, tasks: PATH/none}",
    "model_path": "it: {uses: annotate.language, from: pool, model_path: PATH/none.ftz}",
    "model": 'it: {uses: evaluate.zero_shot, model: "checkpoint:PATH/none", tasks: PATH}',
}


@pytest.fixture
def plan_of(tmp_path):
    """The plan of stages, whose PATH is a folder with a small list in it."""
    (tmp_path / "pool.csv").write_text("url,text\nhttp://a.test/1,one\nhttp://a.test/2,two\n")

    def made(*stages):
        recipe = tmp_path / "mine.yaml"
        lines = "".join(f"  {stage}\n" for stage in stages).replace("PATH", str(tmp_path))
        recipe.write_text(f"stages:\n{lines}")
        return make_plan(load_recipe(str(recipe)))

    return made


def refused(plan, run=None):
    with pytest.raises(RecipeError) as error:
        refuse_missing(plan, look(plan, run))
    return error.value.args


def test_files_rows_and_shards_of_a_source_are_counted(plan_of, tmp_path):
    seen = look(plan_of(TEXTS.replace("}", ", shard_rows: 1}")), seconds=60)["pool"]
    assert (seen.files, seen.rows, seen.shards) == (1, 2, 2)
    assert seen.bytes == (tmp_path / "pool.csv").stat().st_size
    pq.write_table(pa.table({"url": ["a"] * 5, "text": ["b"] * 5}), tmp_path / "five.parquet")
    plan = plan_of("pool: {uses: ingest.url_list, path: PATH/five.parquet, shard_rows: 2}")
    five = look(plan, seconds=60)["pool"]
    assert (five.rows, five.shards) == (5, 3)


def test_a_source_that_is_not_there_is_refused_with_the_line(plan_of):
    found, where, do = refused(plan_of("pool: {uses: ingest.url_list, path: PATH/none}"))
    assert "nothing is there" in found
    assert "mine.yaml:2, stage 'pool', key 'path': " in where
    assert "a file, a folder or a glob" in do


CUT = (
    "images: {uses: download.images, from: pool}",
    "some: {uses: select.sample, from: images, MORE}",
    "shards: {uses: export.parquet, from: some}",
    "model: {uses: train.clip, data: shards, model: reference, samples_seen: 64, batch_size: 4,"
    " warmup_steps: 0}",
)


@pytest.mark.parametrize(
    ("rows", "sample", "most"),
    [(3, "fraction: 1.0", 3), (4, "fraction: 1.0", None), (9, "rows: 3", 3)],
)
def test_a_batch_larger_than_its_rows_is_refused_before_the_run(rows, sample, most, plan_of):
    plan = plan_of(TEXTS, *(line.replace("MORE", sample) for line in CUT))
    seen = {"pool": Seen(rows=rows)}
    if most is None:
        refuse_missing(plan, seen)
        return
    with pytest.raises(RecipeError) as error:
        refuse_missing(plan, seen)
    found, where, do = error.value.args
    assert found == f"'model' wants 4 rows, and there are {most} at most"
    assert "stage 'model', key 'batch_size'" in where
    assert do == "lower `batch_size`, or give more rows"


WANTS = """
stages:
  pool:  {uses: ingest.image_folder, path: pictures}
  emb:   {uses: embed.clip, from: pool, model: reference}
  cells: {uses: cluster.kmeans, from: emb, clusters: 2}
  few:   {uses: select.density, from: cells, centroids: "stage:cells", rows: 3}
"""


def test_more_rows_than_there_are_are_refused_before_a_run_and_once_the_pool_is_done(
    tmp_path, clipmill, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in "ab":
        Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "it.yaml").write_text(WANTS)
    wrong = (
        "'few' wants 3 rows, and there are 2 at most\n  where: it.yaml:6, stage 'few', key 'rows'"
    )
    out = ("it.yaml", "--out", "run")
    for command in (("plan", "it.yaml"), ("run", *out)):
        said = clipmill(*command)
        assert (said.code, wrong in said.err) == (2, True), command
    assert clipmill("run", *out, "--workers", 0, "--until", "pool").code == 0
    said = clipmill("plan", *out)
    assert (said.code, wrong in said.err) == (2, True)
    assert clipmill("plan", *out, "--set", "few.rows=2").code == 0


def test_a_source_without_the_columns_is_refused_with_the_nearest(plan_of):
    found, where, do = refused(plan_of(TEXTS.replace("}", ", url_col: URLS}")))
    assert "no column 'URLS'" in found
    assert "stage 'pool'" in where
    assert "`url_col: url`" in do


@pytest.mark.parametrize("key", PARTS)
def test_a_file_that_a_setting_names_is_looked_for(key, plan_of):
    found, where, do = refused(plan_of(TEXTS, PARTS[key]))
    assert re.match("no (such folder|file|folder|list of uids)", found)
    assert f"mine.yaml:3, stage 'it', key '{key}'" in where
    assert do


def test_what_lies_in_the_run_folder_may_be_made_later(plan_of, tmp_path):
    plan = plan_of(TEXTS, "it: {uses: evaluate.zero_shot, model: reference, tasks: PATH/run/eval}")
    assert "tasks" in refused(plan)[1]
    refuse_missing(plan, look(plan, Storage(str(tmp_path / "run"))))


def test_a_stage_that_is_done_needs_its_source_no_more(plan_of, tmp_path):
    plan = plan_of("pool: {uses: ingest.url_list, path: PATH/none}")
    folder = tmp_path / "run" / plan.stages["pool"].folder
    folder.mkdir(parents=True)
    (folder / "records.parquet").touch()
    refuse_missing(plan, look(plan, Storage(str(tmp_path / "run"))))


def test_a_store_that_does_not_answer_holds_nothing_back(plan_of, monkeypatch):
    monkeypatch.setattr(UrlList, "look", lambda self: time.sleep(5))
    start = time.monotonic()
    plan = plan_of(TEXTS)
    seen = look(plan, seconds=0.1)
    assert time.monotonic() - start < 2
    assert seen["pool"].is_late
    refuse_missing(plan, seen)


def test_a_command_ends_though_a_store_stays_silent(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}&scheme=http&region=x"
        path = f"s3://id:key@bucket/data?endpoint_override={at}"
        (tmp_path / "it.yaml").write_text(
            f"stages:\n  pool: {{uses: ingest.url_list, path: '{path}'}}\n"
        )
        said = subprocess.run(
            [sys.executable, "-m", "clipmill.pipeline.cli", "plan", str(tmp_path / "it.yaml")],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    assert "no answer in 2 s" in said.stdout


@pytest.mark.parametrize(
    ("encoding", "rows", "counted"),
    [("utf-8", 2, (2, 1)), ("utf-8", 0, (0, 1)), ("utf-16", 2, (None, None))],
)
def test_rows_are_counted_where_a_look_can_tell(plan_of, tmp_path, encoding, rows, counted):
    text = "url,text\n" + "https://x.org/1.jpg,a cat\n" * rows
    (tmp_path / "it.csv").write_text(text, encoding=encoding)
    plan = plan_of("pool: {uses: ingest.url_list, path: PATH/it.csv}")
    seen = look(plan, seconds=60)["pool"]
    assert (seen.rows, seen.shards) == counted


def test_a_mistake_in_an_own_look_is_named(plan_of, monkeypatch):
    monkeypatch.setattr(UrlList, "look", lambda self: 1 / 0)
    found, where, do = refused(plan_of(TEXTS))
    assert "`look` of ingest.url_list failed: ZeroDivisionError" in found
    assert "stage 'pool'" in where
    assert "mend the stage's file" in do


def test_a_damaged_file_costs_its_shards_and_not_the_run(plan_of, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    plan = plan_of("pool: {uses: ingest.url_list, path: PATH/bad.parquet}")
    refuse_missing(plan, look(plan))
