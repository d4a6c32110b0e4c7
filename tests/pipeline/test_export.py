"""`clipmill export`: a finished stage's rows, in a folder of one's own."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import latest
from tests.artefacts import linked

ENDS = ("lang", "shards", "fused", "checks", "far")


@pytest.fixture(scope="module")
def finished(every_stage, tmp_path_factory) -> Path:
    """Of the run of every stage those that lead to a few ends: it is planned at each question."""
    run = tmp_path_factory.mktemp("export") / "run"
    there, names = every_stage.plan.stages, list(ENDS)
    for name in names:  # ... and those before them, which come in
        names += [need for need in there[name].needs if need not in names]
    linked(Path(every_stage.state.run.path), run)
    for planned in there.values():
        if planned.name not in names:
            shutil.rmtree(run / planned.folder)
    shutil.rmtree(run / "recipes")
    stages = every_stage.plan.recipe.stages
    few = {name: keys for name, keys in stages.items() if name in names}
    plan = make_plan(replace(every_stage.plan.recipe, stages=few))
    assert run_plan(plan, Storage(str(run)), LocalExecutor(0), Lines()).complete
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run that may be written to."""
    return linked(finished, tmp_path / "run")


@pytest.fixture
def export(run, tmp_path, clipmill):
    def export(stage: str, to: str, *arguments: object, path: str = "out"):
        where = ("--run", run, "--out", tmp_path / path, "--workers", 0)
        return clipmill("export", *where, "--stage", stage, "--to", to, *arguments)

    return export


@pytest.fixture
def kept(every_stage) -> set[str]:
    """The uids that the select stage keeps."""
    rows = every_stage.values(every_stage.stage_of("select.where"))
    return {row["uid"] for row in rows if row["keep"]}


def test_parquet_holds_the_rows_that_a_select_stage_keeps(export, kept, tmp_path):
    assert export("subset", "parquet").code == 0
    table = pq.read_table(next((tmp_path / "out").glob("*.parquet")))
    uids = {uid.hex() for uid in table["uid"].to_pylist()}
    assert len(uids) == len(kept) - 1, "one of them has no caption"
    assert uids < kept
    assert table["image"].null_count == 0


def test_a_webdataset_holds_the_same_and_its_files_are_named(export, kept, tmp_path):
    files = export("subset", "webdataset", "--json").json["files"]
    assert sorted(files) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert not [file for file in files if "places" in file], "they are of the run's shards"
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        told = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    assert {row["uid"] for row in told} < kept


def test_a_map_holds_dropped_rows_too_and_says_which_are_kept(export, kept, tmp_path):
    said = export("subset", "map", "--columns", "look.min_side", "--json").json
    assert sorted(said["files"]) == ["README.md", "dataset.json", "map.parquet"]
    table = pq.read_table(tmp_path / "out" / "map.parquet")
    rows = {row["uid"]: row for row in table.to_pylist()}
    assert {uid for uid, row in rows.items() if row["kept"]} == kept
    assert kept < rows.keys()
    assert all(row["thumbnail"]["bytes"][:2] == b"\xff\xd8" for row in rows.values())
    assert said["rows"] - said["exported"] == sum(said["left"].values())
    before = (tmp_path / "out" / "map.parquet").read_bytes()
    assert export("subset", "map", "--columns", "look.min_side").code == 0
    assert (tmp_path / "out" / "map.parquet").read_bytes() == before


def test_several_forms_leave_at_once_each_in_a_folder_of_its_name(export, kept, tmp_path):
    said = export("subset", "csv", "--to", "uid_list", "jsonl", "--json")
    assert said.code == 0
    assert [answer["exported"] for answer in said.json] == [len(kept)] * 3
    out = tmp_path / "out"
    files = {path.relative_to(out).as_posix() for path in out.glob("*/*") if path.suffix != ".md"}
    assert files >= {"csv/rows.csv", "uid_list/uids.npy", "jsonl/rows.jsonl"}


