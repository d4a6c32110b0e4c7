"""What holds for a run of every stage: in other pieces, by other hands, killed or damaged anywhere.

One law a test, asked of each stage; a new stage is in by its example (tests/every_stage.py).
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.repair import is_recorded
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.run_folder.state import RunState
from tests.chaos.conftest import Nursery, nursery_of
from tests.engine_stages.harness import Ended, clipmill_run, meaning
from tests.every_stage import OURS, Finished, holds, write_run
from tests.parts import coin

pytestmark = pytest.mark.chaos

FILES, SHARD_ROWS = 2, 70
MODULES = (  # imported once, and not by each of some hundred forks
    *("tests.chaos.small", "torch", "pandas", "cv2", "scipy.stats", "numba"),
    *("clipmill.pipeline.verbs._summary_page", "clipmill.pipeline.ledger.proof.compare"),
    *(
        "clipmill.stages.models.reference",
        "clipmill.stages.models.features",
        "clipmill.stages.models.filter_network",
    ),
    *(
        "clipmill.stages.ops.vectors._sift",
        "clipmill.stages.dedup._shingles",
        "clipmill.stages.clip.loop",
    ),
)
# Points of the run (test_kill_matrix), of stored answers (test_asked) and of what is made once.
ELSEWHERE = re.compile(r"\w+ (run|lock|made)\.json|\w+ (recipes|sessions|log|packed|new)/")
REDONE = 2  # units at most: those that were in hand
ALL = slice(None)


@dataclass(frozen=True)
class Pieces:
    """A finished run, and more runs of its recipe."""

    nursery: Nursery
    finished: Finished

    @property
    def path(self) -> Path:
        return Path(self.finished.state.run.path)

    def stored(self, run: str, planned: PlannedStage, values: bool = False) -> object:
        """What a stage has stored in a run: each file as bytes, or its values alone.

        Of what servers say only values are promised: their answers come in any order.
        """
        if values or planned.stage.determinism == "recorded":
            state = RunState(self.finished.plan, Storage(run))
            return Finished(state, self.finished.port).everything(planned)
        files = meaning(Storage(run).child(planned.folder))
        return {name: it for name, it in files.items() if not name.startswith("log/")}

    def holds(self, law: Callable[[PlannedStage], object], some: slice = ALL) -> None:
        """Asks the law of every stage of the run, or of some."""
        asked = list(self.finished.plan.stages.values())[some]
        kinds = OURS if some == ALL else [it.uses for it in asked]
        holds(law, [(it.uses, it) for it in asked], kinds)

    def same(self, run: object, by_value: Collection[str] = ()) -> None:
        """Holds what each stage has stored in another run to what it has in this."""

        def law(planned: PlannedStage) -> int:
            values = planned.uses in by_value
            mine, theirs = (self.stored(str(it), planned, values) for it in (self.path, run))
            assert theirs == mine
            return len(mine)

        self.holds(law)


@pytest.fixture(scope="module")
def pieces(generated, links, tmp_path_factory) -> Iterator[Pieces]:
    """More source files, in another order, cut into more and smaller shards; all limits are low."""
    folder = tmp_path_factory.mktemp("pieces")
    plan = make_plan(load_recipe(str(write_run(generated, folder, links, FILES, SHARD_ROWS))))
    (folder / "nursery").mkdir()
    recipe = folder / "every_stage.yaml"
    with nursery_of(recipe, folder / "nursery", modules=MODULES) as nursery:
        ended = nursery.run(folder / "run")
        assert ended.code == 0, ended.output
        yield Pieces(nursery, Finished(RunState(plan, Storage(str(folder / "run"))), links))


def each(count: int) -> pytest.MarkDecorator:
    """So many cases, which share the stages among them."""
    return pytest.mark.parametrize("some", [slice(at, None, count) for at in range(count)], ids=str)


def test_shards_their_order_and_limits_change_no_value(every_stage, pieces):
    def law(planned):
        whole, cut = (run.everything(planned) for run in (every_stage, pieces.finished))
        assert cut == whole
        return len(whole)

    pieces.holds(law)
    shards = [len(run.state.stages["both"].shards) for run in (every_stage, pieces.finished)]
    assert shards == [2, 5]


@pytest.mark.drawn(cases=1, cpu_s=80)
@each(3)
def test_workers_and_stages_at_once_change_no_byte(some, pieces, tmp_path):
    recipe = pieces.nursery.recipe
    out, faults = shutil.copytree(pieces.path, tmp_path / "run"), tmp_path / "faults"
    pieces.holds(lambda planned: shutil.rmtree(out / planned.folder), some)
    ended = clipmill_run(recipe, out, faults, workers=2, timeout_s=800)  # with all limits high
    assert ended.code == 0, ended.output
    pieces.same(out, {"dedup.phash", "dedup.minhash", "select.prototypes", "select.sample"})


def test_run_again_does_nothing(pieces):
    def files(planned):
        folder = pieces.path / planned.folder
        stats = {it: it.stat() for it in folder.rglob("*") if it.is_file()}
        return {it: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for it, stat in stats.items()}

    def law(planned):
        assert files(planned) == before[planned.name]
        return len(before[planned.name])

    before = {name: files(it) for name, it in pieces.finished.plan.stages.items()}
    again = pieces.nursery.run(pieces.path)
    assert again.code == 0, again.output
    assert again.units == 0
    pieces.holds(law)


# Killed


def places(ended: Ended) -> dict[str, list[int]]:
    """Where a stage may be killed, by the file that is written; they count up to each point.

    Files whose names differ in their numbers are one place.
    """
    found = defaultdict(list)
    for number, point in enumerate(ended.points):
        if not ELSEWHERE.match(point):
            found[re.sub(r"[0-9a-f]*\d[0-9a-f]*", "0", point.partition(" ")[2])].append(number)
    return found


@pytest.fixture
def die(pieces, tmp_path):
    """Kills a stage where it is told and runs it again: as if nothing had happened."""
    out = shutil.copytree(pieces.path, tmp_path / "run")

    def die(planned: PlannedStage, choose: Callable[[dict[str, list[int]]], list[int]]) -> int:
        shutil.rmtree(out / planned.folder)
        whole = pieces.nursery.run(out, "--until", planned.name)
        assert whole.code == 0, whole.output
        expected = pieces.stored(str(pieces.path), planned)
        numbers = choose(places(whole))
        for number in numbers:
            point = whole.points[number]
            shutil.rmtree(out / planned.folder)
            fault = f"{point}:{whole.points[: number + 1].count(point)}"
            killed = pieces.nursery.run(out, "--until", planned.name, fault=fault)
            assert killed.killed, f"{fault} was never reached: {killed.output}"
            again = pieces.nursery.run(out, "--until", planned.name)
            assert again.code == 0, again.output
            assert pieces.stored(str(out), planned) == expected, fault
            assert killed.units + again.units <= whole.units + REDONE, fault
        return len(numbers)

    yield die
    pieces.same(out)


def one_of(numbers: list[int], seed: str, name: str) -> int:
    return min(numbers, key=lambda it: coin(seed, f"{name} {it}"))


@pytest.mark.drawn(cases=1, cpu_s=60)
@each(3)
def test_killed_and_run_again_each_stage_stores_the_same(some, pieces, die, seed):
    def law(planned):
        def choose(by_file):
            file = min(by_file, key=lambda file: coin(seed, f"{planned.name} {file}"))
            return [one_of(by_file[file], seed, file)]

        return die(planned, choose)

    pieces.holds(law, some)


@pytest.mark.soak(cpu_s=100)
@each(10)
def test_killed_at_every_file_and_run_again_each_stage_stores_the_same(some, pieces, die, seed):
    def choose(by_file):
        return [one_of(numbers, seed, file) for file, numbers in by_file.items()]

    pieces.holds(lambda planned: die(planned, choose), some)


# Damaged


def flip(path: Path, seed: str) -> None:
    """Changes one bit of a file, at a place that the seed draws."""
    data = bytearray(path.read_bytes())
    data[int(coin(seed, path.name), 16) % len(data)] ^= 0x10
    path.write_bytes(data)


def test_a_changed_bit_of_any_file_is_named(pieces, tmp_path, seed):
    out = shutil.copytree(pieces.path, tmp_path / "run")
    stages = pieces.finished.plan.stages
    changed = {name: files_of(out / it.folder) for name, it in stages.items()}
    assert not [name for name, files in changed.items() if not files]
    for files in changed.values():
        for path in files:
            flip(path, seed)
    told = pieces.nursery.ask("verify", "--run", str(out), "--json")
    assert told.code == 1, told.output
    named = {
        out / checked["folder"] / found["file"]
        for checked in json.loads(told.output)
        for found in checked["damaged"]
    }
    assert named == {path for files in changed.values() for path in files}


@pytest.mark.soak(cpu_s=25)
@pytest.mark.parametrize("case", range(14))
def test_who_reads_a_changed_file_has_it_made_again(case, pieces, tmp_path, seed):
    """A digit of their numbers tells which stages are made anew, from the others' changed files:
    of two stages each reads what the other stored, in one of the cases."""
    out = shutil.copytree(pieces.path, tmp_path / "run")
    stages = pieces.finished.plan.stages
    assert len(stages) <= 2**7
    anew = [it for at, it in enumerate(stages.values()) if at >> case // 2 & 1 == case % 2]
    for planned in stages.values():
        if planned in anew:
            shutil.rmtree(out / planned.folder)
        elif not is_recorded(planned.stage):  # no run asks again for damaged rows: test_verify
            for path in files_of(out / planned.folder):
                flip(path, seed)
    ended = pieces.nursery.run(out)
    if ended.code:  # its last page read a file that no stage did
        assert "--repair" in ended.output
    state = RunState(pieces.finished.plan, Storage(str(out)))
    assert all(state.stages[it.name].complete for it in anew), ended.output
    mended = pieces.nursery.ask("verify", "--run", str(out), "--repair", "--workers", "0")
    assert mended.code == 0, mended.output
    assert pieces.nursery.run(out).code == 0
    pieces.same(out)


def files_of(folder: Path) -> list[Path]:
    """The data files and outputs of a stage."""
    out = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return sorted([*folder.glob("*-*.parquet"), *out])
