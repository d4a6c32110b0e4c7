"""What a release needs: its long description, change log and citation; wheel and source alike."""

import inspect
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import clipmill

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MOST_LINES = 40  # of the change log, for a release
IN_SDIST = ("tests/test_layers.py", "tests/metadata/test_uid.py", "tests/pipeline/test_own_code.py")


def test_the_long_description_leads_nowhere_in_the_repository():
    text = (ROOT / PROJECT["readme"]).read_text("utf-8")
    targets = re.findall(r"\]\(([^)]*)\)|<(?:img|a)\b[^>]*(?:src|href)=.([^\"'>]*)", text)
    assert not [it for pair in targets for it in pair if it and "://" not in it]
    assert "![" not in text
    assert "pip install 'clipmill[" in text


def test_the_change_log_begins_with_this_version_and_is_short():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = text.split("\n## ")[1]
    assert newest.startswith(f"{clipmill.__version__}\n")
    assert newest.count("\n") <= MOST_LINES


def test_the_citation_is_of_this_version_and_no_address_is_invented():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == clipmill.__version__
    assert citation["authors"] == [{"name": "clipmill developers"}] == PROJECT["authors"]
    assert "urls" not in PROJECT
    for name in ("CITATION.cff", "SECURITY.md", "CONTRIBUTING.md"):
        assert not re.search(r"https?://|\S+@\S+\.\w", (ROOT / name).read_text("utf-8")), name


def test_every_public_name_has_its_docstring():
    for name in clipmill.__all__:
        assert inspect.getdoc(getattr(clipmill, name)), name


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the source distribution and a wheel, the wheel made of the former."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.chaos
def test_both_pass_for_an_index_and_hold_the_same_package(built, tmp_path):
    files = [str(path) for path in built.iterdir()]
    checked = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(checked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as tar, zipfile.ZipFile(wheel) as archive:
        tar.extractall(tmp_path, filter="data")
        (source,) = tmp_path.iterdir()
        there = {
            path.relative_to(source).as_posix(): path.read_bytes()
            for path in (source / "clipmill").rglob("*")
            if path.is_file()
        }
        packed = {it: archive.read(it) for it in archive.namelist() if ".dist-info/" not in it}
    assert packed == there
    assert len(there) > 500


@pytest.mark.drawn(one_in=3, cpu_s=20)
def test_the_tests_of_the_source_run_in_it(built, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert not (source / "pipeline").exists()  # the folders of the package are real there
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *IN_SDIST]
    done = subprocess.run(
        command, cwd=source, env={"PYTHONPATH": str(source)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
