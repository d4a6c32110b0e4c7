"""A thousand damages: any file of a run folder, finished or killed on the way, in any way.

After each, `status`, `verify` and `run` end with a code and a sentence, and what is stored is in
the end what it is in a run that nothing damaged: made again, or mended as it was told.
"""

import json
import os
import random
import re
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata import uid_index
from clipmill.metadata.storage import Storage
from clipmill.pipeline.cli import main
from clipmill.pipeline.engine import row_job
from clipmill.pipeline.run_folder import sessions
from tests.artefacts import linked
from tests.engine_stages.harness import meaning, toy_stages
from tests.parts import coin
from tests.pipeline.conftest import Engine
from tests.pipeline.engine.test_damage import half, of_other_types

LINES = {
    "square": "{uses: toy.power, from: numbers}",
    "shared": "{uses: toy.shared, from: numbers}",
    "chosen": "{uses: select.where, from: [square, shared], where: shared > LEAST}",
    "cube": "{uses: toy.power, from: numbers, only: chosen, exponent: 3}",
    "centre": "{uses: toy.centre, from: numbers, rounds: 2}",
    "asked": "{uses: toy.asker, from: numbers, log: IT/asked.log}",
    "kept": "{uses: toy.answered, from: numbers, script: IT/mood.json}",
    "weighed": "{uses: toy.weighed, from: numbers, weights: IT/weight.txt}",
    "learned": "{uses: toy.learned, from: numbers}",
    "files": "{uses: toy.files, from: numbers}",
    "uids": "{uses: export.uid_list, from: [chosen, square]}",
}
# Where a run of some stages is killed: at a point, and what the name of its object holds.
STOPS = {
    "at half a file": (("square",), "write", "000001-"),
    "in a shard that asks": (("asked",), "answers", "new/000001-"),
    "in a shard that keeps": (("kept",), "kept", "kept/000000/"),
    "in a shuffle": (("shared",), "journal", "01-shuffle/000001"),
    "after a shuffle": (("shared",), "index", "01-shuffle"),
    "after a step": (("centre",), "step", "000001.npz"),
    "in a training": (("learned",), "step", "checkpoints/it/000000000002"),
    "at its files": (("files",), "rename", "out/1.txt"),
    "at a part of a fold": (("square", "weighed"), "fold", "records-0000"),
}
KINDS = {  # of files, by their names; the first that fits
    "half a file": r".*\.tmp-[^/]*",
    "run.json": r"run\.json",
    "lock": r"lock\.json",
    "live.json": r"live\.json",
    "recipe": r"recipes/.*",
    "session": r"sessions/.*",
    "new answers": r"answers/new/.*",
    "packed answers": r"answers/packed/.*",
    "what was made once": r"once/.*/made\.json",
    "file made once": r"once/.*",
    "data": r"stages/[^/]*/\d{6}-\w+\.parquet",
    "data of a pass": r"stages/[^/]*/\d{6}\.p\d-\w+\.parquet",
    "record": r"stages/[^/]*/\d{6}\.json",
    "record of a pass": r"stages/[^/]*/\d{6}\.p\d\.json",
    "failure": r"stages/[^/]*/\d{6}\.failed\.json",
    "fold": r"stages/[^/]*/records\.parquet",
    "part of a fold": r"stages/[^/]*/records-\d{4}\.parquet",
    "manifest": r"stages/[^/]*/manifest\.json",
    "origin": r"stages/[^/]*/origin\.json",
    "index of uids": r"stages/[^/]*/uids/.*",
    "pin": r"stages/[^/]*/pins/.*",
    "copy of a pin": r"stages/[^/]*/pins-copy/.*",
    "budget": r"stages/[^/]*/budget/.*",
    "attempt": r"stages/.*\.attempt",
    "kept answers": r"stages/[^/]*/kept/.*",
    "export or model": r"stages/[^/]*/out/.*",
    "note of a file": r"stages/[^/]*/out-notes/.*",
    "checkpoint": r"stages/[^/]*/calls-[^/]*/checkpoints/.*",
    "state of a step": r"stages/[^/]*/calls-[^/]*/.*\.npz",
    "moved rows": r"stages/[^/]*/calls-[^/]*/.*\.arrows",
    "index of moved rows": r"stages/[^/]*/calls-[^/]*/.*\.index",
    "journal": r"stages/[^/]*/calls[^/]*/.*(\.json|\.dropped)",
}
# News, and what is read no more: nothing that is stored depends on it.
NO_RESULTS = {"half a file", "live.json", "lock", "session", "attempt", "failure", "budget"}
# Of what lies elsewhere too: whoever asks for it and finds it damaged makes it again.
COPIES = {
    *("new answers", "packed answers", "what was made once", "file made once", "recipe"),
    *("index of uids", "copy of a pin"),
}