def test_a_list_of_uids_needs_no_image(export, every_stage, tmp_path):
    assert export("lang", "uid_list").code == 0
    uids = np.load(tmp_path / "out" / "uids.npy")
    assert len(uids) == len(every_stage.values(every_stage.stage_of("annotate.language")))


def test_every_row_leaves_where_no_select_stage_stands_before(export, tmp_path):
    assert (
        "no stage up to 'both' drops rows: all that have a value are here"
        in export("both", "parquet").out
    )
    assert "select stage" not in export("subset", "csv", path="more").out
    card = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert card["counts"]["rows"] == 240
    assert card["counts"]["not_kept"] == 0


def test_exported_again_the_files_are_the_same_and_nothing_is_computed(export, run, tmp_path):
    export("subset", "parquet")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    made = {path: path.stat().st_mtime_ns for path in run.glob("stages/export_*/**/*")}
    assert export("subset", "parquet").code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert {path: path.stat().st_mtime_ns for path in run.glob("stages/export_*/out/*")} == {
        path: time for path, time in made.items() if path.parent.name == "out"
    }


@pytest.mark.slow("six commands, each a whole look at the run")
def test_no_answer_about_the_run_knows_of_an_export(export, run, clipmill):
    of_run = ("--run", run, "--json")
    before = [clipmill(verb, *of_run).json for verb in ("status", "funnel")]
    said = export("subset", "csv")
    assert [clipmill(verb, *of_run).json for verb in ("status", "funnel")] == before
    assert len(list((run / "recipes").iterdir())) == 1, "the recipe that ran is the last one"
    assert {line.partition(":")[0] for line in said.err.splitlines()} <= {"export_subset_csv"}
    assert clipmill("verify", "--run", run).code == 0, "its files are checked as all others are"


def test_an_export_runs_nothing_but_itself(export, run, clipmill, tmp_path):
    """The pool may be gone by then."""
    shutil.rmtree(next((run / "stages").glob("near-*")))
    ended = export("subset", "csv")
    assert ended.code == 2
    assert "stage 'subset' is not done: nothing yet" in ended.err
    assert not list((run / "stages").glob("near-*"))
    assert export("lang", "csv").code == 0


def test_a_copy_that_was_cut_off_or_changed_goes_on(export, run, tmp_path):
    export("subset", "webdataset")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "dataset.json").unlink()  # it is the last
    (tmp_path / "out" / "00000.tar").write_bytes(bytes(len(whole["00000.tar"])))
    assert export("subset", "webdataset", "--json").json["copied"] == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole
    assert "found done: nothing was written" in export("subset", "webdataset").out
    stored = next(run.glob("stages/export_*/out/00000.tar"))
    stored.write_bytes(bytes(len(whole["00000.tar"])))
    assert export("subset", "webdataset").code == 0
    assert stored.read_bytes() == whole["00000.tar"], "damaged in the run, it is made again"


def test_an_export_that_was_stopped_goes_on_where_it_was(export, run, tmp_path, monkeypatch):
    def stop(summary, task):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("clipmill.stages.export._documents.put_documents", stop)
        assert export("subset", "huggingface").code == 130
    assert not (tmp_path / "out").exists(), "nothing is copied that is not whole"
    (made,) = run.glob("stages/export_*/out/data/*.parquet")
    written = made.stat().st_mtime_ns
    assert export("subset", "huggingface").code == 0
    assert made.stat().st_mtime_ns == written
    assert (tmp_path / "out" / "data" / made.name).read_bytes() == made.read_bytes()
    assert "| `subset` | `select.where` | where: `" in (tmp_path / "out" / "README.md").read_text()


def test_columns_are_those_asked_for(export, tmp_path):
    names = "caption,look.aspect_ratio,centroid_cosine"
    assert export("subset", "csv", "--columns", names).code == 0
    assert pl.read_csv(tmp_path / "out" / "rows.csv").columns == ["uid", *names.split(",")]
    assert export("subset", "parquet", "--columns", f"uid,{names}", path="more").code == 0
    file = next((tmp_path / "more").glob("*.parquet"))
    assert pq.read_schema(file).names[-2:] == ["look.aspect_ratio", "centroid_cosine"]


