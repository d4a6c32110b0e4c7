"""Which tests run where, and what they cost: a plugin of pytest (`-p tests.parts`, in pyproject).

`--part unit`  tests without a mark: laws and values, each in about a CPU second at most
`--part core`  `chaos`, and of `drawn` tests the cases that `--seed` draws: one of each kind
`--part soak`  all the rest, whole or a share of it: `soak`, and the cases that were not drawn

Shares of the soak are of equal cost and have no test in common; another seed cuts them anew.
"""

import gc
import hashlib
import json
import os
import re
import resource
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

# CPU seconds of a unit test; the mark `slow` says why one may take more. Above the first it is
# listed, above the second the run fails: there are machines half as fast.
LIMIT_S, MOST_S = 1.0, 3.0
MANY = 500  # tests of a run that imports beforehand what they share
# Imported before the first unit test, which would else pay for all that come after it.
IMPORTED = (
    *("torch", "torch._dynamo", "open_clip", "faiss"),
    *("ray", "scipy.stats", "numba", "pandas"),
)
WHOLE_S = 200  # CPU seconds of a file whose tests may be in several shares
COMPILES: list[Any] = []  # listeners to Numba: in a clean clone 20 s and more
MARKED = re.compile(r"\bmark\.(chaos|drawn|soak)\b")  # as `make chaos` and `make soak` find files
DEFINED = re.compile(r"^def test_", re.MULTILINE)
MEMORY, ENOUGH = Path("/dev/shm"), 2 << 30  # bytes: a container may have 64 MB
COST = pytest.StashKey[float]()
SHARED = pytest.StashKey[float]()  # what fixtures of more than one test have cost


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parts")
    group.addoption("--part", choices=["unit", "core", "soak"], help="which tests; all without it")
    group.addoption("--seed", default="0", help="draws cases, and cuts the shares of the soak")
    group.addoption("--share", default="1/1", help="of soak or unit: 2/5 is the second of five")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Gives matrices of unit tests one thread, as a worker of one CPU has; the other parts more.

    Threads of two processes on two cores wait busily for each other: half of what a matrix costs.
    A file costs a tenth in memory, where passed tests leave none: the other parts write to a disk.
    """
    part = early_config.known_args_namespace.part
    if part not in ("core", "soak"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if part == "unit" and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ENOUGH:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


# Which tests run


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("part")
    if part is None:
        return
    if part == "unit" and (lost := lost_files(config, items)):
        raise pytest.UsageError(f"no part runs all of {', '.join(lost)}: mend its name or marks")
    seed = config.getoption("seed")
    drawn = drawn_of(items, seed)
    chosen = [item for item in items if part_of(item, drawn) == part]
    if part != "core":
        number, _, shares = config.getoption("share").partition("/")
        if not 1 <= int(number) <= int(shares):
            raise pytest.UsageError(f"--share {number}/{shares}: the first number is 1 to {shares}")
        mine = set(shares_of(chosen, int(shares), seed)[int(number) - 1])
        chosen = [item for item in chosen if item in mine]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def lost_files(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Files with tests of which none was collected, or whose marks the Makefile's grep misses.

    Empty where pytest was asked for less than all tests.
    """
    root = config.rootpath / "tests"
    if [config.invocation_params.dir / arg for arg in config.args] != [root]:
        return []
    marked = {item.path for item in items if part_of(item, set()) != "unit"}
    tests = {path for path in root.rglob("*.py") if DEFINED.search(path.read_text("utf-8"))}
    lost = tests - {item.path for item in items}
    lost |= {path for path in marked if not MARKED.search(path.read_text("utf-8"))}
    return sorted(path.relative_to(root).as_posix() for path in lost)


def part_of(item: pytest.Item, drawn: set[str]) -> str:
    """`unit`, `core` or `soak`; `drawn` names the cases that the seed draws for the core."""
    if item.get_closest_marker("soak"):
        return "soak"
    if item.get_closest_marker("drawn"):
        return "core" if item.nodeid in drawn else "soak"
    return "core" if item.get_closest_marker("chaos") else "unit"


def drawn_of(items: list[pytest.Item], seed: str) -> set[str]:
    """Ids of the drawn cases: of each kind the one with the least hash.

    `drawn("kind")` makes a kind of every value of that parameter, `drawn(cases=3)` draws three
    cases of the test in all, and `drawn(one_in=3)` each case by itself, by a third of the seeds.
    """
    found: set[str] = set()
    kinds: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    most: dict[tuple[Any, ...], int] = {}
    for item in items:
        mark = item.get_closest_marker("drawn")
        if mark and "one_in" in mark.kwargs:
            is_drawn = int(coin(seed, item.nodeid), 16) % mark.kwargs["one_in"] == 0
            found |= {item.nodeid} if is_drawn else set()
        elif mark:
            values = item.callspec.params  # type: ignore[attr-defined]  # a drawn test has cases
            kind = (item.nodeid.partition("[")[0], *(repr(values[name]) for name in mark.args))
            kinds[kind].append(item.nodeid)
            most[kind] = mark.kwargs.get("cases", 1)
    return found | {
        nodeid
        for kind, cases in kinds.items()
        for nodeid in sorted(cases, key=lambda case: coin(seed, case))[: most[kind]]
    }


