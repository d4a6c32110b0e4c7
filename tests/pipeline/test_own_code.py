"""A user's own stages: found where the command says, sent as they were read, told when changed."""

import ast
import gc
import hashlib
import os
import shutil
import sys
from contextlib import closing
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline import own_code
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines

LENGTH = """
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from clipmill.metadata.schema import REASON, TEXT, Column
from clipmill.pipeline.stage import RowStage

from ..counting import {function}

LENGTH = Column("length", pa.int64(), "0 up", "How long a caption is.")


@dataclass(frozen=True, kw_only=True)
class Length(RowStage):
    version = {version}
    determinism = "exact"
    reads = (TEXT,)
    writes = (LENGTH,)

    def open(self, worker):
        return partial(measured)


def measured(batch):
    none = pa.nulls(batch.num_rows, pa.string()).dictionary_encode()
    return pa.table({{"length": {function}(batch["text"]), REASON.name: none}})
"""
COUNTING = """
import pkgutil

import pyarrow.compute as pc

FILES = ("words.txt",)
assert pkgutil.get_data(__name__, "words.txt").startswith(b"one two")


def letters(text):
    return pc.cast(pc.utf8_length(text), "int64")
"""
USED = {"measure/length.py", "counting.py", "words.txt"}
RECIPE = """
stages:
  pool: {uses: ingest.url_list, path: it.csv, caption_col: text}
  length: {uses: measure.length, from: pool}
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A recipe of two rows with a stage of its own beside it, which imports another own file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "it.yaml").write_text(RECIPE)
    (tmp_path / "it.csv").write_text("url,text\nhttp://a.test/1,one\nhttp://a.test/2,three\n")
    (tmp_path / "mine" / "stages" / "measure").mkdir(parents=True)
    (tmp_path / "mine" / "stages" / "counting.py").write_text(COUNTING)
    (tmp_path / "mine" / "stages" / "words.txt").write_text("one two")
    (tmp_path / "mine" / "stages" / "key.pem").write_text("declared by none")
    write_stage(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_modules():
    """What another test imported under the private name is not there."""
    for name in [it for it in sys.modules if it.startswith(own_code.NAME)]:
        del sys.modules[name]


@pytest.fixture
def without_root(monkeypatch):
    """A path without the repository, from which a bare `pipeline` would be found."""
    monkeypatch.setattr(
        sys, "path", [it for it in sys.path if it and not Path(it, "pipeline").exists()]
    )


def write_stage(project: Path, version: int = 1, function: str = "letters") -> Path:
    file = project / "mine" / "stages" / "measure" / "length.py"
    file.write_text(LENGTH.format(version=version, function=function))
    return file


def stored(clipmill, column: str = "length") -> list:
    shown = clipmill("show", "--run", "run", "--stages", "mine/stages", "--json", "length")
    assert shown.code == 0, shown.err
    return [row["columns"][f"length.{column}"] for row in shown.json["rows"]]


@pytest.mark.parametrize("packages", ["folders", "packages"])
def test_a_stage_beside_the_recipe_and_a_file_that_it_imports(project, clipmill, packages):
    if packages == "packages":
        for folder in ("stages", "stages/measure"):
            (project / "mine" / folder / "__init__.py").touch()
    ran = clipmill("run", "mine/it.yaml", "--out", "run", "--workers", "0")
    assert ran.code == 0, ran.err
    assert sorted(it for it in sys.modules if it.startswith("clipmill_own")) == [
        *("clipmill_own", "clipmill_own.counting", "clipmill_own.measure"),
        "clipmill_own.measure.length",
    ]


def test_workers_get_the_files_as_they_were_read(project):
    plan = make_plan(load_recipe("mine/it.yaml"))
    shutil.rmtree("mine/stages")
    with closing(LocalExecutor(1, with_main=False)) as executor:
        assert run_plan(plan, Storage("run"), executor, Lines()).complete


def test_a_declared_file_that_is_not_there_is_told_by_name(project, clipmill):
    missing = project / "mine" / "stages" / "words.txt"
    missing.unlink()
    refused = clipmill("plan", "mine/it.yaml")
    assert refused.code == 2
    assert f"no file 'words.txt'\n  where: {missing}\n  do:    mend `FILES`" in refused.err


def test_a_file_that_none_declares_is_told_with_what_to_do(project, clipmill):
    file = project / "mine" / "stages" / "counting.py"
    file.write_text(file.read_text().replace('(__name__, "words.txt")', '(__name__, "key.pem")'))
    refused = clipmill("plan", "mine/it.yaml")
    assert refused.code == 2
    assert 'was not sent with your stages; declare it: FILES = ("words.txt",)' in refused.err


def test_no_folder_is_looked_into_for_a_module_that_was_read(project):
    """The working folder has folders of the same names, as `--out length` makes one."""
    (project / "length").mkdir()
    (project / "measure" / "length").mkdir(parents=True)
    plan = make_plan(load_recipe("mine/it.yaml"))
    module = sys.modules[type(plan.stages["length"].stage).__module__]
    assert list(sys.modules["clipmill_own.measure"].__path__) == []
    assert module.__file__ == str(project / "mine" / "stages" / "measure" / "length.py")


def test_a_recipe_that_is_read_again_gets_the_files_of_now(project):
    def function_of() -> str:
        stage = make_plan(load_recipe("mine/it.yaml")).stages["length"].stage
        return sys.modules[type(stage).__module__].__dict__.keys() & {"letters", "bytes_"}

    assert function_of() == {"letters"}
    write_stage(project, function="bytes_")
    (project / "mine/stages/counting.py").write_text(COUNTING.replace("letters", "bytes_"))
    assert function_of() == {"bytes_"}


def test_a_folder_that_is_named(project, clipmill, monkeypatch):
    (project / "mine" / "stages").rename(project / "elsewhere")
    none = clipmill("plan", "mine/it.yaml")
    assert none.code == 2
    assert "no stage 'measure.length'" in none.err
    assert "--stages" in none.err
    assert clipmill("plan", "mine/it.yaml", "--stages", "elsewhere").code == 0
    wrong = clipmill("plan", "mine/it.yaml", "--stages", "nowhere")
    assert wrong.code == 2
    assert "--stages nowhere" in wrong.err
    monkeypatch.setenv(own_code.VARIABLE, str(project / "elsewhere"))
    assert clipmill("stages", "measure.length").out.startswith("measure.length")


def test_a_package_that_declares_stages(project, clipmill, monkeypatch):
    site = project / "site"
    (site / "their_work").mkdir(parents=True)
    (site / "their_work" / "__init__.py").write_text("raise SystemExit('was imported')")
    (project / "mine" / "stages").rename(site / "their_work" / "clip_stages")
    info = site / "their_work-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-work\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[clipmill.stages]\nwork = their_work.clip_stages\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv(own_code.VARIABLE, str(project / "none"))  # or what is held would do
    assert clipmill("plan", "mine/it.yaml").code == 0


def test_two_folders_with_a_file_of_one_name_are_refused_if_they_differ(project, clipmill):
    shutil.copytree(project / "mine" / "stages", project / "other")
    assert clipmill("plan", "mine/it.yaml", "--stages", "other").code == 0
    (project / "other" / "counting.py").write_text("another = 1\n")
    refused = clipmill("plan", "mine/it.yaml", "--stages", "other")
    assert refused.code == 2
    for folder in ("other", "mine/stages"):
        assert str(project / folder / "counting.py") in refused.err


def test_too_much_to_send_is_refused(project, clipmill, monkeypatch):
    monkeypatch.setattr(own_code, "MOST_BYTES", 100)
    refused = clipmill("plan", "mine/it.yaml")
    assert refused.code == 2
    assert "more than 100 bytes" in refused.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os\n1 / 0\n", "length.py:2 cannot be imported: ZeroDivisionError"),
        ("import os\n\ndef (\n", "length.py:3 cannot be imported: SyntaxError"),
        ("raise SystemExit\n", "length.py:1 cannot be imported: SystemExit"),
        ("from ..counting import nothing\n", "length.py:1 cannot be imported: ImportError"),
        ("\nimport no_such_package\n", "needs the package 'no_such_package': "),
        (
            "from pipeline.stage import RowStage  # old\n",
            "write `from clipmill.pipeline.stage import RowStage  # old`",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "run", "stages", "funnel"])
def test_a_file_that_fails_is_named_with_its_line(
    project, clipmill, without_root, verb, text, said
):
    words = {"plan": ["mine/it.yaml"], "run": ["mine/it.yaml", "--out", "run"]}
    words |= {"stages": ["measure.length"], "funnel": ["--run", "run"]}
    if verb == "funnel":
        assert clipmill("run", "mine/it.yaml", "--out", "run", "--workers", "0").code == 0
    file = project / "mine" / "stages" / "measure" / "length.py"
    file.write_text(text)
    more = ["--stages", "mine/stages"] if verb in ("stages", "funnel") else []
    failed = clipmill(verb, *words[verb], *more)
    assert failed.code == 2
    assert said in failed.err
    assert str(file) in failed.err


def test_a_file_that_another_one_imports_is_the_one_that_is_named(project, clipmill):
    (project / "mine" / "stages" / "counting.py").write_text("\n\nletters = never\n")
    assert "counting.py:3 cannot be imported: NameError" in clipmill("plan", "mine/it.yaml").err


@pytest.mark.parametrize(
    "edited", ["stages/measure/length.py", "stages/counting.py", "stages/words.txt"]
)
def test_another_file_under_the_same_version_is_told(project, clipmill, edited):
    words = ("mine/it.yaml", "--out", "run")
    file = project / "mine" / edited
    assert "note" not in clipmill("run", *words, "--workers", "0").err
    before = (project / "run" / "run.json").read_bytes()
    file.write_text(file.read_text() + "# more\n")
    told = f"'length' is stored as another {Path(edited).relative_to('stages')} made it"
    assert told in clipmill("plan", *words).out
    assert told in clipmill("plan", *words, "-v").out
    (note,) = clipmill("plan", *words, "--json").json["notes"]
    assert told in note
    assert told in clipmill("run", *words, "--workers", "0").err
    status = ("status", "--run", "run", "--stages", "mine/stages")
    assert told in clipmill(*status).out
    assert told in clipmill(*status, "--json").json["notes"][0]
    assert (project / "run" / "run.json").read_bytes() == before

    write_stage(project, version=2)
    assert told not in clipmill("plan", *words).out
    ran = clipmill("run", *words, "--workers", "0")
    assert (ran.code, told in ran.err) == (0, False)
    assert told not in clipmill("plan", *words).out


def test_a_file_that_has_stored_nothing_may_change(project, clipmill):
    good = write_stage(project).read_text()
    file = write_stage(project)
    file.write_text(good.replace('{"length": letters', '{"length": never'))
    words = ("mine/it.yaml", "--out", "run", "--workers", "0")
    assert clipmill("run", *words).code == 1
    file.write_text(good)
    ran = clipmill("run", *words)
    assert (ran.code, "is stored as another" in ran.err) == (0, False)
    assert "is stored as another" not in clipmill("plan", "mine/it.yaml", "--out", "run").out


def test_an_own_model_counts_for_the_stage_that_names_it(project, monkeypatch):
    (project / "mine" / "stages" / "models").mkdir()
    (project / "mine" / "stages" / "models" / "colour.py").write_text("from . import hues\n")
    (project / "mine" / "stages" / "models" / "hues.py").write_text("from .colour import it\n")
    own_code.add(project / "mine" / "stages")
    assert set(own_code.imported(["models.colour"])) == {"models/colour.py", "models/hues.py"}
    assert set(own_code.imported(["measure.length"])) == USED
    assert not own_code.imported(["annotate.caption", "models.reference"])


@pytest.mark.parametrize(
    ("declared", "has_words"),
    [
        ('FILES: tuple[str, ...] = ("words.txt",)', True),
        ('FILES = ("words.txt")', True),  # a text: the comma is forgotten
        ('FILES = tuple(["words.txt"])', False),  # not read, as no code is run for it
    ],
)
def test_files_are_declared_in_each_way_that_python_writes_them(project, declared, has_words):
    folder = project / "mine" / "stages"
    (folder / "counting.py").write_text(f"from . import more\n{declared}\n")
    (folder / "more.py").touch()
    own_code.add(folder)
    words = set() if has_words else {"words.txt"}
    assert set(own_code.imported(["measure.length"])) == (USED | {"more.py"}) - words


def test_what_is_no_package_is_not_read(project):
    folder = project / "mine" / "stages"
    for name in ("pool-0123", "__pycache__", ".hidden"):
        (folder / name).mkdir()
        (folder / name / "it.py").write_text("never = 1")
    own_code.add(folder)
    assert set(own_code.own()) == USED
    assert os.environ.get(own_code.VARIABLE, "") == ""


def test_a_stage_of_ones_own_in_the_place_of_ours_is_refused_with_both(project):
    (project / "mine" / "stages" / "annotate").mkdir()
    mine = project / "mine" / "stages" / "annotate" / "caption.py"
    mine.write_text("mine = 1")
    own_code.add(project / "mine" / "stages")
    for ask in (own_code.files, lambda: own_code.find("annotate.caption")):
        with pytest.raises(RecipeError) as refused:
            ask()
        assert str(mine) in str(refused.value)
        assert str(own_code.OURS / "annotate" / "caption.py") in str(refused.value)


SHORT = """
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import KEEP, REASON, Column
from clipmill.pipeline.stage import RowStage, Threshold, Verdicts