def test_lists_of_captions_leave_in_the_order_they_are_named(export, tmp_path):
    assert export("fused", "parquet", "--captions", "fused.captions,seen.captions").code == 0
    rows = [it.to_pylist() for it in map(pq.read_table, (tmp_path / "out").glob("*.parquet"))]
    sources = [[text["source"] for text in row["texts"]] for (row, *_) in rows]
    order = ["original", "fused", "seen"]
    assert {"fused", "seen"} <= {source for row in sources for source in row}
    assert all(row == sorted(row, key=order.index) for row in sources)


def test_csv_json_lines_and_parquet_say_the_same_of_a_row(export, tmp_path):
    for to in ("csv", "jsonl", "parquet"):
        export("subset", to, "--columns", "caption,cluster_id", path=to)
    csv = pl.read_csv(tmp_path / "csv" / "rows.csv").sort("uid")
    assert csv.equals(pl.read_ndjson(tmp_path / "jsonl" / "rows.jsonl").sort("uid"))
    shards = pl.read_parquet(tmp_path / "parquet" / "*.parquet")
    shards = shards.select(pl.col("uid_hex").alias("uid"), "caption", "cluster_id").sort("uid")
    assert shards.equals(csv.filter(pl.col("caption").is_not_null()).cast(shards.schema))


def test_rows_that_a_stage_lost_say_why(export, clipmill, run, tmp_path):
    funnel = clipmill("funnel", "--run", run, "--json").json
    (subset,) = [stage for stage in funnel["stages"] if stage["stage"] == "subset"]
    rule = "aspect_ratio <= 2.5"
    said = clipmill(
        *("export", "--run", run, "--dropped", rule, "--to", "csv", "--out", tmp_path / "out"),
        *("--workers", 0),
    )
    assert said.code == 0
    found = pl.read_csv(tmp_path / "out" / "rows.csv")
    assert found.columns[:3] == ["uid", "reason", "aspect_ratio"]
    assert len(found) == subset["dropped"][rule]
    assert set(found["reason"]) == {rule}
    assert found["aspect_ratio"].min() > 2.5
    assert "lost for `aspect_ratio <= 2.5`" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("to", ["parquet", "webdataset", "huggingface", "uid_list", "jsonl"])
def test_lost_rows_leave_in_every_format_with_the_pictures_they_have(to, export, run, tmp_path):
    said = export("emb", to, "--dropped", "no_image", "--json").json
    assert said["exported"] == said["rows"] - said["left"]["other_rows"] > 0
    wide = export("subset", to, "--dropped", "aspect_ratio <= 2.5", path="wide")
    assert wide.code == 0
    if to == "parquet":
        assert pq.read_table(tmp_path / "out" / "00000.parquet")["image"].null_count > 0
        assert pq.read_table(tmp_path / "wide" / "00000.parquet")["image"].null_count == 0


def test_an_export_without_a_row_fails_with_its_cause(clipmill, tmp_path):
    recipe = tmp_path / "none.yaml"
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "0.csv").write_text("url,caption\nhttp://a.test/1,cat\n")
    recipe.write_text(
        "stages:\n  pool: {uses: ingest.url_list, path: pool}\n"
        "  words: {uses: annotate.caption, from: pool}\n"
        "  long: {uses: select.where, from: words, where: caption_words > 3}\n"
    )
    where = ("--set", f"pool.path={tmp_path / 'pool'}", "--set", "pool.caption_col=caption")
    clipmill("run", recipe, *where, "--out", tmp_path / "run", "--workers", 0)
    to = ("--to", "csv", "--out", tmp_path / "out", "--workers", 0)
    said = clipmill("export", "--run", tmp_path / "run", *to)
    assert said.code == 1
    assert "no row to export: of 1 rows 1 not_kept" in said.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_other_files_is_refused_and_left_alone(export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00009.parquet").write_bytes(b"of another export")
    said = export("subset", "parquet")
    assert said.code == 2
    assert "the folder holds other files: 00009.parquet" in said.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00009.parquet"]


def test_another_export_is_replaced_only_where_that_is_asked_for(export, tmp_path):
    out = tmp_path / "out"
    assert export("subset", "parquet").code == 0
    (out / "mine.txt").write_text("a note")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    said = export("fused", "parquet")
    assert said.code == 2
    assert f"the folder holds another export\n  where: {out}\n" in said.err
    assert "--replace" in said.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "mine.txt" in export("fused", "webdataset", "--replace").err, "it is no export's"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "mine.txt").unlink()
    files = export("fused", "webdataset", "--replace", "--json").json["files"]
    assert sorted(files) == sorted(path.name for path in out.iterdir())


