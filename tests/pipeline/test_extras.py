"""Packages that an install may lack: the extra that brings each, as pyproject.toml has it."""

import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clipmill.pipeline.extras import EXTRAS, install, missing
from clipmill.pipeline.requirements import extras_of

ROOT = Path(__file__).parents[2]


def names(requirements: list[str]) -> set[str]:
    """Of those that this Python needs."""
    asked = [it for it in map(Requirement, requirements) if not it.marker or it.marker.evaluate()]
    return {canonicalize_name(it.name) for it in asked}


def test_every_package_of_an_extra_is_named_with_it_and_no_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    modules = packages_distributions()
    for extra in dict.fromkeys(EXTRAS.values()):
        wanted = names(extras[extra]) - {"clipmill"}
        named = {module for module, of in EXTRAS.items() if of == extra}
        brought = {canonicalize_name(it) for module in named for it in modules.get(module, ())}
        assert wanted <= brought, extra
        assert brought - wanted <= {"timm", "fasttext-predict"}  # which others of the extra need
    assert names(extras["all"]) == {"clipmill"}
    assert "clipmill[curate,train,ray,s3]" in extras["all"]
    assert extras["pool"][0] == "clipmill[all]"
    assert "pool" in extras["dev"][0]


def test_the_extras_of_a_stage_are_those_of_all_it_imports_late_too():
    def extras(name: str) -> set[str]:
        return extras_of([(ROOT / "stages" / name).read_bytes()])

    assert extras("select/where.py") == set()
    assert extras("annotate/language.py") == {"curate"}
    assert extras("annotate/image.py") == {"curate"}, "by a module of its own"
    assert "train" in extras("train/clip.py")
    assert extras_of([b"def f():\n    from duckdb import connect"]) == {"tables"}
    assert extras_of([b"from .duckdb import connect"]) == set()


@pytest.mark.parametrize(("module", "extra"), [("torch.nn", "train"), ("cv2", "curate")])
def test_the_command_is_for_this_python(module, extra, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    assert install(module) == f".venv/bin/python -m pip install 'clipmill[{extra}]'"
    monkeypatch.setattr(sys, "executable", "/opt/my python/bin/python")
    assert install(module) == f"'/opt/my python/bin/python' -m pip install 'clipmill[{extra}]'"
    assert install("nowhere") == ""
    assert missing("nowhere.it", "here").args == (
        *("the package 'nowhere' is not installed", "here", "install it"),
    )
