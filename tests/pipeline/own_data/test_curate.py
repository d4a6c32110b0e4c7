"""`clipmill curate`: one command to exports, a report and a recipe to go on from."""

import socket

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipmill as cm
from clipmill.pipeline.own_data.look import look_at
from clipmill.pipeline.own_data.recipe import Wish, starter
from clipmill.pipeline.pools.server import start_server
from tests.pipeline.own_data.written import pictures_and_texts


@pytest.fixture
def scored(drawn, tmp_path):
    """Parquet of the pairs with two scores, the second of which rises."""
    table = pa.table(
        {
            "image": [pair.image for pair in drawn],
            "caption": [pair.caption for pair in drawn],
            "aesthetic": np.linspace(9, 1, len(drawn)),
            "similarity": np.linspace(0.1, 0.4, len(drawn)),
        }
    )
    pq.write_table(table, tmp_path / "scored.parquet")
    return tmp_path / "scored.parquet"


@pytest.fixture
def curate(clipmill, tmp_path):
    def curate(data, *more, code=0):
        said = clipmill("curate", data, "--out", tmp_path / "run", "--workers", 0, *more)
        assert said.code == code, said.out + said.err
        return said

    return curate


def kept(clipmill, tmp_path) -> int:
    (end,) = clipmill("funnel", "--run", tmp_path / "run", "--json").json["ends"]
    return end["kept"]


@pytest.mark.slow("a whole run")
def test_captions_that_sell_or_fit_any_picture_leave_and_a_short_ones_language_is_kept(
    drawn, curate, clipmill, tmp_path
):
    captions = [pair.caption for pair in drawn]
    captions[:4] = (
        *("BEST PRICE!!! buy pills", "click to view larger image"),
        *("Black circle", "purple circle"),  # Farsi, at a confidence of 0.34
    )
    table = pa.table({"image": [pair.image for pair in drawn], "caption": captions})
    pq.write_table(table, tmp_path / "sold.parquet")
    curate(tmp_path / "sold.parquet")
    (uids,) = (tmp_path / "run").glob("stages/parquet-*/out")
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(uids.glob("*.parquet")))
    lost = set(captions) - set(rows["caption"].to_pylist())
    assert lost == {"BEST PRICE!!! buy pills", "click to view larger image", "IMG_0025.jpg"}
    assert {"language", "language_confidence"} <= set(rows.column_names)


@pytest.mark.slow("two whole runs")
def test_one_command_gives_exports_a_report_and_a_recipe_and_again_finds_all_done(
    scored, curate, clipmill, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    said = curate(f"../{scored.name}")
    assert "path: ./scored.parquet " in (tmp_path / "run.yaml").read_text()
    assert kept(clipmill, tmp_path) == 24
    assert f"report: {tmp_path}/run.html" in said.out
    assert "clipmill report" not in said.out
    again = f"clipmill run {tmp_path}/run.yaml --out {tmp_path}/run"
    assert said.out.endswith(f"recipe: {tmp_path}/run.yaml; change a line, then: {again}\n")
    assert "<html" in (tmp_path / "run.html").read_text(encoding="utf-8")
    (uids,) = (tmp_path / "run").glob("stages/uids-*/out/uids.npy")
    assert len(np.load(uids)) == 24
    (shards,) = (tmp_path / "run").glob("stages/parquet-*/out")
    assert sum(len(pq.read_table(path)) for path in shards.glob("*.parquet")) == 24
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/stages").rglob("0*")}
    curate(scored)
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "run/stages").rglob("0*")
    }


def test_keep_takes_the_best_by_a_column_and_asks_which_of_two(scored, curate, clipmill, tmp_path):
    said = curate(scored, "--keep", "0.5", code=2)
    assert "2 may be the score: aesthetic, similarity" in said.err
    assert not (tmp_path / "run").exists()
    curate(scored, "--keep", "0.5", "--score", "similarity")
    assert kept(clipmill, tmp_path) == 12
    (shards,) = (tmp_path / "run").glob("stages/parquet-*/out")
    values = pq.read_table(next(shards.glob("*.parquet")))["similarity"].to_pylist()
    assert min(values) >= 0.23


