"""docs/reliability.md says of each promise by which tests it is held, and where they run."""

import re

import pytest

from tests import reliability
from tests.mutants import all_mutants
from tests.reliability import FAULTS, PAGE, filled, ids_of, parts_of


@pytest.mark.slow("reads every test")
def test_where_tests_run_is_as_their_marks_say():
    page = PAGE.read_text(encoding="utf-8")
    assert page == filled(page, None), "run: python -m tests.reliability"


def test_every_promise_is_held_by_a_test_of_every_change():
    page = PAGE.read_text(encoding="utf-8")
    section = page.partition("## Promises")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d)\. .*", section, re.MULTILINE)
    assert rows == list("1234567")
    for line in section.splitlines():
        if tests := ids_of(line):
            assert "test" in set().union(*map(parts_of, tests)), line


def test_every_fault_has_its_place_and_is_found_by_a_test_of_every_change_whatever_the_seed():
    faults = all_mutants()  # ValueError where the text of one is no longer there
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert {row[1] for line in lines if (row := FAULTS.match(line))} == {
        it.promise for it in faults
    }
    lost = [it.name for it in faults if {"test"} not in [parts_of(test) for test in it.tests]]
    assert not lost


def test_parts_are_those_of_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(reliability, "ROOT", tmp_path)
    (tmp_path / "it.py").write_text(
        "pytestmark = [pytest.mark.usefixtures('it')]\n"
        "def test_unit(): pass\n"
        "@pytest.mark.chaos\ndef test_core(): pass\n"
        "@pytest.mark.chaos\n@pytest.mark.soak(cpu_s=9)\ndef test_long(): pass\n"
        "@pytest.mark.drawn\ndef test_drawn(): pass\n"
        "@pytest.mark.parametrize('n', [1, pytest.param(2, marks=pytest.mark.soak)])\n"
        "def test_some(n): pass\n"
        "class TestIt:\n    def test_inside(self): pass\n"
    )
    names = ("unit", "core", "long", "drawn", "some")
    assert [sorted(parts_of(f"it.py::test_{name}")) for name in names] == [
        ["test"],
        ["test"],
        ["soak"],
        ["soak", "test"],
        ["soak", "test"],
    ]
    assert parts_of("it.py::TestIt::test_inside[a]") == {"test"}
    assert parts_of("it.py::") == {"test", "soak"}


def test_tries_of_a_row_are_those_of_its_tests(tmp_path, monkeypatch):
    monkeypatch.setattr(reliability, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "it.py").write_text(
        "@pytest.mark.soak\ndef test_a(): pass\n@pytest.mark.soak\ndef test_ab(): pass\n"
        "def test_law(): pass\n"
    )
    tries = {"tests/it.py::test_a": 430, "tests/it.py::test_ab": 3, "tests/of.py::test_a": 1}
    row = "| killed | [it](../tests/it.py){} | x | 0 |\n"
    page = filled("".join(map(row.format, ("", " `test_a`", " `test_law`"))), tries)
    assert page == (
        "| killed | [it](../tests/it.py) | test and soak | 433 |\n"
        "| killed | [it](../tests/it.py) `test_a` | soak | 430 |\n"
        "| killed | [it](../tests/it.py) `test_law` | test | - |\n"
    )
