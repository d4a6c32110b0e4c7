"""Compiled loops: where they are kept, and that they work where nothing can be."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.cpu import CPUContext

HALF = """
from clipmill.stages.ops.compiled import compiled
@compiled()
def half(number):
    return number // 2
"""
ROOT = Path(__file__).parents[3]
LOOK = """
from clipmill.stages.ops.images import area
print(area.__file__, area._shrink.stats.cache_path)
"""


@pytest.fixture
def installed(tmp_path):
    """A copy whose folder takes no cache: a file is in its place."""
    copy = tmp_path / "installed" / "clipmill" / "stages" / "ops"
    shutil.copytree(
        ROOT / "clipmill" / "stages" / "ops", copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    (copy / "images" / "__pycache__").touch()
    (tmp_path / "installed" / "clipmill" / "__init__.py").touch()
    return tmp_path / "installed"


def look(installed, home) -> list[str]:
    said = subprocess.run(
        [sys.executable, "-c", LOOK],
        env={"HOME": str(home), "PYTHONPATH": str(installed)},
        capture_output=True,
        check=True,
        cwd=installed,
        text=True,
    )
    return said.stdout.split()


def test_where_its_folder_cannot_be_written_the_users_cache_holds_a_loop(installed, tmp_path):
    file, cache = look(installed, tmp_path)
    assert file.startswith(str(installed))
    assert cache.startswith(str(tmp_path / ".cache"))


def test_where_nothing_can_be_written_a_loop_is_compiled_all_the_same(installed):
    assert look(installed, "/dev/null")[1:] == ["None"]


def test_code_in_the_cache_is_loaded_without_the_compiler(tmp_path, monkeypatch):
    """Its import is a quarter of a second of each worker."""
    (tmp_path / "half.py").write_text(HALF)
    assert runpy.run_path(str(tmp_path / "half.py"))["half"](7) == 3
    monkeypatch.setattr(CPUContext, "refresh", lambda _: pytest.fail("the compiler is imported"))
    assert runpy.run_path(str(tmp_path / "half.py"))["half"](9) == 4