LENGTH = Column("length", pa.int64(), "0 up", "How long a caption is.")


@dataclass(frozen=True, kw_only=True)
class Short(RowStage):
    most: int

    version = 1
    determinism = "exact"
    reads = (LENGTH,)
    writes = (KEEP,)
    reasons = ("too_long",)

    def open(self, worker):
        return self.decided

    def decided(self, batch):
        keep = pc.less_equal(batch["length"], self.most)
        reason = pc.if_else(keep, None, "too_long").dictionary_encode()
        return pa.table({KEEP.name: keep, REASON.name: reason})

    def thresholds(self):
        rule = f"length <= {self.most}"
        cut = dict(name="length", column="length", sign="<=", value=self.most, text=rule)
        return [Threshold(**cut, reads=("length",), by_row=True)]

    def verdicts(self, threshold, values, rows, made):
        for value in values:
            keep = pc.less_equal(rows["length"], int(value)).to_numpy(zero_copy_only=False)
            yield Verdicts(float(value), f"length <= {value}", keep)

    def explain(self, reason, made):
        return ""
"""
LOOKS = """
status --run run --json
funnel --run run --json
why http://a.test/2 --run run --json
show short --run run --json
show length --run run --sort length.length --json
diff --run run --json
diff short pool --run run --json
export --run run --stage short --to csv --out table
"""


@pytest.fixture
def finished(project, clipmill) -> Path:
    """The project's run, in which a select stage of its own drops a row; its code is gone."""
    file = project / "mine" / "stages" / "measure" / "short.py"
    file.write_text(SHORT)
    with (project / "mine" / "it.yaml").open("a") as recipe:
        recipe.write("  short: {uses: measure.short, from: length, most: 3}\n")
    ran = clipmill("run", "mine/it.yaml", "--out", "run", "--workers", "0")
    assert ran.code == 0, ran.err
    return project