CUBE = "the rows of cube"

Way = Callable[[bytes, random.Random, bytes], bytes]


def flipped(data: bytes, rng: random.Random, other: bytes) -> bytes:
    place, changed = rng.randrange(len(data)), bytearray(data)
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def without_a_byte(data: bytes, rng: random.Random, other: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place + 1 :]


WAYS: dict[str, Way | None] = {  # by None the file goes, or a folder takes its place
    "a bit flipped": flipped,
    "a bit flipped, its time kept": flipped,
    "a byte cut": without_a_byte,
    "emptied": lambda data, rng, other: b"",
    "torn": lambda data, rng, other: half(data),
    "gone": None,
    "doubled": lambda data, rng, other: data + data,
    "another's bytes": lambda data, rng, other: other,
    "a folder": None,
    "zeros, its time kept": lambda data, rng, other: bytes(len(data)),
    "of other types": lambda data, rng, other: of_other_types(data),
    "JSON of another kind": lambda data, rng, other: rng.choice((b"{}", b"[1]", b"null", b'"x"')),
}
DAMAGES, AT_ONCE = 1000, 50


@dataclass(frozen=True, eq=False)
class Base:
    """A run folder, finished or as a kill left it, and how a run ends that goes on in it."""

    name: str
    folder: Path
    recipes: tuple[Path, ...]  # that ran there, the last first
    expected: dict[str, Any]
    answers: dict[str, set[Any]]  # of stages that ask, by stage
    files: tuple[str, ...]
    earlier: tuple[str, ...] = ()  # folders of stages that the last recipe has not


@dataclass(frozen=True)
class Bases:
    """All of them, and logs of what stages ask for, a line a row."""

    logs: tuple[Path, ...]
    all: tuple[Base, ...]

    def drawn(self, kind: str, rng: random.Random) -> tuple[Base, str]:
        """One of the folders that have files of a kind, and one of these."""
        files = {it: [name for name in it.files if kind_of(name) == kind] for it in self.all}
        base = rng.choice([it for it in self.all if files[it]])
        return base, rng.choice(files[base])


def kind_of(name: str) -> str:
    found = next((kind for kind, shape in KINDS.items() if re.fullmatch(shape, name)), None)
    assert found, f"{name} is of no kind: say in KINDS what it is"
    return found


def stored(folder: Path) -> dict[str, Any]:
    """What a run folder means, without what no result depends on."""
    held = meaning(Storage(str(folder)))
    held.pop("recipes", None)
    kept = {name: it for name, it in held.items() if kind_of(name) not in NO_RESULTS | COPIES}
    # Rows in two passes, or in one that was made again under today's mask, are the same rows.
    passes = [name for name in kept if "/cube-" in name]
    files = [folder / name for name in sorted(passes) if "-" in Path(name).name]
    rows = {CUBE: set(chain(*map(rows_in, files)))} if passes else {}
    return {name: it for name, it in kept.items() if name not in passes} | rows


def answers(folder: Path) -> dict[str, set[Any]]:
    """Each row's answer of the stages that ask, in whichever pass it lies."""
    return {
        stage: {
            tuple(value for name, value in row.items() if name != "position")
            for file in folder.glob(f"stages/{stage}-*/0*-*.parquet")
            for row in pq.read_table(file).to_pylist()
            if row["reason"] != "not_selected"
        }
        for stage in ("asked", "kept")
    }


def rows_in(file: Path) -> list[Any]:
    """Place and value of each row that a pass has computed; nothing of a damaged file."""
    try:
        table = pq.read_table(file)
        place = table["position"].to_pylist() if "position" in table.column_names else count()
        rows = zip(place, table["power"].to_pylist(), table["reason"].to_pylist(), strict=False)
        return [(file.name[:6], at, it) for at, it, why in rows if why != "not_selected"]
    except (pa.ArrowException, KeyError, OSError):
        return []


