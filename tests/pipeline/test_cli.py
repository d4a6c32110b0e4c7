"""The command line: verbs, JSON, exit codes, and what happens when it is stopped."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
CLIPMILL = [sys.executable, "-m", "clipmill.pipeline.cli"]
RECIPE = """
stages:
  pool:    {{uses: ingest.datacomp, path: {pool}/metadata, shard_rows: 30}}
  caption: {{uses: annotate.caption, from: pool}}
  subset:  {{uses: select.where, from: caption, where: caption_words >= 4}}
  uids:    {{uses: export.uid_list, from: subset}}
"""


@pytest.fixture
def recipe(generated, tmp_path) -> Path:
    path = tmp_path / "it.yaml"
    path.write_text(RECIPE.format(pool=generated))
    return path


@pytest.fixture(scope="module")
def done(generated, tmp_path_factory) -> Path:
    """A finished run."""
    from clipmill.pipeline.cli import main

    folder = tmp_path_factory.mktemp("done")
    (folder / "it.yaml").write_text(RECIPE.format(pool=generated))
    arguments = ["run", str(folder / "it.yaml"), "--out", str(folder / "run"), "--workers", "0"]
    assert main(arguments) == 0
    return folder / "run"


def test_help_lists_every_verb(clipmill):
    names = {path.stem for path in (ROOT / "clipmill/pipeline/verbs").glob("[a-z]*.py")}
    assert set(re.findall(r"^  (\w+) ", clipmill("--help").out, re.MULTILINE)) == names


# Every verb


def test_a_plan_shows_what_is_bound_and_what_is_done(recipe, done, clipmill):
    before = clipmill("plan", recipe, "-v").out
    assert "subset: select.where v1\n  from      caption\n" in before
    assert "reads     caption.caption_words" in before
    assert "needs     1 CPU, 2 GB a worker; exact; folder stages/subset-" in before
    after = clipmill("plan", recipe, "-v", "--out", done).out
    assert after.count("[done]") == 4


def test_a_plan_is_a_line_a_stage_with_what_its_source_has(recipe, done, clipmill):
    said = clipmill("plan", recipe)
    assert said.code == 0
    lines = said.out.splitlines()
    assert re.fullmatch(r"it: 4 stages, seed \d+", lines[0])
    assert re.fullmatch(
        r"  pool     ingest.datacomp   120 rows, 4 shards, 1 file, [\d.]+ kB", lines[1]
    )
    assert lines[2:4] == [
        "  caption  annotate.caption  from pool",
        "  subset   select.where      from caption",
    ]
    assert lines[-1] == f"next: clipmill run {recipe} --out run"
    assert len(lines) == 6
    after = clipmill("plan", recipe, "--out", done).out.splitlines()
    assert [line.split()[-1] for line in after[1:5]] == ["done"] * 4


def test_the_plan_of_the_quickstart_fits_a_screen(clipmill, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = clipmill("plan", "quickstart")
    lines = said.out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert said.code == 2  # for the pool is not made
    assert "demo/pool/trusted/metadata" in said.err


def test_a_setting_is_shown_as_a_recipe_has_it(recipe, clipmill):
    top = "subset.top={column: caption_words, rows: 3}"
    said = clipmill("plan", recipe, "-v", "--set", top).out
    assert "top: {column: caption_words, fraction: null, rows: 3" in said


def test_a_plan_says_how_many_pairs_would_be_compared(recipe, generated, tmp_path, clipmill):
    recipe.write_text(
        f"stages:\n  pool: {{uses: ingest.datacomp, path: {generated}/metadata}}\n"
        "  images: {uses: download.images, from: pool}\n"
        "  hash: {uses: annotate.phash, from: images}\n"
        "  near: {uses: dedup.phash, from: hash, max_distance: 4}\n"
    )
    said = clipmill("plan", recipe, "-v").out
    assert "compares  pairs: 3.1e+06 of 1,000,000 rows, 3.1e+10 of" in said
    out = tmp_path / "run"
    assert clipmill("run", recipe, "--out", out, "--until", "pool", "--workers", "0").code == 0
    known = clipmill("plan", recipe, "--out", out, "--json").json["stages"][-1]["candidates"]
    [(rows, pairs)] = known.items()
    assert pairs == pytest.approx(6.2e-6 * int(rows) ** 2 / 2, rel=0.01)


@pytest.mark.slow("nine commands")
def test_a_run_says_what_it_kept_what_it_lost_and_what_to_run_next(recipe, tmp_path, clipmill):
    run = ("run", recipe, "--out", tmp_path / "run", "--workers", 0)
    said = clipmill(*run)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == f"done: 4 stages in {tmp_path}/run"
    assert re.fullmatch(r"\d+ of 120 rows kept by 'subset' \(\d+\.\d%\); lost first to", lines[2])
    assert re.fullmatch(r" +\d+ +\d+\.\d%  subset: caption_words >= 4", lines[3])
    assert re.search(r"uids: \d+ rows, 3 files, .* kB in .*/uids-\w+/out", said.out)
    report = f"clipmill report --run {tmp_path}/run"
    assert lines[-4:-1] == ["next", f"  {report}", f"  clipmill funnel --run {tmp_path}/run"]
    assert re.fullmatch(r"this run took \d+\.\d s", lines[-1])
    assert "caption: 1 of 4 shards, 30 rows" in said.err
    assert re.search("caption: done in .* s, 120 rows", said.err)
    again = clipmill(*run)
    assert (again.code, again.out.splitlines()[:-1]) == (0, lines[:-1])
    assert "caption: found done, 120 rows\n" in again.err
    assert "caption: 1 of 4" not in again.err
    assert clipmill(*report.split()[1:]).code == 0
    made = clipmill(*run)
    assert f"  report: {tmp_path}/run.html\n" in made.out
    assert "clipmill report" not in made.out
    for where in ("caption_words >= 3", "caption_words >= 4"):  # the page is not of this subset
        other = clipmill(*run, "--set", f"subset.where={where}")
        assert f"  {report}\n" in other.out
        assert "run.html" not in other.out
    assert clipmill(*report.split()[1:]).code == 0
    summed = clipmill(*run, "--json").json["summary"]
    assert summed["endings"][0]["kept"] == int(lines[2].split()[0])


def test_a_run_that_keeps_nothing_ends_with_1_and_says_why_each_time(recipe, tmp_path, clipmill):
    run = ("run", recipe, "--out", tmp_path / "run", "--workers", 0)
    for _ in range(2):
        said = clipmill(*run, "--set", "subset.where=caption_words >= 400")
        assert said.code == 1
        assert said.out.startswith(
            "0 of 120 rows kept by 'subset': subset: caption_words >= 400 took 120\n"
            "  do:    if that is not meant, change 'subset' in the recipe\n"
        )
        assert "done:" not in said.out


@pytest.mark.slow("seven runs")
def test_links_that_all_fail_end_with_1_and_the_command_that_tries_them_again(tmp_path, clipmill):
    rows = [f"http://127.0.0.1:9/{row}.jpg,the caption of number {row}" for row in range(40)]
    (tmp_path / "links.csv").write_text("\n".join(["url,text", *rows]))
    recipe = tmp_path / "links.yaml"
    recipe.write_text(
        f"stages:\n  pool: {{uses: ingest.url_list, path: {tmp_path}/links.csv, shard_rows: 10}}\n"
        "  images: {uses: download.images, from: pool, allow_private_addresses: true, retries: 0}\n"
        "  look:   {uses: annotate.image, from: images}\n"
        "  subset: {uses: select.where, from: look, where: min_side >= 16}\n"
        "  out:    {uses: export.parquet, from: subset}\n"
    )
    run = ("run", recipe, "--out", tmp_path / "run", "--workers", 0)
    retry = f"  clipmill {' '.join(map(str, run))} --retry refused\n"
    advice = "nothing listens there: start the server, or check host and port of the links"
    for _ in range(2):
        stopped = clipmill(*run)
        assert stopped.code == 1
        assert stopped.out.startswith("images: 100% of the first 30 rows failed for one reason: ")
        assert f"  do:    {advice}; then run again with --retry refused." in stopped.out
        assert retry in stopped.out
        assert "look: done" not in stopped.err
    for _ in range(2):
        empty = clipmill(*run, "--keep-going")
        assert empty.code == 1
        first, do, *_ = empty.out.splitlines()
        assert first == "0 of 40 rows kept by 'subset': images: refused took 40"
        assert do == f"  do:    {advice}; then run again with --retry refused"
        assert (
            "images: 100.0% of 40 rows failed for reasons that may be temporary: 40 refused"
            in empty.out
        )
        assert retry in empty.out
    assert clipmill(*run).out.startswith("images: 100% of the first 30 rows failed")
    never = clipmill(*run, "--keep-going", "--retry", "host_down")
    assert "--retry host_down: no row ever failed for it" in never.out


@pytest.mark.parametrize("verb", ["status", "funnel"])
def test_a_page_and_its_json_say_the_same_numbers(verb, done, clipmill):
    page, found = clipmill(verb, "--run", done).out, clipmill(verb, "--run", done, "--json").json
    assert {stage.get("name", stage.get("stage")) for stage in found["stages"]} >= {
        "pool",
        "subset",
    }
    assert all(f"{stage['rows']:,} rows" in page for stage in found["stages"])


def test_json_of_the_other_verbs_can_be_read(recipe, done, tmp_path, clipmill):
    plan = clipmill("plan", recipe, "--json", "--out", done).json
    assert [stage["done"] for stage in plan["stages"]] == ["done"] * 4
    cause = clipmill("funnel", "--run", done, "--json").json["ends"][0]["causes"][0]
    why = clipmill("why", cause["example"], "--run", done, "--json").json
    assert why["ends"][0]["reason"] == "caption_words >= 4"
    outcome = clipmill("run", recipe, "--out", done, "--workers", 0, "--json").json
    assert outcome["complete"]
    assert outcome["stopped"] == {}
    to = ("--to", "uid_list", "--out", tmp_path / "uids", "--workers", 0, "--json")
    assert "uids.npy" in clipmill("export", "--run", done, *to).json["files"]
    assert clipmill("doctor", "--json").json


def test_until_runs_a_stage_and_what_it_needs(recipe, tmp_path, clipmill):
    out = tmp_path / "run"
    assert clipmill("run", recipe, "--out", out, "--workers", 0, "--until", "caption").code == 0
    assert {path.name.partition("-")[0] for path in (out / "stages").iterdir()} == {
        "pool",
        "caption",
    }
    assert clipmill("status", "--run", out, "--json").json["stages"][2]["shards"] == 0
    assert clipmill("run", recipe, "--out", out, "--workers", 0).code == 0


def test_a_recipe_of_a_run_that_cannot_be_read_is_named_and_run_again(
    recipe, done, tmp_path, clipmill
):
    run = shutil.copytree(done, tmp_path / "run")
    (run / "recipes" / "zzz.txt").write_text("a stranger's")
    (run / "recipes" / "99991231T235959000000000-0123456789ab.json").mkdir()
    texts = ["", "{", "{}", "[1]", "null", '{"stages": 1}', "[" * 100_000, b"\xff\xfe"]
    for text in texts:
        ran = max(path for path in run.glob("recipes/*.json") if path.is_file())
        ran.write_bytes(text if isinstance(text, bytes) else text.encode())
        for verb in ("status", "funnel"):
            said = clipmill(verb, "--run", run)
            assert said.code == 2, text
            assert said.err.startswith("clipmill: a recipe that cannot be read\n  where: "), text
            assert f"/recipes/{ran.name}\n  do:    run the recipe again, or delete it" in said.err
        assert clipmill("run", recipe, "--out", run, "--workers", 0).code == 0, text
        assert clipmill("status", "--run", run).code == 0, text


# Exit codes


def test_a_stage_that_fails_ends_with_1_and_says_what_waits_for_it(recipe, tmp_path, clipmill):
    pool = tmp_path / "two"  # of whose files only the first is looked at before the run
    pool.mkdir()
    columns = {"uid": ["0" * 32], "url": ["http://a.test/1"], "text": ["a caption"]}
    pq.write_table(pa.table(columns), pool / "0.parquet")
    pq.write_table(pa.table({"uid": ["1" * 32]}), pool / "1.parquet")
    sets = ("--set", f"pool.path={pool}", "--workers", 0)
    said = clipmill("run", recipe, "--out", tmp_path / "run", *sets)
    assert said.code == 1
    assert "pool: no column 'url' and 'text'" in said.out
    assert f"where: {pool}/1.parquet" in said.out
    assert "not complete: caption, subset, uids" in said.out
    assert "mend the cause and run again" in said.out
    assert f"  clipmill run {recipe} --set pool.path={pool} --out" in said.out
    found = clipmill("run", recipe, "--out", tmp_path / "run", *sets, "--json").json
    assert not found["complete"]
    assert found["stopped"]["pool"]["do"]
    assert found["stopped"]["caption"] is None


def test_a_run_refuses_a_folder_of_others_and_leaves_it_as_it_is(recipe, tmp_path, clipmill):
    out = tmp_path / "photos"
    (out / "2019").mkdir(parents=True)
    said = clipmill("run", recipe, "--out", out, "--workers", 0)
    assert said.code == 2
    assert "the folder holds other files: 2019" in said.err
    assert "give --out a new folder" in said.err
    assert [path.name for path in out.rglob("*")] == ["2019"]
    (out / "2019").rmdir()
    (out / ".DS_Store").touch()  # nobody's work
    assert clipmill("run", recipe, "--out", out, "--workers", 0).code == 0
    (out / "run.json").unlink()  # as an error may ask for
    assert clipmill("run", recipe, "--out", out, "--workers", 0).code == 0


def test_a_changed_byte_in_what_says_whose_a_run_folder_is_is_named(recipe, tmp_path, clipmill):
    out = tmp_path / "run"
    run = ("run", recipe, "--out", out, "--workers", 0)
    assert clipmill(*run).code == 0
    path = out / "run.json"
    whole = path.read_bytes()
    for changed in (whole.replace(b"{}", b'{"a": {}}'), whole.replace(b'"stages"', b'"stagez"')):
        assert changed != whole
        path.write_bytes(changed)
        said = clipmill(*run)
        assert said.code == 2
        assert f"where: {path}" in said.err
        assert "delete it if the run's seed is 0" in said.err
    path.unlink()
    assert clipmill(*run).code == 0
    assert path.read_bytes() == whole
    path.write_bytes(b'{"format": 1, "seed": 0, "stages": {}}')  # as older versions have it
    assert clipmill(*run).code == 0


def test_a_set_that_is_forgotten_is_told_before_the_run(recipe, tmp_path, clipmill):
    run = ("run", recipe, "--out", tmp_path / "run", "--workers", 0)
    where = "subset.where=caption_words >= 2"
    assert "last run" not in clipmill(*run, "--set", where, "--set", "pool.shard_rows=60").err
    told = f"last run had {where}; this one has caption_words >= 4: --set '{where}' has it again"
    first = clipmill(*run, "--set", "pool.shard_rows=60").err
    assert f"clipmill: note: {told}\n" in first
    assert "shard_rows" not in first
    assert first.index("note:") < first.index("pool:")
    assert "last run had pool.shard_rows=60; the recipe" not in clipmill(*run).err
    assert "last run" not in clipmill(*run).err  # once


# Stopped


@pytest.mark.chaos  # seconds
def test_ctrl_c_ends_with_130_and_the_next_run_goes_on(recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("shard_rows: 30", "shard_rows: 1"))
    command = [*CLIPMILL, "run", str(recipe), "--out", str(tmp_path / "run"), "--workers", "1"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("caption: 1 of 120"):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.stderr.read()
    assert process.wait(30) == 130
    assert said.endswith("stopped; run the same command again to go on\n")
    assert "Traceback" not in said
    records = list(tmp_path.glob("run/stages/caption-*/0?????.json"))
    assert 1 <= len(records) < 120
    before = {path: path.stat().st_mtime_ns for path in records}
    assert not (tmp_path / "run" / "lock.json").exists()
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.chaos  # seconds
def test_two_commands_in_one_folder_do_not_mix(recipe, tmp_path, clipmill):
    recipe.write_text(recipe.read_text().replace("shard_rows: 30", "shard_rows: 4"))
    command = ["run", str(recipe), "--out", str(tmp_path / "run"), "--workers", "1"]
    first = subprocess.Popen([*CLIPMILL, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    first.stderr.readline()  # it is at work
    second = clipmill(*command)
    assert second.code == 2
    assert f"another run works here: process {first.pid}" in second.err
    first.stderr.read()
    assert first.wait(60) == 0
    assert clipmill(*command).code == 0


@pytest.mark.chaos  # seconds
def test_a_reader_that_leaves_stops_no_run_and_hides_no_failure(recipe, tmp_path):
    """`clipmill run … 2>&1 | head`."""
    recipe.write_text(recipe.read_text().replace("shard_rows: 30", "shard_rows: 2"))
    run = f"{' '.join(CLIPMILL)} run {recipe} --out {tmp_path}/run --workers 0"
    for more, code in (("", 0), (" --set pool.path=nowhere", 1)):
        shell = f"({run}{more}; echo $? >{tmp_path}/rc) 2>&1 | head -3"
        ran = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
        assert ran.stdout.count("\n") == 3
        assert (tmp_path / "rc").read_text() == f"{code}\n"
    assert len(list(tmp_path.glob("run/stages/uids-*/manifest.json"))) == 1


def test_a_reader_that_leaves_is_no_failure(done):
    shell = f"{' '.join(CLIPMILL)} status --run {done} --json | true; exit ${{PIPESTATUS[0]}}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ran = subprocess.run(
        ["bash", "-c", shell], cwd=ROOT, env=buffered, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_commands_to_paste_hold_paths_with_spaces(clipmill, tmp_path):
    data, recipe = tmp_path / "my pairs.csv", tmp_path / "my recipe.yaml"
    data.write_text("url,text\nhttps://x.org/1.jpg,a cat\n")
    recipe.write_text(f"stages:\n  pool: {{uses: ingest.url_list, path: '{data}'}}\n")
    assert f"clipmill curate '{data}' --out run" in clipmill(data).err
    assert f"clipmill run '{recipe}' --out run" in clipmill(recipe).err
    assert f"clipmill init '{data}' makes" in clipmill("plan", data).err
    assert f"next: clipmill run '{recipe}' --out run" in clipmill("plan", recipe).out
    given = ("--until", "pool", "--stages", recipe.parent)
    command = f"next: clipmill run '{recipe}' --until pool --stages {recipe.parent} --out run\n"
    assert clipmill("plan", recipe, *given).out.endswith(command)
    told = clipmill("plan", recipe, "--set", "seed=3", "--set", f"pool.path={data}").out
    assert f"run '{recipe}' --set seed=3 --set 'pool.path={data}' --out run" in told
    assert f"--out '{tmp_path}/my pool'" in clipmill("pool", "serve", tmp_path / "my pool").err


def test_a_shell_completes_verbs_options_and_choices(clipmill, tmp_path):
    help_before = clipmill("--help").out
    script = tmp_path / "completion.bash"
    script.write_text(
        clipmill("--completion", "bash").out
        + """
try() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _shtab_clipmill
  echo "${COMPREPLY[@]}"
}
try clipmill fun; try clipmill export --t; try clipmill export --to web; try clipmill sweep --vary
"""
    )
    done = subprocess.run(["bash", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["funnel", "--to", "webdataset", "--vary"], done.stderr
    assert "#compdef clipmill" in clipmill("--completion", "zsh").out
    assert clipmill("--help").out == help_before  # within one process, too
