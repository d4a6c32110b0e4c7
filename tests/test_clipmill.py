"""`import clipmill`: plans, runs and opens; the answers are the ledger's, and draw themselves."""

import io
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from PIL import Image

import clipmill
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.rows.table import UnfinishedWarning
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.selection.sweep import sweep
from clipmill.pipeline.ledger.selection.why import why
from clipmill.pipeline.planning.given import recipe_given
from tests.drawn import HOSTILE
from tests.parsed import Page

ROOT = Path(__file__).parents[1]
RECIPE = """\
stages:
  pool:    {uses: ingest.image_folder, path: none, shard_rows: 4}
  caption: {uses: annotate.caption, from: pool}
  look:    {uses: annotate.image, from: pool}
  few:     {uses: select.where, from: [caption, look], where: caption_words >= 2}
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Ten pictures, one an empty file; every other caption is a word, one is hostile."""
    folder = tmp_path_factory.mktemp("pictures")
    for row in range(10):
        body = io.BytesIO()
        Image.new("RGB", (40, 30 + row), (20 * row, 90, 90)).save(body, "PNG")
        (folder / f"{row}.png").write_bytes(b"" if row == 3 else body.getvalue())
        text = "word" if row % 2 else HOSTILE if row == 4 else f"picture number {row}"
        (folder / f"{row}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("ran") / "run"
    return clipmill.run(RECIPE, out, workers=0, pool={"path": pictures})


def page(answer) -> str:
    """What a notebook shows; nothing of a caption is markup, nothing is asked for."""
    html = answer._repr_html_()
    read = Page(html)
    assert read.asks_for_nothing()
    assert not read.all("script")
    assert all("onerror" not in attributes for _, attributes in read.tags)
    return html


def test_counts_are_those_of_the_funnel(run):
    (end,) = run.funnel().ends
    rows = run.table("few", ["text", "caption.caption_words", "min_side"]).collect()
    assert (end.rows, end.kept) == (10, len(rows)) == (10, 5)
    assert rows["caption.caption_words"].min() >= 2
    assert run.table("pool").collect().height == 10
    assert run.table("few", dropped=True).collect().height == 5
    assert run.table("pool", ["text"], where="min_side > 36").collect().height == 3


def test_answers_are_the_ledgers(run):
    state = run.state
    uid = run.table("few").collect()["uid"][0]
    for mine, its in (
        (run.funnel(), funnel(state)),
        (run.why(uid), why(state, uid)),
        (run.sweep("few", "caption_words=1:3:1"), sweep(state, "few", "caption_words=1:3:1")),
    ):
        assert as_json(mine) == as_json(its)
        assert isinstance(mine, type(its))
    assert run.status().phase == "complete"
    assert run.stages == ("pool", "caption", "look", "few")


@pytest.mark.slow("draws pages of every answer")
def test_answers_show_tables_and_pictures_and_escape_captions(run):
    rows = run.table("pool", ["text"]).collect()
    hostile = rows.filter(pl.col("text") == HOSTILE)["uid"][0]
    assert "kept by few" in page(run.funnel())
    assert page(run.why(hostile)).count("<img") == 1
    assert "alert(2)" in Page(page(run.why(hostile))).text
    assert page(run.images("few", rows["uid"])).count("<img") == 9
    assert page(run.sweep("few", "caption_words=1:3:1")).count("<img") >= 4
    for answer in (run, run.status(), clipmill.plan(RECIPE, pool={"path": "."})):
        assert "ingest.image_folder" in page(answer)


def test_images_are_bytes_as_stored_and_say_what_is_missing(run, pictures):
    rows = run.table("pool", ["text"]).collect()
    found = run.images("few", [*rows["uid"], "0" * 32])
    images = [one.image for one in found.values()]
    assert set(images[:10]) == {(pictures / f"{row}.png").read_bytes() for row in range(10)}
    assert found["0" * 32].missing == "no row has this uid"
    assert list(found) == [*rows["uid"], "0" * 32], "in the order asked"
    assert repr(found) == "<11 images, 1 of them missing>"
    short = run.images("few", [uid[:8] for uid in rows["uid"]])
    assert [*short] == [uid[:8] for uid in rows["uid"]]
    assert [one.uid for one in short.values()] == [*rows["uid"]]
    assert [one.image for one in short.values()] == images[:10]
    assert "it cannot be shown" in page(found), "of an empty file"
    assert Image.open(io.BytesIO(images[0])).width == 40
    with pytest.raises(RecipeError, match="give its 32 hex digits, or 8 or more"):
        run.images("few", ["zz"])


def test_a_stage_without_pictures_says_so(tmp_path):
    (tmp_path / "pool.txt").write_text("http://a.test/1.jpg\n")
    pool = {"uses": "ingest.url_list", "path": tmp_path / "pool.txt", "caption_col": None}
    run = clipmill.run({"stages": {"pool": pool}}, tmp_path / "run", workers=0)
    with pytest.raises(RecipeError, match="no stage writes column 'image'"):
        run.images("pool", run.table("pool").collect()["uid"])
    assert "no picture" in page(run.why(run.table("pool").collect()["uid"][0]))


def test_a_picture_that_was_not_downloaded_says_why(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"url": "http://127.0.0.1:9/1.jpg", "text": "a dog"}')
    recipe = """
stages:
  pool:   {uses: ingest.url_list, path: none}
  images: {uses: download.images, from: pool, allow_private_addresses: true, retries: 0}
"""
    run = clipmill.run(
        recipe, tmp_path / "run", workers=0, keep_going=True, pool={"path": tmp_path / "pool.jsonl"}
    )
    (found,) = run.images("images", run.table("pool").collect()["uid"]).values()
    assert (found.text, found.missing) == ("a dog", "refused")


def test_an_unfinished_run_is_opened_and_a_table_of_it_warns(pictures, tmp_path):
    out = tmp_path / "run"
    clipmill.run(RECIPE, out, until="caption", workers=0, pool={"path": pictures})
    run = clipmill.open(out)
    assert run.table("caption", ["caption_words"]).collect().height == 10
    with pytest.warns(UnfinishedWarning, match="'few' has 0 of 3 shards") as warned:
        rows = run.table("few", ["text"])
    assert warned[0].filename == __file__
    assert rows.collect().height == 0


@pytest.mark.parametrize(
    ("given", "overrides"),
    [
        ({"pool": {"path": Path("a b")}}, ("pool.path=a b",)),
        ({"few": {"where": "caption_words >= 3"}}, ("few.where=caption_words >= 3",)),
        ({"few": {"where": "text = 'a: b'"}}, ("few.where=\"text = 'a: b'\"",)),
        ({"pool": {"path": "12"}}, ('pool.path="12"',)),
        ({"pool": {"path": " é😀\n"}}, ('pool.path=" é😀\\n"',)),
        ({"pool": {"shard_rows": np.int64(3)}}, ("pool.shard_rows=3",)),
        (
            {"few": {"top": {"column": "min_side", "fraction": 0.25}}},
            ('few.top={"column": "min_side", "fraction": 0.25}',),
        ),
        ({"few": {"top": None}}, ("few.top=null",)),
        ({"caption": {"from": ("pool",)}}, ('caption.from=["pool"]',)),
        ({"pool": {"shard_rows": 1e-7}}, ("pool.shard_rows=1e-07",)),
    ],
)
def test_settings_are_kept_as_the_set_that_says_the_same(given, overrides):
    recipe = recipe_given(RECIPE, stages=given)
    assert recipe.overrides == overrides
    ((stage, keys),) = given.items()
    for key, value in keys.items():
        value = str(value) if isinstance(value, Path) else value
        assert recipe.stages[stage][key] == (list(value) if isinstance(value, tuple) else value)
    assert recipe_given(RECIPE, sets={"few.top.rows": 2}).stages["few"]["top"] == {"rows": 2}
    assert recipe_given(RECIPE, seed=5).seed == 5


def test_numbers_and_names_of_numpy_in_a_mapping_are_plain_ones():
    given = {"uses": np.str_("select.sample"), "fraction": np.float64(0.25)}
    assert recipe_given({"stages": {"few": given}}).stages["few"] == given


@pytest.mark.parametrize(
    ("recipe", "given", "found"),
    [
        (RECIPE, {"pool": "a.csv"}, "pool='a.csv'"),
        (RECIPE, {"pol": {"path": "a"}}, "did you mean 'pool'?"),
        (RECIPE, {"pool": {"path": object}}, "pool.path is <class 'object'>"),
        (RECIPE, {"pool": {"path": float("nan")}}, "pool.path"),
        (RECIPE, {"pool": {"path": np.datetime64("2026-12-01")}}, "pool.path is datetime.date"),
        ("smok", {}, "did you mean 'smoke'?"),
        ({"stages": {}}, {}, "no stages"),
        ("stages:\n  a: {uses: ingest.nothing}\n", {}, "no stage 'ingest.nothing'"),
    ],
)
def test_what_is_wrong_is_an_error_of_the_house(recipe, given, found):
    with pytest.raises(RecipeError) as error:
        clipmill.plan(recipe, **given)
    assert found in str(error.value)


def test_a_plan_looks_at_what_it_reads(pictures, tmp_path):
    with pytest.raises(RecipeError, match="nosuch"):
        clipmill.plan(RECIPE, pool={"path": tmp_path / "nosuch"})
    planned = clipmill.plan(RECIPE, sets={"pool.path": pictures}, until="caption")
    assert list(planned.stages) == ["pool", "caption"]


def test_a_stage_that_stops_is_an_error_with_its_cause(pictures, tmp_path):
    recipe = RECIPE.replace("caption_words >= 2", "caption_words >= 2 AND nosuch > 1")
    with pytest.raises(RecipeError, match="nosuch"):
        clipmill.run(recipe, tmp_path / "run", workers=0, pool={"path": pictures})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="other files"):
        clipmill.run(RECIPE, tmp_path / "run", workers=0, pool={"path": pictures})
    for more in ({"workers": -1}, {"executor": "slurm"}, {"address": "a"}, {"retry": ["nosuch"]}):
        with pytest.raises(RecipeError):
            clipmill.run(RECIPE, tmp_path / "run", pool={"path": pictures}, **more)