@pytest.mark.slow("three whole runs")
def test_another_share_writes_the_recipe_anew_until_it_is_changed_by_hand(
    scored, curate, clipmill, tmp_path
):
    curate(scored, "--keep", "0.5", "--score", "similarity")
    curate(scored, "--keep", "0.25", "--score", "similarity")
    assert kept(clipmill, tmp_path) == 6
    recipe = tmp_path / "run.yaml"
    recipe.write_text(recipe.read_text().replace("fraction: 0.25", "fraction: 0.75"))
    said = curate(scored, code=2)
    assert "changed by hand" in said.err
    assert f"clipmill run {recipe} --out {tmp_path}/run" in said.err
    assert clipmill("run", recipe, "--out", tmp_path / "run", "--workers", 0).code == 0
    assert kept(clipmill, tmp_path) == 18


def test_a_run_of_other_data_and_a_foreign_folder_are_left_as_they_are(
    scored, drawn, curate, tmp_path
):
    curate(scored, "--set", "near.max_distance=0")
    recipe = (tmp_path / "run.yaml").read_text()
    (tmp_path / "data").mkdir()
    pictures_and_texts(tmp_path / "data", drawn[:3])
    said = curate(tmp_path / "data", code=2)
    assert f"{tmp_path}/run is the run of other data" in said.err
    said = curate(scored, "--set", "near.max_distance=99", code=2)
    assert (tmp_path / "run.yaml").read_text() == recipe
    said = curate(scored, "--out", tmp_path / "data", code=2)
    assert "the folder holds other files" in said.err
    assert not (tmp_path / "data.yaml").exists()


def test_a_page_that_no_run_drew_is_left_as_it_is(scored, curate, tmp_path):
    (tmp_path / "run.html").write_text("mine")
    said = curate(scored, code=2)
    assert f"a file that is there already\n  where: {tmp_path}/run.html" in said.err
    assert (tmp_path / "run.html").read_text() == "mine"
    assert not (tmp_path / "run.yaml").exists()


def test_a_recipe_in_other_letters_is_left_as_it_is(scored, curate, tmp_path):
    (tmp_path / "run.yaml").write_bytes("seed: 0  # größer\n".encode("cp1252"))
    assert "a recipe that was changed by hand" in curate(scored, code=2).err
    assert (tmp_path / "run.yaml").read_bytes().endswith("# größer\n".encode("cp1252"))


def test_keys_of_a_run_folder_are_not_in_its_recipe(scored):
    data = look_at(str(scored), {})
    text = starter(data, Wish(), "curate", "clipmill run run.yaml --out s3://AKIA:hush@bucket/run")
    assert "--out s3://bucket/run" in text
    assert "hush" not in text


def test_pictures_without_captions_leave_alone(drawn, curate, tmp_path):
    (tmp_path / "data").mkdir()
    for pair in drawn:
        (tmp_path / "data" / pair.name).write_bytes(pair.image)
    said = curate(tmp_path / "data")
    assert "folder of pictures, no captions, 26 rows" in said.out
    (shards,) = (tmp_path / "run").glob("stages/parquet-*/out")
    rows = pq.read_table(next(shards.glob("*.parquet")))
    assert (len(rows), set(rows["caption"].to_pylist())) == (25, {""})
    (uids,) = (tmp_path / "run").glob("stages/uids-*/out/uids.npy")
    assert len(np.load(uids)) == 25


def test_links_that_nobody_answered_are_asked_again(drawn, curate, clipmill, tmp_path):
    www = tmp_path / "served" / "www"
    www.mkdir(parents=True)
    (www / "_behaviour.json").write_text("{}")
    for pair in drawn[:6]:
        (www / pair.name).write_bytes(pair.image)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    rows = "".join(
        f"http://127.0.0.1:{port}/{p.name},two words for {p.name[:4]}\n" for p in drawn[:6]
    )
    (tmp_path / "it.csv").write_text(f"url,text\n{rows}")
    words = ["--set", "images.allow_private_addresses=true", "--set", "images.retries=0"]
    said = curate(tmp_path / "it.csv", *words, code=1)
    assert "refused" in said.out
    assert not (tmp_path / "run.html").exists()
    with start_server(tmp_path / "served", port):
        curate(tmp_path / "it.csv", *words, "--retry", "refused")
    assert kept(clipmill, tmp_path) == 6


