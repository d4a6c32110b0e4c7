"""What reaches a terminal: no command to it, no key, no line that a stranger wrote as ours."""

import io
import json
import os
import re
import sys
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline import submit
from clipmill.pipeline.errors import ClipmillError
from clipmill.pipeline.executors import Step
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.stage import Resources
from clipmill.pipeline.terminal import Guarded, cut, guard, harmless, one_line
from tests.pipeline.executors.work import quote
from tests.pipeline.head import Head

COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
NAME = "\x1b]0;evil\x07\x1b[31m\x9b2J\r\u202e\u2066\x7f[red]:smile:"  # of a file
EVIL = f"{NAME}\0\x85"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc é 中 👩‍👩‍👧", "a\tb\nc é 中 👩‍👩‍👧"),
        ("\x1b[31mred", "\\u001b[31mred"),
        ("back\rover\x00\x7f\x9b2J", "back\\u000dover\\u0000\\u007f\\u009b2J"),
        ("\u202egnp.exe\u2069", "\\u202egnp.exe\\u2069"),
        ("at s3://KEY:SECRET@bucket/run", "at s3://bucket/run"),
    ],
)
def test_a_control_character_is_shown_as_its_code_and_a_key_not_at_all(text, shown):
    assert harmless(text) == shown


def test_json_stays_the_same_json():
    printed = harmless(json.dumps({"text": EVIL}))
    assert not COMMANDS.search(printed)
    assert json.loads(printed) == {"text": EVIL}


def test_a_long_text_is_cut_in_its_middle_and_told_by_its_length():
    condition = f"uid IN ({', '.join(repr(f'{n:032x}') for n in range(1000))})"
    assert cut(condition, 40) == "uid IN ('00000000000 … (36,007 characters) … 0000000000000003e7')"
    assert cut("short") == "short"
    assert one_line("a\n  done: 3\r\x85\u2028b") == "a done: 3 b"


def test_an_error_holds_no_key_and_no_page_of_text():
    error = ClipmillError("s3://KEY:SECRET@b", "at https://me:SECRET@host/x", "x" * 9000)
    assert error.args[:2] == ("s3://b", "at https://host/x")
    assert len(str(error)) < 2200


def test_a_stream_is_guarded_once_and_writes_what_its_encoding_lacks_as_a_code(monkeypatch):
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", raw)
    guard()
    guard()
    assert isinstance(sys.stdout, Guarded)
    assert sys.stdout.stream is raw
    print("é \udcff")
    sys.stdout.writelines(["\x1b"])
    assert raw.buffer.getvalue() == b"\\xe9 \\udcff\n\\u001b"


def test_a_reader_that_leaves_takes_nothing_with_it(monkeypatch):
    read, write = os.pipe()
    stream = Guarded(os.fdopen(write, "w", buffering=1))
    os.close(read)
    print("nobody reads this", file=stream)
    stream.write("nor this\n")
    stream.flush()
    stream.close()


def test_what_a_stage_prints_in_a_worker_is_guarded_too(capfd):
    step = Step(name="quote", start=partial(partial, quote), resources=Resources())
    executor = LocalExecutor(1, with_main=False)
    try:
        assert list(executor.stream([step], [{"text": EVIL}])) == [{"text": EVIL}]
    finally:
        executor.close()
    said = capfd.readouterr().err
    assert "evil" in said
    assert not COMMANDS.search(said)


# Every verb


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder with a pool of such captions, links, keys and file names, and a recipe over it."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "pool").mkdir()
    texts = [f"a caption of five {EVIL}", NAME, "an honest caption of six words"]
    rows = {"url": [f"http://{EVIL}/{n}" for n in range(3)], "text": texts, "key": [EVIL] * 3}
    pq.write_table(pa.table(rows), folder / "pool" / f"{NAME}.parquet")
    (folder / "torn").mkdir()
    (folder / "torn" / f"{NAME}.parquet").write_bytes(b"PAR1")
    where = json.dumps(f"caption_words >= 1 AND text <> '{NAME}'")
    (folder / f"{NAME}.yaml").write_text(
        f"stages:\n  pool: {{uses: ingest.url_list, path: {folder}/pool, extra: {{key: string}}}}\n"
        "  caption: {uses: annotate.caption, from: pool}\n"
        f"  subset: {{uses: select.where, from: caption, where: {where}}}\n"
    )
    return folder