@pytest.mark.chaos
def test_a_script_without_a_guard_runs_once_and_its_workers_do_not(pictures, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "import clipmill\nprint('began')\n"
        f"run = clipmill.run({RECIPE!r}, 'run', workers=2, pool={{'path': {str(pictures)!r}}})\n"
        "print(run)\n"
    )
    said = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == ["began", f"<run {tmp_path}/run: 4 of 4 stages done>"]


def test_importing_it_imports_nothing_else():
    code = "import sys, json; before = set(sys.modules); import clipmill; "
    code += "print(json.dumps(sorted(set(sys.modules) - before)))"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    new = json.loads(said.stdout)
    assert "clipmill" in new
    assert not [name for name in new if name.partition(".")[0] in ("pipeline", "polars", "numpy")]


@pytest.mark.slow("starts DuckDB and three runs")
def test_other_readers_take_a_stages_files_by_its_glob(run, pictures, tmp_path):
    import duckdb

    for stage, columns in (
        ("pool", ["text"]),
        ("look", ["min_side", "luma_std"]),
        ("few", ["keep"]),
    ):
        mine = run.table("pool", [f"{stage}.{column}" for column in columns]).collect()
        mine.columns = ["uid", *columns]
        rows = pl.read_parquet(run.glob(stage), columns=["uid", *columns])
        assert rows.with_columns(pl.col("uid").bin.encode("hex")).equals(mine)
        said = f"SELECT lower(hex(uid)) AS uid, {', '.join(columns)} FROM '{run.glob(stage)}'"
        assert duckdb.sql(said).pl().sort("uid").equals(mine.sort("uid"))
    with pytest.raises(RecipeError, match="did you mean 'look'"):
        run.glob("lok")
    clipmill.run(RECIPE, tmp_path / "run", until="pool", workers=0, pool={"path": pictures})
    clipmill.run(
        RECIPE.replace("from: pool}", "from: pool, only: few}", 1)
        .replace("[caption, look]", "look")
        .replace("caption_words >= 2", "min_side > 35"),
        tmp_path / "masked",
        workers=0,
        pool={"path": pictures},
    )
    with pytest.raises(RecipeError, match="outside of its `only: few`"):
        clipmill.open(tmp_path / "masked").glob("caption")