@pytest.mark.chaos
def test_keep_by_a_model(drawn, curate, clipmill, tmp_path):
    (tmp_path / "data").mkdir()
    pictures_and_texts(tmp_path / "data", drawn)
    curate(tmp_path / "data", "--keep", "0.5", "--model", "reference", "--to", "webdataset")
    assert kept(clipmill, tmp_path) == 12


@pytest.mark.chaos
def test_a_score_without_a_share_is_stored_and_cuts_nothing(drawn, curate, clipmill, tmp_path):
    (tmp_path / "data").mkdir()
    pictures_and_texts(tmp_path / "data", drawn)
    curate(tmp_path / "data", "--model", "reference")
    assert kept(clipmill, tmp_path) == 24
    (shards,) = (tmp_path / "run").glob("stages/parquet-*/out")
    assert pq.read_table(next(shards.glob("*.parquet")))["clip_score"].null_count == 0


@pytest.mark.chaos
def test_keep_by_what_trusted_pairs_teach(drawn, curate, clipmill, tmp_path):
    for name in ("data", "trusted"):
        (tmp_path / name).mkdir()
        pictures_and_texts(tmp_path / name, drawn)
    curate(tmp_path / "data", "--keep", "0.5", "--trusted", tmp_path / "trusted")
    assert kept(clipmill, tmp_path) == 12


def test_links_are_fetched_and_set_reaches_the_run(pairs, curate, clipmill, tmp_path):
    rows = "".join(f'{pair.url},"{pair.caption.replace(chr(34), "")}"\n' for pair in pairs[:8])
    (tmp_path / "it.csv").write_text(f"url,text\n{rows}")
    said = curate(tmp_path / "it.csv", "--set", "images.allow_private_addresses=true")
    assert kept(clipmill, tmp_path) == 8
    assert said.out.endswith("--set images.allow_private_addresses=true\n")
    assert "own network" not in said.out


def test_links_into_ones_own_network_are_told_and_the_refusal_names_the_flag(
    pairs, curate, clipmill, tmp_path
):
    rows = "".join(f"{pair.url},a caption of some words\n" for pair in pairs[:8])
    (tmp_path / "it.csv").write_text(f"url,text\n{rows}")
    said = curate(tmp_path / "it.csv", code=1)
    told, stopped = said.out.split("images: 100% of the first", 1)
    assert "the links lead into your own network, to 127.0.0.1:\n" in told
    flag = "--set images.allow_private_addresses=true"
    assert f"then run again with {flag}." in stopped
    command = f"clipmill run {tmp_path}/run.yaml --out {tmp_path}/run --workers 0 {flag}"
    assert stopped[stopped.index("next\n") :].splitlines()[1] == f"  {command}"
    assert "--retry" not in stopped
    mended = clipmill(*command.split()[1:])
    assert mended.code == 0
    assert f"  clipmill report --run {tmp_path}/run\n" in mended.out  # curate alone draws it
    assert clipmill("report", "--run", tmp_path / "run").out == f"{tmp_path}/run.html\n"


def test_every_text_of_a_list_leaves(drawn, curate, tmp_path):
    texts = [[pair.caption, f"{pair.caption} again", pair.caption] for pair in drawn[:6]]
    table = pa.table({"image": [pair.image for pair in drawn[:6]], "captions": texts})
    pq.write_table(table, tmp_path / "it.parquet")
    assert (
        "captions holds lists: the first text is the caption"
        in curate(tmp_path / "it.parquet", "--to", "parquet", "huggingface").out
    )
    for form in ("parquet", "huggingface"):
        (shards,) = (tmp_path / "run").glob(f"stages/{form}-*/out")
        rows = pq.read_table(next(shards.rglob("*.parquet"))).to_pylist()
        left = sorted([text["text"] for text in row["texts"]] for row in rows)
        assert left == sorted(row[:2] for row in texts)
    counted = {told.stage: told for told in cm.open(tmp_path / "run").funnel().texts}
    assert counted["pool"].texts == counted["unique"].kept == {"original": 18}  # as in the file
