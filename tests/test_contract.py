"""What holds for every stage: declarations here, and what row functions answer; one test a law.

A new stage is found by itself, and is in the run that feeds the laws by the Example: in its
docstring, or by a line in recipes/every_stage.yaml. Laws of whole runs: chaos/test_every_stage.py.
"""

import dataclasses
import json
import pickle
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import REASON, REASON_TYPE, TEXT, UID, Column
from clipmill.pipeline.engine.worker import worker_of
from clipmill.pipeline.ledger.proof.results import losses
from clipmill.pipeline.ledger.rows.stored import artifacts
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.planning.settings import known_uses, stage_class
from clipmill.pipeline.stage import Artifact, DatasetStage, RowStage, edges_taken, optional_columns
from tests.every_stage import OURS, RECIPE, Finished, holds, with_examples
from tests.streams import row_function

ROW_STAGES = {uses for uses in OURS if issubclass(stage_class(uses, ""), RowStage)}
HEAVY = ("torch", "faiss", "ray", "cv2", "transformers", "vllm")


def of_classes(law: Callable[[type], object]) -> None:
    holds(law, [(uses, stage_class(uses, "")) for uses in OURS], OURS)


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


# What classes declare


def test_a_stage_is_a_frozen_dataclass_with_keywords_only():
    def law(cls):
        assert cls.__dataclass_params__.frozen
        assert all(field.kw_only for field in dataclasses.fields(cls))
        assert cls.__dict__.keys() >= {"version", "__dataclass_params__"}, "its own"

    of_classes(law)


def test_a_stage_declares_version_determinism_and_edges():
    def law(cls):
        assert isinstance(cls.version, int)
        assert cls.version >= 1
        assert cls.determinism in ("exact", "close", "recorded")
        assert set(edges_taken(cls)) <= {"rows", "data", "model", "centroids", "targets"}
        assert isinstance(cls.gives, tuple)
        assert set(cls.gives) <= {"rows", "data", "model", "centroids"}
        assert issubclass(cls, RowStage) != issubclass(cls, DatasetStage)

    of_classes(law)


def test_a_docstring_leads_with_the_result_and_says_source_or_error():
    def law(cls):
        first, *rest = cls.__doc__.strip().splitlines()
        assert re.match(r"[A-Z`]|[a-z_]+\.[a-z]+\b", first), "a sentence, or a file"
        assert len(first) <= 100
        assert not re.search(r"\b(Args|Returns|This class|A stage that)\b", cls.__doc__)
        assert any(re.match(r"\s*(Source|Error): \S", line) for line in rest)

    of_classes(law)


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


def test_a_stage_declares_columns_and_unique_short_reasons(of_stages):
    def law(planned):
        uses, stage = planned.uses, planned.stage
        reads = (*stage.reads, *optional_columns(stage))
        assert all(isinstance(read, Column | str) for read in reads)
        assert all(isinstance(column, Column) for column in stage.writes)
        names = [column.name for column in stage.writes]
        assert len(set(names)) == len(names)
        assert not {UID.name, REASON.name} & set(names), "the engine adds these"
        assert isinstance(stage.reasons, tuple)
        assert len(set(stage.reasons)) == len(stage.reasons)
        if uses != "select.where":  # whose reasons are the recipe's own conditions
            # of a column without a value, or of a select that another combines
            first = "((undefined|dropped_by|kept_by):)?" if uses.startswith("select.") else ""
            form = first + r"[a-z][a-z0-9_]{2,31}"
            assert all(re.fullmatch(form, reason) for reason in stage.reasons)
        assert set(stage.transient) <= set(stage.advice) <= set(stage.reasons)

    of_stages(law)


def test_settings_survive_pickling(of_stages):
    def law(planned):
        assert pickle.loads(pickle.dumps(planned.stage)) == planned.stage

    of_stages(law)


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