def test_what_the_verbs_answer_comes_as_values(run, tmp_path):
    shown = run.show("few", sort="caption_words", is_descending=True, most=2)
    assert len(shown.groups[0].lines) == 2
    assert [tried.number for tried in run.variants().variants] == [1]
    moves = run.diff("pool", "few")
    assert (moves.after.kept, moves.lost) == (5, 5)
    assert "<html" in run.report(tmp_path / "page.html").read_text()
    exported = run.export("csv", tmp_path / "table", stage="few", workers=0)
    assert exported.exported == 5
    assert [checked.damaged for checked in run.verify() if checked.damaged] == []
    folder = str(run.state.run)
    assert (
        len(clipmill.show(folder, "few", most=2).groups[0].lines) == 2
    )  # as the verb: of a folder
    assert clipmill.diff(folder, "pool", "few").lost == 5
    for name in clipmill.OF_A_RUN:
        assert callable(getattr(run, name))


def test_answers_are_a_line_in_a_plain_terminal(run, pictures):
    uid = run.table("few").collect()["uid"][0]
    answers = (
        clipmill.plan(RECIPE, pool={"path": pictures}),
        *(run, run.funnel(), run.why(uid[:8]), run.sweep("few", "caption_words=1:3:1")),
    )
    assert [len(repr(answer).splitlines()) for answer in answers] == [1] * 5
    assert repr(answers[0]) == "<plan recipe: pool, caption, look, few>"
    assert repr(answers[2]) == "<funnel: 5 of 10 rows kept by 'few'>"
    assert repr(answers[3]).startswith(f"<why {uid[:8]}: kept")
    assert "caption_words >= 2: 5" in repr(answers[4])


