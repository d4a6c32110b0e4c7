"""The wheel, beside folders and packages of a user's that bear the names of our own folders.

It is built and installed once, into an environment that finds all else in this one.
"""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.ray_head import ray_head as ray_head
from tests.ray_head import ray_heads as ray_heads

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
TOPS = ("pipeline", "stages", "metadata")
NOT_OURS = 'raise SystemExit("of the user\'s own")\n'
THERE = {  # files beside the recipe, where the command runs
    "packages": [f"{name}/__init__.py" for name in TOPS],
    "modules": [f"{name}.py" for name in TOPS],
    "a stage's kind": ["stages/annotate/__init__.py"],
}
RECIPE = """
stages:
  pool: {uses: ingest.url_list, path: {folder}/it.csv, caption_col: text}
  caption: {uses: annotate.caption, from: pool}
  few: {uses: select.where, from: caption, where: caption_words >= 2}
"""
WATCH = """
import sys
from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import REASON, TEXT
from clipmill.pipeline.stage import RowStage


def look():
    bare = {"pipeline", "stages", "metadata"} & set(sys.modules)
    if bare:
        raise RuntimeError(f"imported as {sorted(bare)}")


look()


@dataclass(frozen=True, kw_only=True)
class Names(RowStage):
    version = 1
    determinism = "exact"
    reads = (TEXT,)

    def open(self, worker):
        return names


def names(batch):
    look()
    none = pa.nulls(batch.num_rows, pa.string()).dictionary_encode()
    return pa.table({REASON.name: none})
"""
IN_PYTHON = """
import clipmill
run = clipmill.run("it.yaml", out="run", workers=1)
print(run.table("few").collect().height)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(ROOT)]
    subprocess.run([*command, "--wheel-dir", str(folder)], check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def bin_of(wheel, tmp_path_factory) -> Path:
    """Where the commands of an environment lie that has the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    all_else = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    all_else |= {path for path in sys.path if path.endswith("site-packages")}
    (site / "all_else.pth").write_text("\n".join(sorted(all_else)))
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(pip, check=True)
    return folder / "bin"


@pytest.fixture(params=[*THERE, "nothing"])
def project(request, tmp_path) -> Path:
    """A folder with a recipe of three rows, beside files that end whoever imports them."""
    for name in THERE.get(request.param, ()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(NOT_OURS)
    (tmp_path / "it.yaml").write_text(RECIPE.replace("{folder}", str(tmp_path)))
    rows = "http://a.test/1,one word or more\nhttp://a.test/2,two words\nhttp://a.test/3,word\n"
    (tmp_path / "it.csv").write_text(f"url,text\n{rows}")
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    hidden = ("PYTHONPATH", "CLIPMILL_STAGES")
    return {name: it for name, it in os.environ.items() if name not in hidden} | more


def clipmill(bin_of: Path, project: Path, *words: str, **more: str) -> str:
    command = [bin_of / "clipmill", *words]
    told = subprocess.run(
        command, cwd=project, env=environment(**more), capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def test_the_wheel_has_one_name_at_its_top(wheel):
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert sorted(name for name in names if not name.endswith(".dist-info")) == ["clipmill"]
    assert "clipmill/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_a_run_with_a_worker_and_what_is_asked_of_it(bin_of, project):
    clipmill(bin_of, project, "plan", "it.yaml")
    clipmill(bin_of, project, "run", "it.yaml", "--out", "run", "--workers", "1")
    assert "kept by 'few'" in clipmill(bin_of, project, "funnel", "--run", "run")


def test_a_run_in_python_where_the_working_folder_stands_first(bin_of, project):
    python = [bin_of / "python", "-c", IN_PYTHON]
    told = subprocess.run(python, cwd=project, env=environment(), capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[-1] == "2"


@pytest.mark.parametrize("project", ["packages"], indirect=True)
def test_a_run_on_ray(bin_of, project, ray_head):
    words = ("run", "it.yaml", "--out", "run", "--workers", "1", *ray_head.arguments)
    clipmill(bin_of, project, *words, **ray_head.environment)


@pytest.mark.parametrize("project", ["modules"], indirect=True)
def test_a_run_with_them_on_the_path(bin_of, project):
    words = ("run", "it.yaml", "--out", "run", "--workers", "1")
    clipmill(bin_of, project, *words, PYTHONPATH=str(project))


@pytest.mark.parametrize("project", ["nothing"], indirect=True)
def test_a_run_beside_packages_of_these_names_that_came_later(bin_of, project):
    (site,) = bin_of.parent.glob("lib/python*/site-packages")
    for name in ("metadata", "pipeline"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(NOT_OURS)
    words = ("run", "it.yaml", "--out", "run", "--workers", "1")
    clipmill(bin_of, project, *words)


@pytest.mark.parametrize("where", ["here", "a worker", "Ray"])
def test_no_module_bears_a_bare_name(tmp_path, where, ray_head):
    """From the repository's root a forgotten `import pipeline` would work in silence."""
    (tmp_path / "stages" / "watch").mkdir(parents=True)
    (tmp_path / "stages" / "watch" / "names.py").write_text(WATCH)
    (tmp_path / "it.csv").write_text("url,text\nhttp://a.test/1,one word or more\n")
    recipe = RECIPE.replace("{folder}", str(tmp_path))
    (tmp_path / "it.yaml").write_text(f"{recipe}  names: {{uses: watch.names, from: few}}\n")
    words = ["run", str(tmp_path / "it.yaml"), "--out", str(tmp_path / "run"), "--workers"]
    more = {"here": ["0"], "a worker": ["1"], "Ray": ["1", *ray_head.arguments]}[where]
    program = (
        f"import sys; from clipmill.pipeline.cli import main; sys.exit(main({[*words, *more]}))"
    )
    env = environment(PYTHONPATH=str(ROOT), **(ray_head.environment if where == "Ray" else {}))
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


PLANTED = ("numpy", "yaml", "polars", "csv", "json", "pyarrow", "open_clip", "sitecustomize")
VERBS = """
init . --out start.yaml
stages
doctor
plan it.yaml
run it.yaml --out run --workers 1
status --run run
funnel --run run
"""


@pytest.fixture
def planted(tmp_path) -> Path:
    """A folder of data, and modules in it that leave a mark when they are run."""
    plant = f"open({str(tmp_path / 'mark')!r}, 'a').write(__file__ + '\\n')\n"
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(plant)
    (tmp_path / "it.yaml").write_text(RECIPE.replace("{folder}", str(tmp_path)))
    (tmp_path / "it.csv").write_text("url,text\nhttp://a.test/1,one word or more\n")
    return tmp_path


def test_a_verb_runs_no_code_of_the_folder_that_it_works_in(bin_of, planted):
    for words in VERBS.strip().splitlines():
        command = [bin_of / "clipmill", *words.split()]
        told = subprocess.run(
            command, cwd=planted, env=environment(), capture_output=True, text=True, timeout=120
        )
        assert not (planted / "mark").exists(), (words, (planted / "mark").read_text())
        assert "Traceback" not in told.stderr, told.stderr
    assert (planted / "run" / "run.json").exists()


def test_nor_does_a_worker_of_ray(bin_of, planted, ray_head):
    words = ("run", "it.yaml", "--out", "run", "--workers", "1", *ray_head.arguments)
    clipmill(bin_of, planted, *words, **ray_head.environment)
    assert not (planted / "mark").exists(), (planted / "mark").read_text()
