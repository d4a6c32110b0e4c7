"""Faults put into the source one at a time, each of which a test that is named for it must find.

    python -m tests.mutants [--seed N] [--all] [NAME …]

tests/mutants.yaml holds more faults than are drawn: 40 by the seed, of every package and every
promise one at least; `--all` takes all of them, names those alone. Only the tests that are named
run, two faults side by side, each in a copy of the tree; before that all of them on the tree as it
is, where they must pass. Ends with 1 where a fault lives on, or a test that the table names is not
there.
"""

import argparse
import hashlib
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DRAWN = 40
AT_ONCE = 2
MOST_TESTS = 5  # of a fault
TEST_S = 300  # a test that takes longer has found nothing: the machine may be busy


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One text in a file put in the place of another, and the tests that see it."""

    name: str
    promise: str
    file: str
    old: str  # stands once in the file
    new: str
    tests: tuple[str, ...]

    @property
    def package(self) -> str:
        top, below, *_ = Path(self.file).with_suffix("").parts
        return top if top == "metadata" else f"{top}/{below}"

    def put_into(self, text: str) -> str:
        """The text with the fault; ValueError where it has no place, or several."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: its text stands {text.count(self.old)} times")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, kw_only=True)
class End:
    """What became of the tests: pytest's exit code, the test that failed, all that was said."""

    code: int
    failed: str
    said: str
    seconds: float


@cache
def all_mutants() -> list[Mutant]:
    table = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    made = [Mutant(name=name, **it | {"tests": tuple(it["tests"])}) for name, it in table.items()]
    for mutant in made:
        mutant.put_into((ROOT / mutant.file).read_text(encoding="utf-8"))
        if not 0 < len(mutant.tests) <= MOST_TESTS:
            raise ValueError(f"{mutant.name}: {len(mutant.tests)} tests")
    return made


def drawn(mutants: list[Mutant], seed: str) -> list[Mutant]:
    """So many by a hash of the seed: the first of each package and promise, then any."""
    left = sorted(mutants, key=lambda it: hashlib.sha256(f"{seed} {it.name}".encode()).digest())
    chosen: list[Mutant] = []
    for kind in ("package", "promise"):
        for mutant in left:
            if getattr(mutant, kind) not in {getattr(it, kind) for it in chosen}:
                chosen.append(mutant)
    chosen += [mutant for mutant in left if mutant not in chosen][: DRAWN - len(chosen)]
    return [mutant for mutant in mutants if mutant in chosen]


def copy_tree(to: Path) -> Path:
    """A copy of what git knows of, or could: an environment in it is linked."""
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list_files, cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():  # the package has links
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name, follow_symlinks=False)
    for loop in ROOT.glob("stages/**/__pycache__/*.nb?"):  # as Numba has compiled it
        (to / loop.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy2(loop, to / loop.relative_to(ROOT))
    if (ROOT / ".venv").exists():
        (to / ".venv").symlink_to((ROOT / ".venv").resolve())
    return to


def run_tests(tests: Iterable[str], tree: Path, *more: str) -> End:
    """The end of these tests in a tree."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += [f"--timeout={TEST_S}", *more, *dict.fromkeys(tests)]
    env = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        command, cwd=tree, env=env, capture_output=True, text=True, errors="replace"
    )
    said = done.stdout + done.stderr
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", said, re.MULTILINE)
    seconds = time.monotonic() - began
    return End(code=done.returncode, failed=failed[1] if failed else "", said=said, seconds=seconds)


def run_with(mutant: Mutant, trees: "queue.Queue[Path]") -> bool:
    """Whether a test finds the fault; says which."""
    tree = trees.get()
    file = tree / mutant.file
    whole = file.read_text(encoding="utf-8")
    try:
        faulty = mutant.put_into(whole)
        compile(faulty, mutant.file, "exec")  # else whatever imports it would find it
        file.write_text(faulty, encoding="utf-8")
        end = run_tests(mutant.tests, tree, "-x")
    finally:
        file.write_text(whole, encoding="utf-8")
        trees.put(tree)
    is_killed = end.code == 1 and "from pytest-timeout" not in end.said
    found = f"killed by {end.failed}" if is_killed else f"NOT FOUND\n{end.said}"
    about = f"{mutant.name} ({mutant.promise}; {mutant.file})"
    print(f"{end.seconds:6.1f} s  {about}: {found}", flush=True)
    return is_killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", default="0", help="draws other ones")
    parser.add_argument("--all", action="store_true", help="all that the table holds")
    parser.add_argument("names", nargs="*", help="these alone")
    options = parser.parse_args()
    known = all_mutants()
    names = {*options.names} - {mutant.name for mutant in known}
    if names:
        parser.error(f"no fault is called {', '.join(sorted(names))}")
    mutants = known if options.all else drawn(known, options.seed)
    if options.names:
        mutants = [mutant for mutant in known if mutant.name in options.names]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder, "0"))
        there = run_tests((test for it in known for test in it.tests), tree, "--collect-only")
        whole = there if there.code else run_tests((t for it in mutants for t in it.tests), tree)
        if whole.code:
            print(f"{whole.said}\nthese fail, or are not there, without a fault", file=sys.stderr)
            return 1
        print(f"{whole.seconds:6.1f} s  all tests pass without a fault", flush=True)
        trees: queue.Queue[Path] = queue.Queue()
        trees.put(tree)
        for number in range(1, AT_ONCE):  # with what is compiled by now
            trees.put(Path(shutil.copytree(tree, Path(folder, str(number)), symlinks=True)))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            killed = sum(pool.map(lambda mutant: run_with(mutant, trees), mutants))
    print(f"{killed} of {len(mutants)} faults found in {time.monotonic() - began:.0f} s")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