class Maker:
    """Runs recipes over one pool of numbers, and keeps run folders as they were at a point."""

    def __init__(self, folder: Path) -> None:
        self.engine, self.folder = Engine(folder), folder
        self.logs = (folder / "asked.log", folder / "mood.log")
        (folder / "weight.txt").write_text("3")
        self.mood()

    def mood(self, **mood: list[int]) -> None:
        (self.folder / "mood.json").write_text(json.dumps({"timeout": [3], **mood}))

    def recipe(self, name: str, stages: Iterable[str], least: int = 3) -> Path:
        lines = "".join(f"  {stage}: {LINES[stage]}\n" for stage in stages)
        lines = lines.replace("IT/", f"{self.folder}/").replace("LEAST", str(least))
        self.engine.plan(lines)
        return (self.folder / "recipe.yaml").rename(self.folder / f"{name}.yaml")

    def run(self, recipe: Path, out: Path, code: int = 0) -> None:
        for log in self.logs:  # an answer says how often it was asked for
            log.write_text("")
        words = ("run", recipe, "--workers", 0, "--out", out)
        assert main(list(map(str, words))) == code

    def base(self, name: str, folder: Path, whole: Path, *recipes: Path) -> Base:
        if (lock := folder / "lock.json").exists():  # of a process that is no more
            lock.write_text(json.dumps({**json.loads(lock.read_text()), "started": "0"}))
        files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        names = tuple(sorted(path.as_posix() for path in files))
        return Base(name, folder, recipes, stored(whole), answers(whole), names)

    def done(self) -> Base:
        """A run of all stages, after one with another threshold."""
        recipes = [self.recipe(f"done{least}", LINES, least) for least in (3, 6)]
        out, stages = self.folder / "done", self.folder / "done" / "stages"
        self.run(recipes[1], out)
        before = {path.name for path in stages.iterdir()}
        self.run(recipes[0], out)
        new = {path.name for path in stages.iterdir()} - before
        again = {name.partition("-")[0] for name in new}
        earlier = [f"stages/{name}/" for name in before if name.partition("-")[0] in again]
        return replace(self.base("done", out, out, *recipes), earlier=tuple(earlier))

    def failed(self) -> Base:
        recipe, out = self.recipe("failed", ["kept"]), self.folder / "with a failed shard"
        self.mood(**{"raise": [25]})
        self.run(recipe, out, code=1)
        self.mood()
        whole = shutil.copytree(out, self.folder / "failed, whole")
        self.run(recipe, whole)
        return self.base("with a failed shard", out, whole, recipe)

    def killed(self, stop: str, patch: pytest.MonkeyPatch) -> Base:
        stages, point, part = STOPS[stop]
        recipe = self.recipe(stop, stages)
        whole, folder = self.folder / f"{stop}, whole", self.folder / stop

        def reached(here: str, name: str) -> None:
            if here == point and part in name and not folder.exists():
                shutil.copytree(whole, folder)

        with patch.context() as now:
            now.setattr("clipmill.metadata.storage.reached", reached)
            self.run(recipe, whole)
        return self.base(stop, folder, whole, recipe)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Iterator[Bases]:
    with toy_stages(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(uid_index, "LEAST_SHARDS", 2)
        patch.setattr(row_job, "COMPACT_EVERY", 2)
        patch.setattr(sessions, "commit", lambda folder: None)  # git costs as much as a run
        make = Maker(tmp_path_factory.mktemp("damages"))
        stopped = (make.killed(stop, patch) for stop in STOPS)
        yield Bases(make.logs, (make.done(), make.failed(), *stopped))


@dataclass(frozen=True)
class Damage:
    """A file of a run folder, and what becomes of it."""

    base: Base
    name: str
    way: str
    place: Path  # of the damaged copy

    def happen(self, rng: random.Random) -> bool:
        """Whether any byte is another now."""
        path, change = self.place / self.name, WAYS[self.way]
        data, at = path.read_bytes(), path.stat()
        if change is None:
            path.unlink()
            if self.way == "a folder":
                path.mkdir()
            return True
        kind = kind_of(self.name)
        others = [it for it in self.base.files if kind_of(it) == kind and it != self.name]
        other = (self.place / rng.choice(others)).read_bytes() if others else data
        changed = change(data, rng, other) if data else b""
        path.unlink()  # the copy is a link
        path.write_bytes(changed)
        if "its time kept" in self.way:
            os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
        return changed != data


@pytest.fixture
def outcome_of(bases, clipmill):
    """How a damage ends, in words; AssertionError where it is not told, or not mended."""

    def say(*words: object):
        said = clipmill(*words)
        text = said.out + said.err
        assert said.code in (0, 1, 2), f"{words[0]}: code {said.code}"
        assert "Traceback" not in text, text
        return said, text

    def outcome(damage: Damage) -> str:
        place, kind, base = damage.place, kind_of(damage.name), damage.base
        recipe, *earlier = base.recipes
        is_earlier = damage.name.startswith(base.earlier)
        at = ("--workers", 0, "--out", place)

        def differing() -> set[str]:
            found = stored(place)
            names = found.keys() | base.expected.keys()
            return {name for name in names if found.get(name) != base.expected.get(name)}

        def asked() -> int:
            lines = sum(len(log.read_text().split()) for log in bases.logs)
            for log in bases.logs:
                log.write_text("")
            return lines

        def repaired():
            return say("verify", "--run", place, "--repair", "--workers", 0)

        def delete(text: str) -> None:
            path = place / damage.name
            assert str(path) in text, f"not named: {text}"
            (path.rmdir if path.is_dir() else path.unlink)()

        asked()
        said, text = say("status", "--run", place)
        assert not said.code or "do: " in text, f"status: {text}"
        said, text = say("verify", "--run", place, "--json")
        found = said.json if said.code < 2 else []
        named = {f"{it['folder']}/{bad['file']}" for it in found for bad in it["damaged"]}
        named |= {CUBE for name in named if "/cube-" in name}
        assert bool(named) if said.code == 1 else said.code == 0 or "do: " in text, text
        ran, text = say("run", recipe, *at)
        assert base.name != "done" or not asked(), "the run asks again"
        wrong = differing()
        assert not ran.code or "do: " in text, text
        if not ran.code and not is_earlier:
            assert wrong <= named, f"in silence: {wrong - named}\n{text}"
            if not wrong and kind not in NO_RESULTS | COPIES:
                return "made again"
            if not wrong and not say("verify", "--run", place)[0].code:
                return "no result depends on it"
        if ran.code and "--repair" not in text:
            delete(text)
            outcome, asks_again = "named, deleted as told", 0
        else:
            if is_earlier:
                say("run", *earlier, *at)
            said, text = repaired()
            outcome = "mended by the recipe that made it" if is_earlier else "mended by --repair"
            if said.code == 2:
                delete(text)
                outcome += ", deleted as told"
                said, text = repaired()
            assert said.code == 0, text
            outcome += ", which asks again" if (asks_again := asked()) else ""
        ran, text = say("run", recipe, *at)
        assert ran.code == 0, text
        wrong = differing()
        if asks_again:  # in one pass what lay in two
            wrong = {
                name for name in wrong if not name.startswith(("stages/asked-", "stages/kept-"))
            }
            assert answers(place) == base.answers, outcome
        assert not wrong, f"{outcome}: {wrong}"
        said, text = say("verify", "--run", place)
        assert said.code == 0, text
        return outcome

    return outcome


@pytest.fixture(scope="module")
def table(request) -> Iterator[Counter]:
    """What came of each damage, by kind and way: printed in the end, and left as a file."""
    seen: Counter = Counter()
    yield seen
    lines = [f"{n:4}  {kind:20} {way:28}  {end}" for (kind, way, end), n in sorted(seen.items())]
    seed = request.config.getoption("seed")[:7]
    path = request.config.rootpath / ".soak" / f"{seed}-damages-{os.getpid()}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    if reporter := request.config.pluginmanager.get_plugin("terminalreporter"):  # no xdist's worker
        reporter.write("\n" + path.read_text())


def damages(bases: Bases, folder: Path, seed: str, first: int):
    """Each with its numbers by chance: every kind in every way before one comes again."""
    cells = sorted(((k, w) for k in KINDS for w in WAYS), key=lambda cell: coin(seed, repr(cell)))
    for number in range(first, first + AT_ONCE):
        kind, way = cells[number % len(cells)]
        rng = random.Random(f"{seed} {number}")
        base, name = bases.drawn(kind, rng)
        place = linked(base.folder, folder / f"{number}")
        damage = Damage(base, name, way, place)
        if not damage.happen(rng):  # no other byte: nothing was in it, say
            shutil.rmtree(place)
            damage = Damage(base, name, "gone", linked(base.folder, place))
            damage.happen(rng)
        yield number, damage
        shutil.rmtree(place)


@pytest.mark.soak(cpu_s=25)
@pytest.mark.parametrize("first", range(0, DAMAGES, AT_ONCE))
def test_a_damage_is_mended_or_named(
    first, bases, outcome_of, table, seed, tmp_path, record_property
):
    wrong = []
    for number, damage in damages(bases, tmp_path, seed, first):
        try:
            outcome = outcome_of(damage)
            table[kind_of(damage.name), damage.way, outcome] += 1
        except Exception:
            told = f"{number}: {damage.base.name}, {damage.name}: {damage.way}"
            wrong.append(f"{told}\n{traceback.format_exc(limit=-3)}")
    record_property("tries", AT_ONCE)
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
