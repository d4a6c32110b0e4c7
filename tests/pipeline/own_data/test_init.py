"""`clipmill init`: what it prints, asks and writes."""

import argparse
import io
import os
import pty
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml

from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.verbs import init
from clipmill.pipeline.verbs._own_data import started
from tests.pipeline.own_data.written import LAYOUTS, pandas_parquet_of_laion, pictures_and_texts

TWO = "url,title,alt\nhttps://a.test/1.jpg,a red shoe,two shoes\nhttps://a.test/2.jpg,b c,d e\n"


def recipe_of(path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture
def photos(drawn, tmp_path):
    """26 pictures with texts; one is broken, one has no text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pictures_and_texts(folder, drawn)
    (folder / "0003.jpg").write_bytes(b"\xff\xd8\xff no more")
    (folder / "0004.txt").unlink()
    (folder / "order.pdf").write_bytes(b"%PDF")
    return folder


@pytest.mark.chaos  # seconds
def test_it_shows_five_rows_and_what_is_of_no_use_and_writes_a_recipe_that_runs(
    photos, clipmill, tmp_path
):
    said = clipmill("init", photos, "--out", tmp_path / "mine.yaml")
    assert said.code == 0
    lines = said.out.splitlines()
    assert (
        "is               folder of pictures, captions in a .txt beside each, 26 rows" in said.out
    )
    assert "not used         1 .pdf" in said.out
    assert "pictures without a file for their caption: 1" in said.out
    head = next(i for i, line in enumerate(lines) if "link or file" in line)
    assert [line.split()[-3] for line in lines[head + 1 : head + 6]] == [
        f"000{i}.jpg" for i in range(5)
    ]
    assert lines[head + 6] == ""
    assert "of all 26 rows, 24 can be used: 1 has a broken picture, 1 has no caption" in said.out
    assert said.out.endswith(f"next: clipmill run {tmp_path}/mine.yaml --out run\n")
    assert clipmill("plan", tmp_path / "mine.yaml").code == 0
    run = ("run", tmp_path / "mine.yaml", "--out", tmp_path / "run", "--workers", 0)
    assert clipmill(*run).code == 0
    kept = clipmill("funnel", "--run", tmp_path / "run", "--json").json["ends"]
    assert {end["kept"] for end in kept} == {22}  # less a copy, and a file's name as caption


def test_every_setting_of_the_ingest_stage_and_every_stage_is_explained(pairs, clipmill, tmp_path):
    data = pandas_parquet_of_laion(tmp_path, pairs)
    clipmill("init", data, "--out", tmp_path / "mine.yaml")
    lines = (tmp_path / "mine.yaml").read_text(encoding="utf-8").splitlines()
    pool = lines[lines.index("  pool:") + 2 : lines.index("  images:") - 3]
    assert [line.split(":")[0].strip() for line in pool] == [
        *("path", "url_col", "caption_col", "width_col", "height_col", "extra", "shard_rows")
    ]
    assert all("  # " in line for line in pool)
    assert all(len(line) <= 100 for line in lines if str(tmp_path) not in line)
    stages = recipe_of(tmp_path / "mine.yaml")["stages"]
    assert stages["pool"]["extra"] == {"similarity": "double"}
    assert "only" not in stages["images"]
    assert "#   top: {column: similarity, fraction: 0.3}" in "\n".join(lines)


def test_a_file_that_is_there_is_never_written_over(photos, clipmill, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    said = clipmill("init", photos, "--out", tmp_path / "mine.yaml")
    assert said.code == 2
    assert "a file that is there already" in said.err
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_off_a_terminal_a_question_is_refused_with_the_flag_that_answers(clipmill, tmp_path):
    (tmp_path / "it.csv").write_text(TWO)
    said = clipmill("init", tmp_path / "it.csv", "--out", tmp_path / "mine.yaml")
    assert said.code == 2
    assert "2 may be the caption: title (a red shoe), alt (two shoes)" in said.err
    assert "say which: --caption title" in said.err
    assert not (tmp_path / "mine.yaml").exists()
    said = clipmill(
        *("init", tmp_path / "it.csv", "--caption", "alt", "--out", tmp_path / "mine.yaml")
    )
    assert said.code == 0
    assert recipe_of(tmp_path / "mine.yaml")["stages"]["pool"]["caption_col"] == "alt"


def test_on_a_terminal_it_asks_and_the_recipe_says_what_was_answered(tmp_path):
    (tmp_path / "it.csv").write_text(TWO)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "clipmill.pipeline.cli", "init", "it.csv"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True
    )
    os.write(ours, b"7\n2\n")
    out, _ = process.communicate(timeout=60)
    asked = os.read(ours, 4096).decode()
    assert process.returncode == 0, asked
    assert "1  title   a red shoe" in asked
    assert asked.count("which is the caption? 1 to 2: ") == 2
    assert "caption          alt" in out
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert "# From:  clipmill init it.csv --caption alt\n" in text
    assert yaml.safe_load(text)["stages"]["pool"]["caption_col"] == "alt"


def test_what_is_answered_for_relative_data_moves_with_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "two").mkdir()
    for name in ("two/it.csv", "two/it.tsv"):
        (tmp_path / name).write_text(TWO.replace("title", "x"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n"))
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    parser = argparse.ArgumentParser()
    init.add(parser)
    options = parser.parse_args(["two", "--caption", "alt"])
    text = started(options, "init", options.out, "clipmill run mine.yaml", asks=True).recipe
    assert yaml.safe_load(text)["stages"]["pool"]["path"] == "./two/*.csv"
    assert "# From:  clipmill init 'two/*.csv' --caption alt\n" in text


def test_forms_add_up_however_they_are_named(photos, clipmill, tmp_path):
    out = ("--out", tmp_path / "mine.yaml")
    for forms in (("--to", "webdataset", "parquet"), ("--to", "webdataset", "--to", "parquet")):
        assert clipmill("init", photos, *out, *forms).code == 0
        stages = recipe_of(tmp_path / "mine.yaml")["stages"].values()
        uses = {keys["uses"] for keys in stages if keys["uses"].startswith("export.")}
        assert uses >= {"export.webdataset", "export.parquet"}
        (tmp_path / "mine.yaml").unlink()


def test_the_table_fits_the_terminal(clipmill, tmp_path, monkeypatch):
    long = f"https://a.test/{'x' * 200}.jpg"
    (tmp_path / "it.csv").write_text(f"url,text,score\n{long},{'a word ' * 40},0.123456789\n")
    for columns in (80, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        said = clipmill("init", tmp_path / "it.csv", "--out", tmp_path / f"{columns}.yaml")
        table = said.out.split("\n\n")[1].splitlines()
        assert max(map(len, table)) <= columns
        assert len(table[1]) > columns - 12
        assert table[1].endswith("0.1235")


def test_a_value_that_yaml_would_read_otherwise_is_quoted(clipmill, tmp_path):
    # As UTF-8 that was read as Latin-1 has them; line ends and others that JSON takes as they are.
    folder = tmp_path / "a #1: {x}\x80\x85 \u2028 \uffff"
    folder.mkdir()
    rows = '"the: link",null\nhttps://a.test/1.jpg,a red shoe\nhttps://a.test/2.jpg,two shoes\n'
    (folder / "it.csv").write_text(rows)
    said = clipmill("init", folder / "it.csv", "--out", tmp_path / "mine.yaml")
    assert said.code == 0, said.err
    pool = recipe_of(tmp_path / "mine.yaml")["stages"]["pool"]
    assert (pool["url_col"], pool["caption_col"]) == ("the: link", "null")
    assert pool["path"] == str(folder / "it.csv")


def test_a_recipe_and_its_data_move_together(clipmill, tmp_path, monkeypatch):
    (tmp_path / "a" / "recipes").mkdir(parents=True)
    (tmp_path / "a" / "it.csv").write_text(TWO)
    (tmp_path / "a" / "fit.csv").write_text(TWO.replace("title", "x").replace("alt", "text"))
    monkeypatch.chdir(tmp_path / "a")
    words = ("--caption", "alt", "--trusted", "fit.csv", "--out", "recipes/mine.yaml")
    assert clipmill("init", "it.csv", *words).code == 0
    recipe = tmp_path / "b" / "recipes" / "mine.yaml"
    (tmp_path / "a").rename(tmp_path / "b")
    assert recipe_of(recipe)["stages"]["pool"]["path"] == "../it.csv"
    assert recipe_of(recipe)["stages"]["trusted"]["path"] == "../fit.csv"
    monkeypatch.chdir("/")
    for given in ((), ("--set", f"pool.path=.{tmp_path}/b/it.csv")):  # what is typed begins here
        pool, *_ = clipmill("plan", recipe, "--json", *given).json["stages"]
        assert pool["source"]["rows"] == 2


def test_pictures_of_a_table_move_with_it(drawn, clipmill, tmp_path, monkeypatch):
    """Where they start: given relative, found in a folder, given whole."""
    (tmp_path / "imgs").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "imgs" / "1.jpg").write_bytes(drawn[0].image)
    (tmp_path / "lists" / "it.csv").write_text("filepath,title\n1.jpg,a red shoe\n")
    monkeypatch.chdir(tmp_path / "lists")
    recipe, whole = tmp_path / "lists" / "mine.yaml", str(tmp_path / "imgs")
    for given in (("it.csv", "--pictures", "../imgs"), ("..",), ("it.csv", "--pictures", whole)):
        assert clipmill("init", *given, "--out", "mine.yaml").code == 0
        pool = recipe_of(recipe)["stages"]["pool"]
        assert (pool["path"], pool["pictures"]) == (
            *("./it.csv", whole if whole in given else "../imgs"),
        )
        assert load_recipe(str(recipe)).stages["pool"]["pictures"] == whole
        recipe.unlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep", "0.3"], "--keep 0.3, and no score"),
        (["--keep", "3"], "write a share above 0 and up to 1"),
        (["--score", "rank"], "no column of numbers 'rank'"),
        (["--model", "reference", "--trusted", "x"], "--model and --trusted"),
        (["--keep", "0.3", "--model", "nosuch:x"], "nosuch"),
        (["--keep", "0.3", "--trusted", "not there"], "nothing there"),
        (["--url", "nosuch"], "pictures have no columns"),
        (["--to", "csvs"], "csvs"),
    ],
)
def test_wrong_wishes_are_refused_before_anything_is_written(
    arguments, said, photos, clipmill, tmp_path
):
    out = clipmill("init", photos, "--out", tmp_path / "mine.yaml", *arguments)
    assert out.code == 2, out.out
    assert said in out.err
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("data", "do"),
    [
        ("https://huggingface.co/datasets/a/b", "hf://datasets/a/b"),
        ("https://huggingface.co/datasets/a/b/tree/main", "hf://datasets/a/b"),
        ("https://huggingface.co/datasets/a/b/viewer/all/train?p=1", "hf://datasets/a/b"),
        ("", "name a file, a folder, a glob or a URI"),
    ],
)
def test_a_page_about_data_and_an_empty_path_are_none(data, do, clipmill, tmp_path):
    said = clipmill("init", data, "--out", tmp_path / "mine.yaml")
    assert said.code == 2
    assert do in said.err


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_data_on_the_web_are_read_where_they_lie(pairs, kept, clipmill, tmp_path):
    """A table and a zip of pictures, of a server on loopback; a file that is not there."""
    www = tmp_path / "www"
    www.mkdir()
    LAYOUTS["pandas_csv"](www, pairs)
    LAYOUTS["zip_of_flickrs_captions"](www, pairs)
    handler = partial(Quiet, directory=www)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for name in ("it.csv", "it.zip"):
            said = clipmill("init", f"{url}/{name}", "--out", tmp_path / f"{name}.yaml")
            assert said.code == 0, said.err
            assert "all 26 rows can be used" in said.out
            assert f"path: {url}/{name}" in (tmp_path / f"{name}.yaml").read_text().replace('"', "")
        gone = clipmill("init", f"{url}/gone.csv", "--out", tmp_path / "gone.yaml")
        server.shutdown()
    assert gone.code == 2
    assert "look at the address in a browser" in gone.err


def test_a_tar_that_is_none_is_an_argument_that_is_wrong(clipmill, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 500)
    said = clipmill("init", tmp_path / "a.tar", "--out", tmp_path / "mine.yaml")
    assert said.code == 2
    assert f"where: {tmp_path}/a.tar" in said.err
    assert not (tmp_path / "mine.yaml").exists()


def test_a_uri_with_keys_is_refused(clipmill, tmp_path):
    said = clipmill("init", "s3://KEY:SECRET@bucket/data", "--out", tmp_path / "mine.yaml")
    assert said.code == 2
    assert "KEY:SECRET" not in said.err
    assert "AWS_ACCESS_KEY_ID" in said.err


@pytest.mark.parametrize("verb", ["init", "curate"])
def test_a_glob_that_the_shell_wrote_out_is_to_be_quoted(verb, clipmill, tmp_path):
    for name in ("a.csv", "b.csv", "c.tsv"):
        (tmp_path / name).write_text(TWO)
    said = clipmill(verb, tmp_path / "a.csv", tmp_path / "b.csv", "--out", tmp_path / "run")
    assert said.code == 2
    assert "2 files: the shell wrote a glob out" in said.err
    assert f"quote it: clipmill {verb} '{tmp_path}/*.csv'" in said.err
    said = clipmill(verb, tmp_path / "a.csv", tmp_path / "c.tsv", "--out", tmp_path / "run")
    assert "give one path: a folder, or a glob in quotes" in said.err
    said = clipmill(verb, tmp_path / "a.csv", "more", "--out", tmp_path / "run")
    assert "more than it takes: more" in said.err


@pytest.mark.parametrize("verb", ["init", "curate"])
def test_data_of_which_no_row_can_be_used_are_shown_and_not_run(verb, drawn, clipmill, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for pair in drawn[:4]:
        (folder / pair.name).write_bytes(pair.image)
        (folder / pair.name).with_suffix(".txt").write_text(" ")
    said = clipmill(verb, folder, "--out", tmp_path / "run")
    assert said.code == 2
    assert "link or file" in said.out
    assert "of all 4 rows, 0 can be used: 4 have no caption\n  where: " in said.err
    assert "give data whose first rows can be read, or mend these" in said.err
    (tmp_path / "data" / "it.csv").write_text("url,text,no\nhttps://a.test/1,a b, \n")
    told = clipmill(verb, folder / "it.csv", "--caption", "no", "--out", tmp_path / "run").err
    assert "name the column that holds them: --caption NAME" in told
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


HEAD = """
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
pool = make_plan(load_recipe('mine.yaml')).stages['pool'].stage
assert len(pool.head(9)) == 2
"""


@pytest.mark.chaos  # seconds
def test_a_process_that_read_the_first_rows_of_a_csv_ends_well(clipmill, tmp_path):
    """A thread of Arrow's that let go of Python's last would end it with SIGABRT, three in four."""
    (tmp_path / "it.csv").write_text(TWO)
    clipmill("init", tmp_path / "it.csv", "--caption", "alt", "--out", tmp_path / "mine.yaml")
    beside = [
        subprocess.Popen([sys.executable, "-c", HEAD], cwd=tmp_path, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in beside:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