@pytest.mark.parametrize("words", LOOKS.strip().splitlines())
def test_who_looks_at_a_run_needs_none_of_its_code(finished, clipmill, words):
    with_code = clipmill(*words.split(), "--stages", "mine/stages")
    assert with_code.code == 0, with_code.err
    for module in [it for it in sys.modules if it.startswith(own_code.NAME)]:
        del sys.modules[module]
    shutil.rmtree(finished / "table", ignore_errors=True)
    (finished / "mine").rename(finished / "away")
    said = clipmill(*words.split())
    assert (said.code, said.out) == (0, with_code.out), said.err
    assert not any(it.startswith(f"{own_code.NAME}.") for it in sys.modules)


def test_a_question_that_needs_the_code_names_the_option(finished, clipmill):
    (finished / "mine").rename(finished / "away")
    words = ("sweep", "--run", "run", "--stage", "short", "--vary", "length=1:5:1")
    refused = clipmill(*words)
    assert refused.code == 2
    assert "whose code is not at hand: --stages DIR" in refused.err


@pytest.mark.parametrize("at", ["stages", "run/stages"])
def test_code_that_lies_where_a_verb_runs_or_in_a_run_is_not_read(finished, clipmill, at):
    """`stages/select/where.py` would be another's in a folder that somebody hands over."""
    (finished / "mine").rename(finished / "away")
    planted = finished / at / "measure" / "length.py"
    planted.parent.mkdir(parents=True)
    planted.write_text("raise SystemExit('was run')")
    (finished / "run" / "it.yaml").write_text(RECIPE)
    for words in (["funnel", "--run", "run"], ["stages"], ["plan", "run/it.yaml"]):
        assert "was run" not in clipmill(*words).err
    assert "no stage 'measure.length'" in clipmill("plan", "run/it.yaml").err


