"""`make` takes whichever Python there is from 3.11 on, and says what to install where none is."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(folder: Path, **pythons: bool) -> subprocess.CompletedProcess:
    """`make -n` where these Pythons are on the path, each new enough or not."""
    for name, is_new in pythons.items():
        (folder / name).write_text(f"#!/bin/sh\nexit {0 if is_new else 1}\n")
        (folder / name).chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    made = shutil.which("make")
    assert made
    return subprocess.run(
        [made, "-n", ".venv/installed"],
        cwd=folder,
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3.11": True, "python3": True}, "python3.11"),
        ({"python3.13": True, "python3": False}, "python3.13"),
        ({"python3.12": False, "python3": True}, "python3"),
    ],
)
def test_the_first_python_that_is_new_enough_is_taken(pythons, taken, tmp_path):
    said = make(tmp_path, **pythons)
    assert said.returncode == 0, said.stderr
    assert f"\n{taken} -m venv .venv\n" in f"\n{said.stdout}"


def test_without_one_it_says_what_to_install(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    said = make(tmp_path, python3=False)
    assert 'test -n "" || { echo "make: no Python from 3.11 on. Install one' in said.stdout