@dataclass
class Opened:
    """A row stage of the run, and all rows it reads there; opened by the first law that asks."""

    planned: PlannedStage
    run: Finished
    scratch: Path

    @cached_property
    def function(self) -> Callable[[pa.Table], pa.Table]:
        worker = worker_of(self.planned, seed=0, scratch=self.scratch)
        if self.planned.model:
            model = self.run.state.stored[self.planned.model].folder.uri
            worker = dataclasses.replace(worker, model=model)
        return row_function(self.planned.stage, worker)

    @cached_property
    def rows(self) -> pa.Table:
        return self.run.read(self.planned).combine_chunks()

    @cached_property
    def answer(self) -> pa.Table:
        """To all rows at once."""
        return self.function(self.rows)

    @cached_property
    def stored(self) -> pa.Table:
        """What the run has stored."""
        return self.run.written(self.planned)

    def check(self, answer: pa.Table, start: int = 0) -> int:
        """How many answers there are to the rows from here on; each is as stored, NaN too."""
        names = self.stored.column_names[1:]
        stored = self.stored.select(names).slice(start, len(answer))
        differing = {
            name: [start + n for n, pair in enumerate(pairs) if repr(pair[0]) != repr(pair[1])]
            for name in names
            for pairs in [zip(answer[name].to_pylist(), stored[name].to_pylist(), strict=True)]
        }
        assert not {name: rows for name, rows in differing.items() if rows}, "rows that differ"
        return len(answer)


@pytest.fixture(scope="module")
def opened(every_stage, tmp_path_factory) -> Mapping[str, Opened]:
    """The row stages of the run by name, each with its answer to all rows."""
    scratch = tmp_path_factory.mktemp("scratch")
    stages = {
        name: Opened(planned, every_stage, scratch)
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


def test_rows_come_back_in_their_number_and_declared_types(of_functions):
    def law(it):
        out = it.answer
        assert len(out) == len(it.rows) > 100
        declared = {column.name: column.dtype for column in it.planned.stage.writes}
        types = dict(zip(out.column_names, out.schema.types, strict=True))
        assert types == declared | {REASON.name: REASON_TYPE}
        assert set(out[REASON.name].to_pylist()) <= {None, *it.planned.stage.reasons}
        return len(out)

    of_functions(law)


def test_values_are_those_that_the_run_stored(of_functions):
    def law(it):
        assert it.stored[UID.name].to_pylist() == it.rows[UID.name].to_pylist()
        return it.check(it.answer)

    of_functions(law)


@pytest.mark.slow("every stage")
def test_batch_boundaries_do_not_matter(of_functions):
    def law(it):
        start = 20
        for size in (1, 1, 7, 1, 3):
            start += it.check(it.function(it.rows.slice(start, size)), start)
        return start - 20

    of_functions(law)


@pytest.mark.slow("every stage")
def test_the_order_of_rows_does_not_matter(of_functions):
    def law(it):
        answer = it.function(it.rows.take(pa.array(range(59, 29, -1))))
        return it.check(answer.take(pa.array(range(29, -1, -1))), 30)

    of_functions(law)


@pytest.mark.slow("every stage")
def test_columns_in_chunks_are_read_the_same(of_functions):
    def law(it):
        rows = it.rows.slice(25, 20)
        chunked = pa.concat_tables([rows.slice(0, 3), rows.slice(3, 0), rows.slice(3)])
        assert chunked[UID.name].num_chunks > 1
        return it.check(it.function(chunked), 25)

    of_functions(law)


@pytest.mark.slow("every stage")
def test_an_empty_batch_keeps_its_types(of_functions):
    def law(it):
        empty = it.function(it.rows.slice(0, 0))
        assert empty.schema.types == it.answer.schema.types
        assert it.function(it.rows.schema.empty_table()).num_rows == 0

    of_functions(law)


def test_nulls_give_nulls_with_a_declared_reason(of_functions):
    def law(it):
        rows = it.rows.slice(0, 4)
        types = [rows.schema.field(name).type for name in rows.column_names]
        nulls = [pa.nulls(len(rows), dtype) for dtype in types]
        given = dict(zip(rows.column_names, nulls, strict=True)) | {UID.name: rows[UID.name]}
        out = it.function(pa.table(given))
        for column in it.planned.stage.writes:
            assert out[column.name].null_count == len(rows), column.name
        assert set(out[REASON.name].to_pylist()) <= set(it.planned.stage.reasons)
        return len(out)

    of_functions(law)


def test_a_value_that_is_missing_has_a_reason(of_functions):
    def law(it):
        for row in it.stored.to_pylist():
            reason = row.pop(REASON.name)
            assert reason is not None or None not in row.values()
        return len(it.stored)

    of_functions(law)


def test_inputs_are_left_as_they_were(of_functions):
    def law(it):
        rows = it.rows.slice(40, 20).combine_chunks()
        before = rows.to_pydict()
        it.function(rows)
        assert rows.to_pydict() == before
        return len(rows)

    of_functions(law)
