"""What holds for every stage: declarations here, and what row functions answer; one test a law.

A new stage is found by itself, and is in the run that feeds the laws by the Example: in its
docstring, or by a line in recipes/every_stage.yaml. Laws of whole runs: chaos/test_every_stage.py.
"""

import dataclasses
import json
import re
import subprocess
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import TEXT, UID
from clipmill.pipeline import contract
from clipmill.pipeline.contract import ANSWERS, DECLARED, FUNCTIONS, HEAVY, Declared
from clipmill.pipeline.engine.worker import worker_of
from clipmill.pipeline.ledger.proof.results import losses
from clipmill.pipeline.ledger.rows.stored import artifacts
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.planning.settings import known_uses, stage_class
from clipmill.pipeline.stage import Artifact, RowStage
from tests.every_stage import OURS, RECIPE, Finished, holds, with_examples

ROW_STAGES = {uses for uses in OURS if issubclass(stage_class(uses, ""), RowStage)}


@pytest.fixture
def of_stages(every_stage):
    """Asks a law of every stage of the run."""
    planned = [(it.uses, it) for it in every_stage.plan.stages.values()]
    return lambda law: holds(law, planned, {uses for uses, _ in planned})


def test_a_law_lists_all_that_is_wrong_and_whom_it_has_not_visited():
    def law(number: int) -> int:
        assert number < 2, "too many"
        return number

    stages = [("a.none", 0), ("a.one", 1), ("a.two", 2), ("a.three", 3)]
    with pytest.raises(pytest.fail.Exception) as raised:
        holds(law, stages, ["a.none", "a.one", "a.gone"])
    said = str(raised.value)
    assert re.findall(r"^(a\.\w+): ", said, re.M) == ["a.two", "a.three", "a.gone", "a.none"]
    assert said.count("AssertionError: too many\n") == 2


def test_every_stage_is_in_the_run_of_every_stage(every_stage):
    holds(every_stage.stage_of, [(uses, uses) for uses in OURS], OURS)


def test_a_new_stage_is_in_the_run_by_its_example(tmp_path, monkeypatch):
    (tmp_path / "stages" / "annotate").mkdir(parents=True)
    own = Path(__file__).parents[1] / "clipmill" / "stages" / "annotate" / "caption.py"
    (tmp_path / "stages" / "annotate" / "fresh.py").write_text(own.read_text())
    monkeypatch.setenv(VARIABLE, str(tmp_path / "stages"))
    given = load_recipe(str(RECIPE))
    longer = with_examples(given, [*OURS, "annotate.fresh"])
    assert set(known_uses()) == {keys["uses"] for keys in longer.stages.values()}
    assert [*longer.stages][: len(given.stages)] == [*given.stages]
    (new,) = [it for it in longer.stages.values() if it["uses"] == "annotate.fresh"]
    assert TEXT.name in [column.name for column in stage_class("annotate.fresh", "").reads]
    assert new["from"] in given.stages


def test_no_step_leaves_a_model_or_a_map_to_a_search_for_garbage(every_stage):
    """Workers make one rarely: an object in a circle would stay from step to step."""
    assert Path(every_stage.state.run.path).with_name("left").read_text() == ""


# What classes declare


@pytest.mark.slow("a process that imports every stage")
def test_planning_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from clipmill.pipeline.planning.settings import known_uses, stage_class\n"
        "for uses in known_uses():\n"
        "    stage_class(uses, '')\n"
        f"    heavy = sorted(set({HEAVY}) & sys.modules.keys())\n"
        "    if heavy: sys.exit(f'stages/{uses.replace(chr(46), chr(47))}.py imports {heavy}')\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What stages declare, by their settings


@pytest.mark.parametrize("law", DECLARED, ids=lambda law: law.name)
def test_a_stage_declares_what_the_engine_relies_on(law, of_stages):
    def ask(planned):
        assert law.wrong(Declared(planned.uses, type(planned.stage), planned.stage)) is None

    of_stages(ask)


FIELDS = {  # that readers ask of each kind of artifact
    "loss": {"step", "loss"},
    "results": {"models"},
    "leaks": {"column", "at", "tasks"},
    "recall": {"texts_drawn"},
    "balance": {"t", "matched", "expected", "kept"},
    "concepts": {"entry", "count", "kept", "t"},
    "listed": {"uids", "missing"},
    "centroids": {"cluster_id", "centroid", "rows", "inertia"},
    "notes": {"notes"},
}


def test_a_declared_artifact_is_in_out_and_holds_what_its_kind_holds(of_stages, every_stage):
    def law(planned):
        for kind, _ in planned.stage.artifacts:
            stage = every_stage.state.stages[planned.name]
            (file,) = artifacts(stage, kind).values()
            body = Outputs(stage.folder).read(file)
            is_table = file.endswith(".parquet")
            names = pq.read_schema(pa.BufferReader(body)).names if is_table else json.loads(body)
            assert FIELDS[kind] <= set(names)
            kinds.add(kind)

    kinds: set[str] = set()
    of_stages(law)
    assert kinds == FIELDS.keys() == set(typing.get_args(Artifact))


def test_every_loss_is_read(every_stage):
    stages = every_stage.plan.stages.values()
    stepped = {one.name for one in stages if "loss" in dict(one.stage.artifacts)}
    assert {curve.stage for curve in losses(every_stage.state)} == stepped == {"clip"}


# What row functions answer


@dataclass(kw_only=True)
class Opened(contract.Opened):
    """A row stage of the run, and all rows it reads there; opened by the first law that asks."""

    planned: PlannedStage
    stored: pa.Table  # by the run

    @property
    def expected(self) -> pa.Table:
        return self.stored


def opened_in(run: Finished, planned: PlannedStage, scratch: Path) -> Opened:
    worker = worker_of(planned, seed=0, scratch=scratch)
    if planned.model:
        worker = dataclasses.replace(worker, model=run.state.stored[planned.model].folder.uri)
    rows = run.read(planned).combine_chunks()
    return Opened(
        stage=planned.stage, worker=worker, rows=rows, planned=planned, stored=run.written(planned)
    )


@pytest.fixture(scope="module")
def opened(every_stage, tmp_path_factory) -> Mapping[str, Opened]:
    """The row stages of the run by name, each with its answer to all rows."""
    scratch = tmp_path_factory.mktemp("scratch")
    stages = {
        name: opened_in(every_stage, planned, scratch)
        for name, planned in every_stage.plan.stages.items()
        if isinstance(planned.stage, RowStage)
    }
    for it in stages.values():
        it.answer  # noqa: B018  # no law's cost
    return stages


@pytest.fixture
def of_functions(opened):
    """Asks a law of every row stage."""
    return lambda law: holds(law, [(it.planned.uses, it) for it in opened.values()], ROW_STAGES)


@pytest.mark.slow("every stage")
@pytest.mark.parametrize(
    "law",
    # The next test says the last of them: what the run stored was another opening's.
    [law for law in (*FUNCTIONS, *ANSWERS) if law.name != "the same again"],
    ids=lambda law: law.name,
)
def test_a_row_function_keeps(law, of_functions):
    def ask(it):
        assert law.wrong(it) is None
        assert len(it.rows) > 100
        return len(it.rows)

    of_functions(ask)


def test_values_are_those_that_the_run_stored(of_functions):
    def law(it):
        assert it.stored[UID.name].to_pylist() == it.rows[UID.name].to_pylist()
        assert it.differing(it.answer) is None
        return len(it.answer)

    of_functions(law)