WRONG = [
    ("--stage subste --to parquet", "did you mean 'subset'"),
    ("--stage shards --to uid_list", "name a select stage: subset"),
    ("--stage lang --to parquet", "--to csv, jsonl and uid_list need none"),
    ("--stage subset --to cvs", "did you mean 'csv'"),
    ("--stage subset --to xls", "there are: parquet, webdataset, huggingface, map, csv"),
    ("--stage both --to map", "--to map needs 'image_embedding', and none is before 'both'"),
    ("--stage emb --to map", "needs 'cluster_id', and none is before 'emb'"),
    ("--to map --dropped no_embedding --stage near", "holds the rows that are dropped too"),
    ("--to csv", "select stages end this recipe"),
    ("--to csv", "--stage subset or "),
    ("--stage subset --to csv --columns clster_id", "did you mean 'cluster_id'"),
    ("--stage subset --to csv --columns look.nosuch", "no column 'look.nosuch'"),
    ("--stage subset --to csv --columns uid,image", "a table in csv holds no pictures"),
    ("--stage fused --to csv --captions seen.captions", "--columns seen.captions"),
    ("--stage near --to map --captions seen.captions", "those to parquet, webdataset"),
    ("--stage fused --to parquet --captions sean.captions", "did you mean 'seen.captions'"),
    ("--stage fused --to parquet --captions text", "holds string, and no list of captions"),
    ("--stage checks --to parquet --captions parts.captions,near", "no column 'near'"),
    ("--stage subset --to uid_list --columns text", "a list of uids has no columns"),
    ("--to csv --dropped aspect_rato<=2.5", "did you mean 'aspect_ratio <= 2.5'"),
    ("--to csv --dropped zzzzzzzz", "rows were lost for: "),
    ("--stage lang --to csv --dropped no_image", "at stage 'lang'"),
    ("--to csv --dropped no_image", "stages lost rows for 'no_image'"),
]


def test_what_cannot_be_exported_is_refused(finished, clipmill, tmp_path, monkeypatch):
    state = latest(str(finished))  # opened once: nothing is done there
    monkeypatch.setattr("clipmill.pipeline.verbs.export.opened", lambda arguments: state)
    before = sorted(finished.rglob("*"))
    where = ("--run", finished, "--out", tmp_path / "out", "--workers", 0)
    told = {}
    for arguments, said in WRONG:
        ended = clipmill("export", *where, *arguments.split(" "))
        if ended.code != 2 or said not in ended.err:
            told[arguments] = ended
    assert told == {}
    assert sorted(finished.rglob("*")) == before
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_before_any_work(export, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    said = export("subset", "parquet")
    assert said.code == 2
    assert "the folder holds other files: thesis.txt" in said.err
    assert not list(run.glob("stages/export_*"))


def test_no_file_of_the_users_is_deleted_with_an_export(export, tmp_path):
    out = tmp_path / "out"
    assert export("subset", "parquet").code == 0
    for name in ("notes-2024.txt", "weights/epoch-3.pt", "weights/readme.txt"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    before = sorted(path for path in out.rglob("*"))
    assert export("fused", "parquet", "--replace").code == 2
    assert sorted(path for path in out.rglob("*")) == before
