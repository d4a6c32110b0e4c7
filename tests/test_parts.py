"""Every test runs in one part, and in one share of the soak; a dear unit test fails its run."""

import os
from types import SimpleNamespace

import pytest

from tests import parts

pytest_plugins = ("pytester",)

TESTS = """
import pytest

def test_value(): pass

@pytest.mark.chaos
def test_kill(): pass

@pytest.mark.soak(cpu_s=40)
def test_hundred(): pass

@pytest.mark.drawn("kind")
@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("kind", ["write", "record"])
def test_point(kind, number): pass

@pytest.mark.drawn(cases=3)
@pytest.mark.parametrize("number", range(9))
def test_any(number): pass

@pytest.mark.drawn(one_in=3)
def test_whole(): pass
"""
MARKS = """
[pytest]
markers =
    chaos
    soak
    drawn
    slow
"""
OPTIONS = """
testpaths = tests
addopts = --import-mode=importlib
"""


@pytest.fixture(autouse=True)
def own_figures(monkeypatch) -> None:
    """Figures are those of the run around a test's own."""
    monkeypatch.delenv("CLIPMILL_FIGURES", raising=False)


@pytest.fixture
def chosen(pytester):
    """Runs tests, and gives the names of those that ran."""
    pytester.makefile(".ini", pytest=MARKS)

    def run(*arguments: str, code: int = 0) -> list[str]:
        done = pytester.runpytest_inprocess("-p", "tests.parts", "-v", *arguments)
        assert done.ret == code
        return [line.split()[0] for line in done.outlines if "PASSED" in line]

    return run


def test_parts_are_the_whole_and_share_no_test(pytester, chosen):
    pytester.makepyfile(test_it=TESTS)
    unit, core, soak = (chosen("--part", part) for part in ("unit", "core", "soak"))
    assert unit == ["test_it.py::test_value"]
    assert sorted([*unit, *core, *soak]) == sorted(chosen())
    assert "test_it.py::test_kill" in core
    assert "test_it.py::test_hundred" in soak
    assert [sum(kind in name for name in core) for kind in ("write", "record", "any")] == [1, 1, 3]


def test_shares_of_unit_tests_are_all_of_them(pytester, chosen):
    pytester.makepyfile(**{f"test_{name}": "def test_it(): pass\n" for name in "abc"})
    shares = [chosen("--part", "unit", "--share", f"{number}/2") for number in (1, 2)]
    assert sorted(map(len, shares)) == [1, 2]
    assert sorted(name for share in shares for name in share) == chosen()


@pytest.mark.slow("many runs of pytest")
def test_another_seed_draws_others_and_each_is_drawn_by_some_seed(pytester, chosen):
    pytester.makepyfile(test_it=TESTS)
    drawn = [set(chosen("--part", "core", "--seed", str(seed))) for seed in range(8)]
    assert drawn[0] == set(chosen("--part", "core", "--seed", "0"))
    assert len({frozenset(names) for names in drawn}) > 4
    assert {f"test_it.py::test_any[{number}]" for number in range(9)} <= set().union(*drawn)
    assert 0 < sum("test_it.py::test_whole" in names for names in drawn) < 8


@pytest.mark.slow("many runs of pytest")
def test_shares_are_the_soak_and_of_like_cost(pytester, chosen):
    costs = {f"test_{number}": 5 + 10 * number for number in range(10)}
    pytester.makepyfile(
        **{
            name: f"import pytest\n\n@pytest.mark.soak(cpu_s={cost})\ndef test_it(): pass\n"
            for name, cost in costs.items()
        }
    )
    shares = [chosen("--part", "soak", "--share", f"{number}/3") for number in (1, 2, 3)]
    assert sorted(name for share in shares for name in share) == sorted(chosen())
    sums = [sum(costs[name.partition(".")[0]] for name in share) for share in shares]
    assert max(sums) - min(sums) <= max(costs.values()) / 3
    assert chosen("--part", "soak", "--seed", "1", "--share", "1/3") != shares[0]
    chosen("--part", "soak", "--share", "4/3", code=pytest.ExitCode.USAGE_ERROR)


def test_unit_tests_have_one_thread_and_write_to_memory_that_has_room(monkeypatch, tmp_path):
    def given(part: str | None, enough: int = 0) -> dict[str, str]:
        monkeypatch.setattr(parts, "ENOUGH", enough)
        monkeypatch.setattr("os.environ", {})
        options = SimpleNamespace(part=part)
        parts.pytest_load_initial_conftests(SimpleNamespace(known_args_namespace=options))
        return {**os.environ}

    monkeypatch.setattr(parts, "MEMORY", tmp_path)
    one = {"OMP_NUM_THREADS": "1"}
    assert given("unit") == one | {"PYTEST_DEBUG_TEMPROOT": str(tmp_path)}
    assert given("unit", 1 << 60) == given(None) == one
    assert given("core") == given("soak") == {}


@pytest.mark.slow("spins as long as it measures")
def test_a_dear_unit_test_fails_the_run_unless_it_says_why(pytester, chosen, monkeypatch):
    monkeypatch.setattr(parts, "LIMIT_S", 0.1)
    monkeypatch.setattr(parts, "MOST_S", 0.1)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    spin = "    import os\n    while sum(os.times()[:2]) < until: pass\n"
    begin = "    import os; until = sum(os.times()[:2]) + 0.15\n"
    pytester.makepyfile(
        test_dear=f"def test_it():\n{begin}{spin}",
        test_told="import pytest\n\n"
        f"@pytest.fixture(scope='module')\ndef shared():\n{begin}{spin}\n"
        "def test_reads(shared): pass\n",
    )
    assert chosen("--part", "unit", code=1) == ["test_dear.py::test_it", "test_told.py::test_reads"]
    done = pytester.runpytest_inprocess("-p", "tests.parts", "--part", "unit")
    done.stdout.fnmatch_lines(["*unit tests above 0.1 CPU second*", "*test_dear.py::test_it"])
    done.stdout.no_fnmatch_line("*s  test_told.py*")
    pytester.makepyfile(
        test_dear=f"import pytest\n\n@pytest.mark.slow('it spins')\ndef test_it():\n{begin}{spin}"
    )
    chosen("--part", "unit")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("build/test_it.py", "def test_it(): pass\n"),  # a folder that pytest leaves out
        ("check_it.py", "def test_it(): pass\n"),
        ("test_it.py", "import pytest\n\n@getattr(pytest.mark, 'chaos')\ndef test_it(): pass\n"),
    ],
)
def test_a_file_that_no_part_runs_fails(name, text, pytester, chosen):
    pytester.makefile(".ini", pytest=MARKS + OPTIONS)
    path = pytester.mkdir("tests")
    (path / "test_good.py").write_text("def test_good(): pass\n")
    assert chosen("--part", "unit") == ["tests/test_good.py::test_good"]
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(text)
    chosen("--part", "unit", code=pytest.ExitCode.USAGE_ERROR)


def test_a_dear_file_is_cut_into_shares_by_its_tests(pytester, chosen):
    pytester.makepyfile(
        test_dear="import pytest\n\n@pytest.mark.soak(cpu_s=90)\n"
        "@pytest.mark.parametrize('n', range(6))\ndef test_it(n): pass\n",
        test_cheap="import pytest\n\n@pytest.mark.soak(cpu_s=90)\ndef test_it(): pass\n",
    )
    shares = [chosen("--part", "soak", "--share", f"{number}/2") for number in (1, 2)]
    assert sorted(map(len, shares)) == [3, 4]
    assert sorted(name for share in shares for name in share) == sorted(chosen())