def shares_of(items: list[pytest.Item], shares: int, seed: str) -> list[list[pytest.Item]]:
    """The tests of each share, so cut that their costs are about equal.

    A test costs what its mark says, `soak(cpu_s=…)` and `drawn(…, cpu_s=…)`, else five CPU seconds.
    A file stays whole, as its tests share fixtures, unless it is dear. The dearest goes first, each
    to the share that has least; the seed decides among equals.
    """
    costs: dict[str, float] = defaultdict(float)
    for item in items:
        costs[file_of(item)] += cost_of(item)
    units: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        units[file_of(item) if costs[file_of(item)] <= WHOLE_S else item.nodeid].append(item)
    sums = {name: sum(map(cost_of, tests)) for name, tests in units.items()}
    cut: list[list[pytest.Item]] = [[] for _ in range(shares)]
    taken = [0.0] * shares
    for name in sorted(units, key=lambda name: (-sums[name], coin(seed, name))):
        least = min(range(shares), key=lambda share: (taken[share], coin(seed, f"{name} {share}")))
        cut[least] += units[name]
        taken[least] += sums[name]
    return cut


def cost_of(item: pytest.Item) -> float:
    mark = item.get_closest_marker("soak") or item.get_closest_marker("drawn")
    return mark.kwargs.get("cpu_s", 5) if mark else 5


def file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def coin(seed: str, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


# What they cost


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Has each process import its own share of the files first: the others find them compiled.

    In a clean clone asserts of 75,000 lines are rewritten, which takes as long as to import torch.
    """
    config, worker = session.config, os.environ.get("PYTEST_XDIST_WORKER", "")
    root = config.rootpath / "tests"
    asked = [config.invocation_params.dir / it for it in config.args]
    if config.getoption("part") != "unit" or not worker or asked != [root]:
        return
    files = sorted(root.rglob("test_*.py"))
    for path in files[int(worker[2:]) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]:
        with suppress(Exception):  # told when the file is collected
            import_module(".".join(path.relative_to(config.rootpath).with_suffix("").parts))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.getoption("part") != "unit" or len(session.items) < MANY:
        return
    for name in IMPORTED:
        with suppress(ImportError):
            import_module(name)
    if numba := sys.modules.get("numba.core.event"):
        COMPILES.append(numba.TimingListener())
        numba.register("numba:compile", COMPILES[-1])
    gc.freeze()  # modules and tests: else each collection looks through a million objects
    gc.set_threshold(10_000, 10, 100)  # and seldom through what tests leave behind


def cpu_s() -> float:
    """CPU seconds of this process and of the children it has waited for, but for compiling."""
    times = os.times()
    compiling = sum(it.duration for it in COMPILES if it.done)
    spent = times.user + times.system + times.children_user + times.children_system
    return spent - compiling


def most_s() -> float:
    """CPU seconds that fail the run: more on a busy machine, whose cores are shared."""
    return MOST_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def measured(item: pytest.Item) -> Iterator[None]:
    before, shared = cpu_s(), item.session.stash.get(SHARED, 0.0)
    try:
        return (yield)
    finally:
        shared = item.session.stash.get(SHARED, 0.0) - shared
        item.stash[COST] = item.stash.get(COST, 0.0) + cpu_s() - before - shared


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    return (yield from measured(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield from measured(item))
    finally:
        is_slow = item.get_closest_marker("slow") is not None
        item.user_properties.append(("cpu", (item.stash[COST], is_slow)))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: "pytest.FixtureDef[Any]", request: pytest.FixtureRequest
) -> Iterator[None]:
    """Sets apart what a fixture costs that other tests read too."""
    if fixturedef.scope == "function":
        return (yield)
    before, inside = cpu_s(), request.session.stash.get(SHARED, 0.0)
    try:
        return (yield)
    finally:  # those inside it are counted in it
        request.session.stash[SHARED] = inside + cpu_s() - before


class Costs:
    """Keeps what each test cost, and ends the run with the sum."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.began_s = time.monotonic()
        self.spent: dict[str, float] = {}
        self.tries: Counter[str] = Counter()
        self.dear: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties)
        if report.when != "call" or "cpu" not in told:
            return
        cost, is_slow = told["cpu"]
        self.spent[report.nodeid] = cost
        if cost > LIMIT_S and not is_slow:
            self.dear[report.nodeid] = cost
        if report.passed:  # a test that tries many things says how many, by `record_property`
            self.tries[report.nodeid.partition("[")[0]] += told.get("tries", 1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        is_dear = max(self.dear.values(), default=0) > most_s()
        if self.config.getoption("part") == "unit" and is_dear and exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        part, share = self.config.getoption("part"), self.config.getoption("share")
        if part is None:
            return
        if part == "unit" and self.dear:
            terminalreporter.section(f"unit tests above {LIMIT_S:g} CPU second, without `slow`")
            for nodeid, cost in sorted(self.dear.items(), key=lambda it: -it[1]):
                terminalreporter.line(f"{cost:6.2f} s  {nodeid}")
        if part == "soak" and self.tries:
            seed = self.config.getoption("seed")[:7]
            path = self.config.rootpath / ".soak" / f"{seed}-{share.replace('/', '-of-')}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(self.tries, indent=1))
        line = self.line(f"soak {share}" if part == "soak" else part)
        terminalreporter.line(line)
        if path := os.environ.get("CLIPMILL_FIGURES"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def line(self, name: str) -> str:
        """What this run took: all its processes that have ended and were waited for."""
        usage = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        cpu = sum(it.ru_utime + it.ru_stime for it in usage)
        wall_s, load = time.monotonic() - self.began_s, os.getloadavg()[0]
        seed = "" if name == "unit" else f", seed {self.config.getoption('seed')}"
        return (
            f"{name}: {len(self.spent):,} tests in {cpu:,.0f} CPU seconds, {wall_s:,.0f} s by the"
            f" clock, at load {load:.1f}{seed}"
        )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # of xdist: its processes count in ours
        config.pluginmanager.register(Costs(config))
