"""clipmill without its extras: what looks at runs works, and what computes says what it lacks."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
RECIPE = """
stages:
  pool: {uses: ingest.url_list, path: it.csv, caption_col: text}
  caption: {uses: annotate.caption, from: pool}
  few: {uses: select.where, from: caption, where: caption_words >= 2}
"""
OWN = """
stages:
  pool: {uses: ingest.url_list, path: it.csv, caption_col: text}
  mine: {uses: measure.own, from: pool}
"""
OWN_STAGE = """
from dataclasses import dataclass
from clipmill.metadata.schema import TEXT
from clipmill.pipeline.stage import RowStage

@dataclass(frozen=True, kw_only=True)
class Own(RowStage):
    version = 1
    determinism = "exact"
    reads = (TEXT,)

    def open(self, worker):
        import torch
"""
PIXELS = """
stages:
  pool: {uses: ingest.image_folder, path: pictures}
  look: {uses: annotate.image, from: pool}
"""
ROWS = "http://a.test/1,one word or more\nhttp://a.test/2,two words\nhttp://a.test/3,word\n"


def needed(requirement: str, found: set[str]) -> set[str]:
    """The distributions that one needs without extras, itself too."""
    asked = Requirement(requirement)
    if asked.name not in found and (not asked.marker or asked.marker.evaluate({"extra": ""})):
        found.add(asked.name)
        for more in distribution(asked.name).requires or ():
            needed(more, found)
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """A Python with links to the packages that clipmill needs without extras, and to no other."""
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: set[str] = set()
    for requirement in project["dependencies"]:
        needed(requirement, found)
    for name in found:
        files = distribution(name).files or ()
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(distribution(name).locate_file(top)))
    (site / "clipmill").symlink_to(ROOT / "clipmill")
    (info,) = {
        file.parent for file in distribution("clipmill").files or () if file.name == "METADATA"
    }
    (site / info.name).symlink_to(str(distribution("clipmill").locate_file(info)))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A list of three links, and recipes."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "it.csv").write_text(f"url,text\n{ROWS}")
    (folder / "it.yaml").write_text(RECIPE)
    (folder / "pixels.yaml").write_text(PIXELS)
    (folder / "own.yaml").write_text(OWN)
    (folder / "stages" / "measure").mkdir(parents=True)
    (folder / "stages" / "measure" / "own.py").write_text(OWN_STAGE)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "1.png").write_bytes(b"none")
    return folder


@pytest.fixture(scope="module")
def ask(python, folder) -> Callable[..., tuple[int, str]]:
    """Asks `clipmill` there: the exit code, and what it said. A run is finished."""

    def asked(*words: str) -> tuple[int, str]:
        command = [python, "-m", "clipmill.pipeline.cli", *words]
        env = {**os.environ, "PYTHONPATH": ""}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=120)
        return done.returncode, (done.stdout + done.stderr).decode()

    asked("run", "it.yaml", "--out", "run", "--workers", "1")
    return asked


LOOKS = """
plan it.yaml
run it.yaml --out run
status --run run
funnel --run run
why http://a.test/3 --run run
show few --run run --html few.html
report --run run --out report.html
diff few caption --run run
diff --run run
export --run run --stage few --to csv --out table
verify --run run
sweep --run run --stage few --vary caption_words=1:4:1
stages train.clip
doctor --out run
"""


@pytest.mark.parametrize("words", LOOKS.strip().splitlines())
def test_who_looks_at_a_run_needs_no_extra(ask, words):
    code, said = ask(*words.split())
    assert code == 0, said


def test_what_the_page_of_a_run_asks_needs_none(python, ask, folder):
    program = (
        "from pathlib import Path\nfrom clipmill.pipeline.explore.session import Session\n"
        "print(Session('run', Path('beside')).facts()['roots'])"
    )
    command = [python, "-c", program]
    done = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True)
    assert "'root': 'pool'" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "code", "extra"),
    [
        ("run it.yaml --out other --executor ray", 2, "ray"),
        ("pool generated --out pool", 2, "pool"),
        ("run pixels.yaml --out pixels --workers 1", 1, "curate"),
        ("run own.yaml --out own --workers 1", 1, "train"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(ask, words, code, extra):
    ended, said = ask(*words.split())
    assert ended == code, said
    assert "Traceback" not in said
    assert f"-m pip install 'clipmill[{extra}]'" in said
