"""Every small file of a run folder, damaged in every way: the run heals, or says what to delete."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from tests.engine_stages.harness import meaning
from tests.parts import coin

STAGES = """
  square: {uses: toy.power, from: numbers}
  fourth: {uses: toy.power, from: square, read: {number: square.power}, exponent: %d}
  shared: {uses: toy.shared, from: numbers}
  centre: {uses: toy.centre, from: numbers, rounds: 2}
  files:  {uses: toy.files, from: numbers}
"""
# Where a run is stopped: at a point, and what the name of its object holds.
STOPS = {
    "at its end": None,
    "in a chain": ("rename", "000001-"),
    "in a shuffle": ("journal", "01-shuffle/000001"),
    "after a shuffle": ("index", "01-shuffle"),
    "in a step": ("journal", "0001.01-reduce/000001"),
    "after a step": ("step", "000001.npz"),
}


def of_other_types(data: bytes) -> bytes:
    """Numbers where strings are due, and strings where numbers are; half of anything else."""
    if data[:4] == b"PAR1":
        names = pq.ParquetFile(pa.BufferReader(data)).schema_arrow.names
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({name: [None, True] for name in names}), sink)
        return sink.getvalue().to_pybytes()
    return json.dumps(swapped(json.loads(data))).encode() if data[:1] == b"{" else half(data)


def swapped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: swapped(held) for key, held in value.items()}
    return 7 if isinstance(value, str) else "x"


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    "empty": lambda data: b"",
    "torn": half,
    "{}": lambda data: b"{}",
    "[1]": lambda data: b"[1]",
    "null": lambda data: b"null",
    "a string": lambda data: b'"x"',
    "of other types": of_other_types,
    "a folder": None,
}


@dataclass(frozen=True)
class Stopped:
    """A run folder, how the run ends that goes on in it, and what of it is small."""

    folder: Path
    code: int
    expected: dict[str, Any]

    @property
    def small(self) -> list[str]:
        """One file of every kind; of many that differ in their numbers only, one."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            is_data = "/out/" in name or re.search(r"/\d+-\w+\.parquet$", name)
            if path.is_file() and not is_data:
                found.setdefault(re.sub(r"\d{6}(-\w+)?|\d{8}T\d+-\w+", "", name), name)
        return list(found.values())


class Halt(BaseException):
    """Ends a run from within."""


@pytest.fixture
def stopped(engine, clipmill, monkeypatch):
    """Run folders by where the run was stopped; `broken` stages fail."""
    engine.plan(STAGES % 2)  # writes the recipe
    run = ("run", engine.folder / "recipe.yaml", "--workers", 0, "--out")

    def make(stop: str) -> Stopped:
        folder = engine.folder / stop
        if STOPS[stop]:
            point, part = STOPS[stop]

            def reached(here: str, name: str) -> None:
                if here == point and part in name:
                    raise Halt

            monkeypatch.setattr("clipmill.metadata.storage.reached", reached)
            with pytest.raises(Halt):
                clipmill(*run, folder)
            monkeypatch.undo()
        else:
            clipmill(*run, folder)
        whole = shutil.copytree(folder, engine.folder / f"{stop}, whole")
        code = clipmill(*run, whole).code
        return Stopped(folder, code, meaning(Storage(str(whole))))

    return make


def damage(path: Path, kind: str) -> None:
    change = DAMAGES[kind]
    if change:
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
        path.mkdir()


@pytest.fixture
def goes_on(engine, clipmill):
    """Says how a damaged run differs from the one that was not; empty where it does not."""

    def differing(stopped: Stopped, *damaged: Path) -> str:
        out = engine.folder / "damaged"
        run = ("run", engine.folder / "recipe.yaml", "--workers", 0, "--out", out)
        for command in (("status", "--run", out), ("funnel", "--run", out), run):
            said = clipmill(*command)
            text = said.out + said.err
            if said.code and ("do: " not in text or "mend the stage" in text):
                return f"{command[0]}: {text}"
        if said.code:  # what stands in the way is named: it is deleted
            if not any(str(path) in text for path in damaged):
                return text
            for path in damaged:
                (path.rmdir if path.is_dir() else path.unlink)()
            said = clipmill(*run)
        found = meaning(Storage(str(out)))
        names = found.keys() | stopped.expected.keys()
        differ = [name for name in names if found.get(name) != stopped.expected.get(name)]
        return "" if said.code == 0 and differ in ([], ["recipes"]) else f"{said}: {differ}"

    return differing


@pytest.fixture
def wrong_after(goes_on, engine):
    """What is wrong where one small file is damaged, by its name and the kind of damage."""

    def wrong(it: Stopped, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
        found = {}
        for name, kind in pairs:
            out = shutil.copytree(it.folder, engine.folder / "damaged")
            [path] = out.glob(name)
            damage(path, kind)
            found[name, kind] = goes_on(it, path)
            shutil.rmtree(out)
        assert found
        return {pair: said for pair, said in found.items() if said}

    return wrong


@pytest.mark.chaos
@pytest.mark.parametrize("stop", STOPS)
def test_a_small_file_damaged_in_a_way_is_made_again_or_named(stop, stopped, wrong_after, seed):
    it = stopped(stop)
    drawn = [(name, min(DAMAGES, key=lambda kind: coin(seed, name + kind))) for name in it.small]
    assert not wrong_after(it, drawn)


@pytest.mark.soak(cpu_s=60)
@pytest.mark.parametrize("stop", STOPS)
def test_any_small_file_damaged_in_any_way_is_made_again_or_named(stop, stopped, wrong_after):
    it = stopped(stop)
    assert not wrong_after(it, product(it.small, DAMAGES))


@pytest.mark.chaos
def test_a_damaged_file_that_is_not_made_again_is_named(stopped, wrong_after):
    names = ("run.json", "recipes/*", "stages/shared-*/manifest.json")
    kinds = ("torn", "of other types", "a folder")
    assert not wrong_after(stopped("at its end"), product(names, kinds))


@pytest.mark.chaos
def test_all_small_files_damaged_alike_are_made_again(stopped, goes_on, engine):
    it, wrong = stopped("in a step"), {}
    for kind in DAMAGES.keys() - {"a folder"}:
        out = shutil.copytree(it.folder, engine.folder / "damaged")
        for name in it.small:
            if name.startswith("stages/"):
                damage(out / name, kind)
        wrong[kind] = goes_on(it)
        shutil.rmtree(out)
    assert not {kind: said for kind, said in wrong.items() if said}
