"""Environments: which Python has the packages; the making of one is tested in chaos."""

import sys
from pathlib import Path

import pytest

from clipmill.pipeline.engine import environments
from clipmill.pipeline.engine.environments import all_made, cache_folder, made, python_of
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Environment


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CLIPMILL_ENVIRONMENTS", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("packages", "is_here"),
    [
        (("numpy>=2", "PyArrow"), True),
        (("numpy>=2,<3",), True),
        (("numpy>=999",), False),
        (("numpy", "nosuch-package"), False),
        (("./a-folder",), False),
        (("numpy @ https://example.org/numpy.whl",), False),
    ],
)
def test_this_python_is_used_where_it_has_the_packages(packages, is_here, cache):
    environment = Environment(packages=packages)
    assert made(environment) == (Path(sys.executable) if is_here else None)
    if is_here:
        assert python_of(environment) == Path(sys.executable)
    assert not cache.exists()


def test_this_python_is_not_used_where_it_has_what_must_be_left_out():
    assert made(Environment(packages=("numpy",), without=("nosuch-package",)))
    assert made(Environment(packages=("numpy",), without=("nosuch-package", "pyarrow"))) is None


def test_packages_with_and_without_what_and_the_python_name_the_place(monkeypatch):
    places = {
        environments._place(Environment(packages=("a", "b"))),
        environments._place(Environment(packages=("b", "a"))),
    }
    assert len(places) == 1
    places.add(environments._place(Environment(packages=("a",))))
    places.add(environments._place(Environment(packages=("a", "b"), with_dependencies=False)))
    places.add(environments._place(Environment(packages=("a", "b"), without=("c",))))
    monkeypatch.setattr(sys, "version", "3.99.0")
    places.add(environments._place(Environment(packages=("a", "b"))))
    assert len(places) == 5


def test_the_cache_is_the_users_or_the_one_that_is_named(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CLIPMILL_ENVIRONMENTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/clipmill/environments"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/clipmill/environments"


def test_a_cache_that_cannot_be_written_is_an_error(cache):
    cache.write_text("a file")
    with pytest.raises(StageError, match=r"CLIPMILL_ENVIRONMENTS") as error:
        python_of(Environment(packages=("nosuch-package",)))
    assert str(cache) in error.value.args[1]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found for x\n", "No matching"),
        ("ERROR: Could not fetch https://me:key@index.example/simple/x: 404\n", "fetch … 404"),
        ("ERROR: HTTPSConnectionPool(host='index.example', port=443)\n", "host=…, port=443"),
        ("Traceback\nModuleNotFoundError: ensurepip\n", "ModuleNotFoundError: ensurepip"),
        ("", "exit code 7"),
    ],
)
def test_what_pip_says_is_told_without_addresses(log, said, tmp_path):
    (tmp_path / "log").write_text(log)
    found = environments._fault(tmp_path / "log", 7)
    assert said in found
    assert "example" not in found
    assert "key" not in found


def test_nothing_is_made_yet():
    assert all_made() == {}