@pytest.fixture
def tell(hostile, clipmill, monkeypatch):
    """Runs a verb there; what it printed holds no command."""
    monkeypatch.chdir(hostile)

    def told(*arguments: object, code: int = 0):
        said = clipmill(*arguments)
        assert said.code == code, said.err
        assert not COMMANDS.search(said.out + said.err)
        assert "evil" in said.out + said.err
        return said

    return told


@pytest.mark.slow("every verb")
def test_no_verb_passes_on_a_command_to_the_terminal(tell, hostile, clipmill):
    recipe, run = f"{NAME}.yaml", f"{NAME}-run"
    of_run = ("--run", run)
    tell("plan", recipe)
    assert NAME in tell("plan", recipe, "--json").json["stages"][2]["settings"]["where"]
    torn = ("--set", "pool.path=torn", "--out", f"{NAME}-torn", "--workers", 0)
    tell("run", recipe, *torn, code=1)
    tell("status", "--run", f"{NAME}-torn")
    tell("run", recipe, "--out", run, "--workers", 0)
    tell("status", *of_run)
    assert "[red]" in tell("funnel", *of_run).out
    [cause] = tell("funnel", *of_run, "--json").json["ends"][0]["causes"]
    assert "text <> " in tell("why", cause["example"], *of_run).out
    values = tell("why", cause["example"], *of_run, "--json").json["stages"][0]["values"]
    assert (values["text"], values["key"]) == (NAME, EVIL)
    vary = ("--stage", "subset", "--vary", "caption_words=1:5:1")
    tell("sweep", *of_run, *vary)
    tell("sweep", *of_run, *vary, "--json")
    tell("report", *of_run, "--out", f"{NAME}.html")
    tell("export", *of_run, "--to", "csv", "--out", f"{NAME}-out", "--workers", 0)
    tell("pool", "score", NAME, *of_run, code=2)
    tell("pool", "generated", "--out", f"{NAME}.html", "--workers", 1, code=2)


def test_no_list_of_concepts_does(tell, hostile):
    corpus = hostile / f"{NAME}.txt"
    corpus.write_text(f"evil\x1b]0;x evil\x1b]0;x {NAME}\n" * 200)
    out = f"{NAME}.list.parquet"
    tell("concepts", "build", out, "--language", "en", "--corpus", corpus, "--min-unigram-count", 1)
    tell("concepts", "show", out)
    tell("concepts", "show", out, "--json")
    tell("concepts", "show", f"{NAME}-none", code=2)


def test_no_doctor_does_and_no_argument(tell, hostile):
    (hostile / NAME).mkdir()
    tell("doctor", "tasks", NAME, code=1)
    tell("doctor", "--model", NAME, code=1)
    tell(NAME, code=2)
    tell("status", "--run", "run", NAME, code=2)


def test_no_log_of_a_job_does(tell, monkeypatch):
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    head = Head(logs=[[f"{EVIL}\n", "done\n"]])
    to = ("--address", head.address, "--out", "s3://bucket/evil")
    sent = ("--set", "pool.path=s3://bucket/evil")
    try:
        assert tell("submit", f"{NAME}.yaml", *to, *sent).out.endswith("\ndone\n")
    finally:
        head.close()


def test_a_condition_of_a_thousand_uids_is_cut_on_every_page(hostile, clipmill, tmp_path):
    uids = ", ".join(f"'{n:032x}'" for n in range(1000))
    recipe = tmp_path / "it.yaml"
    recipe.write_text(
        f"stages:\n  pool: {{uses: ingest.url_list, path: {hostile}/pool}}\n"
        "  caption: {uses: annotate.caption, from: pool}\n  subset:\n    uses: select.where\n"
        f'    from: caption\n    where: "caption_words < 9 AND uid IN ({uids})"\n'
    )
    run = ("--run", tmp_path / "run")
    said = clipmill("run", recipe, "--out", tmp_path / "run", "--workers", 0)
    assert said.code == 1
    assert said.out.startswith("0 of 3 rows kept by 'subset'")
    cause = clipmill("funnel", *run, "--json").json["ends"][0]["causes"][0]
    assert cause["reason"] == f"uid IN ({uids})"
    pages = [
        said,
        clipmill("plan", recipe),
        clipmill("funnel", *run),
        clipmill("why", cause["example"], *run),
        clipmill("sweep", *run, "--stage", "subset", "--vary", "nothing=1:2:1"),
    ]
    assert [page.code for page in pages] == [1, 0, 0, 0, 2]
    assert all(len(line) < 400 for page in pages for line in (page.out + page.err).splitlines())
    assert all(" … (36,007 characters) … " in page.out for page in pages[2:4])
