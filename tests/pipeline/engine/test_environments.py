"""Environments: which Python has the packages; the making of one is tested in chaos."""

import sys
from pathlib import Path

import pytest

from clipmill.pipeline.engine import environments
from clipmill.pipeline.engine.environments import all_made, cache_folder, made, python_of
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Environment

OTHER_FILE = """\
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated
    b-c==1.0 from https://index.example/b_c-1.0.whl (from -r requirements.txt (line 2)):
        Expected sha256 0000
        Expected     or 1111
             Got        abcdef0123456789

"""


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
    for one in ({"without": ("c",)}, {"requirements": ("c",)}):
        places.add(environments._place(Environment(packages=("a", "b"), **one)))
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


def test_an_environment_whose_python_is_gone_is_made_again(tmp_path, monkeypatch):
    environment = Environment(packages=("nosuch-package",))
    place = environments._place(environment)

    def make(environment, place):
        (place / "bin").mkdir(parents=True)
        (place / "bin/python").symlink_to(tmp_path / "python")

    monkeypatch.setattr(environments, "_make", make)
    make(environment, place)  # of a Python that was removed
    assert made(environment) is None
    (tmp_path / "python").touch()
    (place / "bin/python").unlink()
    assert python_of(environment) == made(environment) == place / "bin/python"


def test_a_cache_that_cannot_be_written_is_an_error(cache):
    cache.write_text("a file")
    with pytest.raises(StageError, match=r"CLIPMILL_ENVIRONMENTS") as error:
        python_of(Environment(packages=("nosuch-package",)))
    assert str(cache) in error.value.args[1]


@pytest.mark.parametrize(
    ("log", "said", "do"),
    [
        (
            "WARNING: Retrying\nERROR: No matching distribution found for x\n",
            "No matching",
            "index",
        ),
        ("ERROR: Could not fetch https://me:key@index.example/simple/x: 404\n", "fetch … 404", ""),
        ("ERROR: HTTPSConnectionPool(host='index.example', port=443)\n", "host=…, port=443", ""),
        ("Traceback\nModuleNotFoundError: ensurepip\n", "ModuleNotFoundError: ensurepip", ""),
        ("", "exit code 7", ""),
        (OTHER_FILE, "b-c==1.0 has digest abcdef012345…, which is none", "where it was published"),
    ],
)
def test_what_pip_says_is_told_without_addresses(log, said, do):
    found, to_do = environments._fault(log, 7)
    assert said in found
    assert do in to_do
    assert "example" not in found
    assert "key" not in found


def test_a_requirement_for_which_any_file_would_do_is_refused(cache):
    lines = ("a==1.0 --hash=sha256:00", "b-c==1.0")
    with pytest.raises(StageError, match=r"no hash pins b-c==1\.0"):
        python_of(Environment(packages=("nosuch-package",), requirements=lines))
    assert not cache.exists()


def test_nothing_is_made_yet():
    assert all_made() == {}