def test_the_plan_names_the_files_with_their_digests(project, clipmill):
    said = clipmill("plan", "mine/it.yaml")
    for name in ("measure/length.py", "counting.py"):
        file = project / "mine" / "stages" / name
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"own code: {file} (SHA-256 {digest[:12]})" in said.out
        assert clipmill("plan", "mine/it.yaml", "--json").json["own_code"][str(file)] == digest


def test_the_stages_of_a_checkout_are_no_own_ones_where_another_clipmill_runs(
    tmp_path, monkeypatch
):
    """As after `pip install .`, with a recipe in the checkout."""
    checkout = tmp_path / "stages"
    (tmp_path / "clipmill").mkdir()
    for folder in (checkout, tmp_path / "clipmill" / "stages"):
        folder.symlink_to(own_code.OURS)
    shutil.copytree(checkout / "select", tmp_path / "installed" / "select")
    monkeypatch.setattr(own_code, "OURS", tmp_path / "installed")
    own_code.add(checkout)
    assert own_code.own() == {}


def test_code_is_parsed_while_a_collection_that_parses_is_due():
    class Parses:
        def __init__(self):
            self.me = self

        def __del__(self):
            ast.parse("a = [1]\n" * 9)

    threshold = gc.get_threshold()
    gc.set_threshold(50)
    try:
        for _ in range(20):
            garbage = [Parses() for _ in range(20)]
            del garbage
            assert len(own_code.parsed(b"a = [1]\n" * 99).body) == 99
    finally:
        gc.set_threshold(*threshold)
