"""Environments made by pip, from a wheel on disk: once, whole, whoever is killed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from clipmill.pipeline.engine.environments import all_made, made, python_of
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Environment
from tests.family import left_after

pytestmark = pytest.mark.soak(cpu_s=8)

MAKE = """
import sys
from clipmill.pipeline.engine.environments import python_of
from clipmill.pipeline.stage import Environment
print(python_of(Environment(packages=("tiny-thing==1.0",), requirements=(sys.argv[1],))))
"""


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A package that needs another one, which does not exist."""
    monkeypatch.setenv("CLIPMILL_ENVIRONMENTS", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return write_wheel(tmp_path, "tiny_thing", "Requires-Dist: nosuch-thing\n")


def write_wheel(folder: Path, name: str, needs: str = "", version: str = "1.0") -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "SAYS = 'here'\n")
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{info}/METADATA", about)
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/RECORD,,\n")
    return path


def known(wheel: Path) -> str:
    """Returns the requirement of the wheel and of no other file."""
    return f"tiny-thing==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def says(python: Path) -> str:
    code = "import tiny_thing; print(tiny_thing.SAYS)"
    return subprocess.run(
        [str(python), "-I", "-c", code], capture_output=True, check=True, text=True
    ).stdout.strip()


def making(wheel: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", MAKE, known(wheel)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_killed_on_the_way_nothing_is_half_made_and_two_at_once_make_one(wheel, tmp_path):
    cache = tmp_path / "cache"
    with making(wheel) as process:
        while not list(cache.glob("*.new/bin/python")):
            assert process.poll() is None
            time.sleep(0.01)
        inside = [  # the guard of the command, the command, and what it has started
            int(entry.name)
            for entry in Path("/proc").glob("[0-9]*")
            if str(cache).encode() in _command(entry)
        ]
        process.send_signal(signal.SIGKILL)
    assert inside
    assert not left_after(inside, 10)
    environment = Environment(packages=("tiny-thing==1.0",), requirements=(known(wheel),))
    assert made(environment) is None

    with making(wheel) as one, making(wheel) as other:
        pythons = {one.communicate()[0].strip(), other.communicate()[0].strip()}
    [place] = all_made()
    assert pythons == {str(place / "bin/python")}
    assert {path.name for path in cache.iterdir()} == {place.name, f"{place.name}.lock"}
    assert made(environment) == place / "bin/python"
    assert says(place / "bin/python") == "here"


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def test_what_pip_cannot_find_is_told_and_leaves_nothing(wheel, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:secret-word@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(StageError) as error:
        python_of(Environment(packages=(str(wheel),)))
    assert "nosuch-thing" in str(error.value)
    assert "secret-word" not in str(error.value)
    assert "127.0.0.1" not in str(error.value)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_file_of_another_digest_is_refused_by_its_name(wheel, tmp_path):
    environment = Environment(packages=("tiny-thing==1.0",), requirements=(known(wheel),))
    good = wheel.read_bytes()
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("more.py", "")
    changed = hashlib.sha256(wheel.read_bytes()).hexdigest()[:12]
    with pytest.raises(StageError, match=f"tiny-thing==1.0 has digest {changed}…") as error:
        python_of(environment)
    assert "PIP_INDEX_URL" in error.value.args[2]
    assert not all_made()
    wheel.write_bytes(good)
    assert says(python_of(environment)) == "here"


def test_what_is_known_is_installed_and_no_newer_version_and_nothing_beside(wheel, tmp_path):
    write_wheel(tmp_path, "tiny_thing", version="1.0.post1")
    write_wheel(tmp_path, "nosuch_thing")
    environment = Environment(packages=("tiny-thing>=1",), requirements=(known(wheel),))
    code = "import importlib.metadata as m; print(*sorted(d.name for d in m.distributions()))"
    said = subprocess.run(
        [python_of(environment), "-I", "-c", code], capture_output=True, check=True, text=True
    )
    assert set(said.stdout.split()) - {"setuptools"} == {"pip", "tiny_thing"}