@pytest.mark.slow("imports torch's loader")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.chaos)])
def test_pairs_are_a_torch_dataset_that_workers_read_by_themselves(run, workers):
    from torch.utils.data import DataLoader

    pairs = pickle.loads(pickle.dumps(run.to_torch("few", transform=np.asarray)))
    rows = run.table("few", ["text", "image"], where="image_bytes IS NOT NULL").collect()
    assert pairs.captions == rows["text"].to_list()
    for index, body in enumerate(rows["image"]):
        picture, text = pairs[index]
        assert text == rows["text"][index]
        np.testing.assert_array_equal(picture, Image.open(io.BytesIO(body)).convert("RGB"))
    spawn = {"multiprocessing_context": "spawn"} if workers else {}
    loaded = DataLoader(pairs, batch_size=2, collate_fn=list, num_workers=workers, **spawn)
    assert [text for batch in loaded for _, text in batch] == pairs.captions


def test_pairs_are_a_hugging_face_dataset(run, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    found = run.to_hf("few")
    pairs = run.to_torch("few")
    assert found["text"] == pairs.captions
    assert found["uid"] == pairs.uids
    assert [row["image"].size for row in found] == [picture.size for picture, _ in pairs]


def test_of_lists_of_captions_pairs_have_the_texts(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    (tmp_path / "pool").mkdir()
    lists = [["a dog"], ["a cat", "a grey cat", "a pet"]]
    for name, texts in zip("ab", lists, strict=True):
        Image.new("RGB", (40, 40)).save(tmp_path / "pool" / f"{name}.png")
        with (tmp_path / "pool" / "metadata.jsonl").open("a") as file:
            print(json.dumps({"file_name": f"{name}.png", "text": texts}), file=file)
    recipe = "stages:\n  pool: {uses: ingest.image_folder, path: none, all_captions: true}\n"
    run = clipmill.run(recipe, tmp_path / "run", workers=0, pool={"path": tmp_path / "pool"})
    assert run.to_hf("pool", "captions")["text"] == [None, ["a grey cat", "a pet"]]


def test_a_recipe_takes_pictures_and_table_and_no_place_of_its_own(pictures, tmp_path, monkeypatch):
    (tmp_path / "it.csv").write_text("filepath,title\n" + "".join(
        f"{path.name},a red shoe\n" for path in Path(pictures).glob("*.png")))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    recipe = clipmill.init("it.csv", pictures=os.path.relpath(pictures), table=None)
    assert f"pictures: {pictures} " in recipe
    with closing(sqlite3.connect("it.db")) as connection, connection:
        for table in ("pairs", "others"):
            connection.execute(f"CREATE TABLE {table} AS SELECT '1.png' AS path, 'a b' AS text")
    assert "table: pairs " in clipmill.init("it.db", pictures=pictures, table="pairs")
    for name in ("folder", "moving", "path"):
        with pytest.raises(clipmill.RecipeError, match=f"no option '{name}'"):
            clipmill.init("it.csv", **{name: "."})


@pytest.mark.slow("a whole run")
def test_data_of_ones_own_become_a_run_with_its_report(pictures, tmp_path):
    recipe = clipmill.init(pictures, to=["webdataset"])
    assert "export.webdataset" in recipe
    sets = {"good.where": "caption_words >= 2 AND min_side > 30"}
    made = clipmill.curate(pictures, tmp_path / "made", workers=0, sets=sets)
    (end,) = made.funnel().ends
    assert end.kept == 1  # all are of one colour, and so alike
    assert (tmp_path / "made.html").is_file()
    with pytest.raises(clipmill.RecipeError, match="--keep 7"):
        clipmill.init(pictures, keep=7)
    with pytest.raises(clipmill.RecipeError, match="no option 'kept'"):
        clipmill.init(pictures, kept=0.3)


def test_the_report_of_data_that_become_a_remote_run_is_written_here(monkeypatch):
    pages = []
    monkeypatch.setattr(clipmill, "init", lambda data: "")
    monkeypatch.setattr(clipmill, "run", lambda *_, **__: SimpleNamespace(report=pages.append))
    clipmill.curate("photos", "s3://bucket/runs/made/")
    assert pages == [Path("made.html")]


def test_a_retry_tries_again_what_may_pass_and_nothing_else(run):
    again = run.retry("crashed", workers=0)
    assert again.stages == run.stages
    with pytest.raises(clipmill.RecipeError, match="does not pass"):
        run.retry("unreadable")
