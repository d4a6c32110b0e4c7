"""What holds for every stage: declarations here, values in a run of all of them.

A new stage is found by itself; what it needs is one line in tests/every_stage.yaml.
"""

import dataclasses
import json
import pickle
import re
import subprocess
import sys
import typing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metadata.outputs import Outputs
from metadata.schema import REASON, REASON_TYPE, UID, Column
from pipeline.engine.worker import worker_of
from pipeline.ledger.results import losses
from pipeline.ledger.stored import artifacts
from pipeline.planning.settings import known_uses, stage_class
from pipeline.stage import Artifact, DatasetStage, RowStage, edges_taken, optional_columns
from tests import every_stage as every_stage_
from tests.streams import row_function

USES = known_uses()
ROW_STAGES = [uses for uses in USES if issubclass(stage_class(uses, ""), RowStage)]
HEAVY = ("torch", "faiss", "ray", "cv2", "transformers", "vllm")

every_use = pytest.mark.parametrize("uses", USES)
every_row_stage = pytest.mark.parametrize("uses", ROW_STAGES)


@every_use
def test_a_stage_is_in_the_run_of_every_stage(uses, every_stage):
    assert every_stage.stage_of(uses).uses == uses


@every_use
def test_a_stage_is_a_frozen_dataclass_with_keywords_only(uses):
    cls = stage_class(uses, "")
    assert cls.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert cls.__dict__.keys() >= {"version", "determinism", "__dataclass_params__"}, "its own"


@every_use
def test_a_stage_declares_version_determinism_and_edges(uses):
    cls = stage_class(uses, "")
    assert isinstance(cls.version, int)
    assert cls.version >= 1
    assert cls.determinism in ("exact", "close", "recorded")
    assert set(edges_taken(cls)) <= {"rows", "data", "model", "centroids", "targets"}
    assert isinstance(cls.gives, tuple)
    assert set(cls.gives) <= {"rows", "data", "model", "centroids"}
    assert issubclass(cls, RowStage) != issubclass(cls, DatasetStage)


@every_use
def test_a_stage_declares_columns_and_unique_short_reasons(uses, every_stage):
    stage = every_stage.stage_of(uses).stage
    assert all(isinstance(read, Column | str) for read in (*stage.reads, *optional_columns(stage)))
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


@every_use
def test_a_declared_artifact_is_in_out_and_holds_what_its_kind_holds(uses, every_stage):
    planned = every_stage.stage_of(uses)
    for kind, _ in planned.stage.artifacts:
        stage = every_stage.state.stages[planned.name]
        (file,) = artifacts(stage, kind).values()
        body = Outputs(stage.folder).read(file)
        is_table = file.endswith(".parquet")
        names = pq.read_schema(pa.BufferReader(body)).names if is_table else json.loads(body)
        assert FIELDS[kind] <= set(names)


def test_every_kind_of_artifact_is_declared_by_a_stage_and_every_loss_is_read(every_stage):
    stages = [planned for planned in every_stage.plan.stages.values()]
    kinds = {kind for planned in stages for kind, _ in planned.stage.artifacts}
    assert kinds == FIELDS.keys() == set(typing.get_args(Artifact))
    stepped = {one.name for one in stages if "loss" in dict(one.stage.artifacts)}
    assert {curve.stage for curve in losses(every_stage.state)} == stepped == {"clip"}


@every_use
def test_a_docstring_leads_with_the_result_and_says_source_or_error(uses):
    text = stage_class(uses, "").__doc__
    first, *rest = text.strip().splitlines()
    assert re.match(r"[A-Z`]|[a-z_]+\.[a-z]+\b", first), "a sentence, or a file"
    assert len(first) <= 100
    assert not re.search(r"\b(Args|Returns|This class|A stage that)\b", text)
    assert any(re.match(r"\s+(Source|Error): \S", line) for line in rest)


@every_use
def test_settings_survive_pickling(uses, every_stage):
    stage = every_stage.stage_of(uses).stage
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_planning_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from pipeline.planning.settings import known_uses, stage_class\n"
        "for uses in known_uses():\n"
        "    stage_class(uses, '')\n"
        f"    heavy = sorted(set({HEAVY}) & sys.modules.keys())\n"
        "    if heavy: sys.exit(f'stages/{uses.replace(chr(46), chr(47))}.py imports {heavy}')\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def opened(every_stage, tmp_path):
    """The function of a row stage, and all rows it reads in the run."""

    def opened(uses):
        planned = every_stage.stage_of(uses)
        assert isinstance(planned.stage, RowStage)
        worker = worker_of(planned, seed=0, scratch=tmp_path)
        if planned.model:
            worker = dataclasses.replace(
                worker, model=every_stage.state.stored[planned.model].folder.uri
            )
        function = row_function(planned.stage, worker)
        return planned, function, every_stage.read(planned).combine_chunks()

    return opened


def in_batches(function, rows: pa.Table, sizes: list[int]) -> pa.Table:
    """The answers for batches of these sizes, again and again."""
    answers, start = [], 0
    while start < len(rows):
        size = sizes[len(answers) % len(sizes)]
        answers.append(function(rows.slice(start, size)))
        start += size
    return pa.concat_tables(answers).unify_dictionaries()


def same(one: pa.Table, other: pa.Table) -> bool:
    """Equal values, to the bit and for NaN too."""
    return one.column_names == other.column_names and repr(one.to_pylist()) == repr(
        other.to_pylist()
    )


@every_row_stage
def test_rows_come_back_in_their_number_and_declared_types(uses, opened):
    planned, function, rows = opened(uses)
    out = function(rows)
    assert len(out) == len(rows) > 100
    declared = {column.name: column.dtype for column in planned.stage.writes}
    types = dict(zip(out.column_names, out.schema.types, strict=True))
    assert types == declared | {REASON.name: REASON_TYPE}
    assert set(out[REASON.name].to_pylist()) <= {None, *planned.stage.reasons}


@every_row_stage
def test_values_are_those_that_the_run_stored(uses, opened, every_stage):
    planned, function, rows = opened(uses)
    stored = every_stage.written(planned)
    assert stored[UID.name].to_pylist() == rows[UID.name].to_pylist()
    assert same(function(rows).select(stored.column_names[1:]), stored.drop_columns([UID.name]))


@every_row_stage
@pytest.mark.parametrize(
    ("sizes", "rows"), [([1], 20), ([7, 1, 32, 2], 60)], ids=["one row", "ragged"]
)
def test_batch_boundaries_do_not_matter(uses, sizes, rows, opened, every_stage):
    planned, function, read = opened(uses)
    stored = every_stage.written(planned).drop_columns([UID.name]).slice(20, rows)
    answers = in_batches(function, read.slice(20, rows), sizes)
    assert same(answers.select(stored.column_names), stored)


@every_row_stage
def test_the_order_of_rows_does_not_matter(uses, opened, every_stage):
    planned, function, rows = opened(uses)
    stored = every_stage.written(planned).drop_columns([UID.name])
    backwards = pa.array(range(len(rows) - 1, -1, -1))
    answers = function(rows.take(backwards))
    assert same(answers.select(stored.column_names), stored.take(backwards))


@every_row_stage
def test_columns_in_chunks_are_read_the_same(uses, opened):
    _, function, rows = opened(uses)
    rows = rows.slice(30, 20)
    chunked = pa.concat_tables([rows.slice(0, 3), rows.slice(3, 0), rows.slice(3)])
    assert chunked[UID.name].num_chunks > 1
    assert same(function(chunked), function(rows))


@every_row_stage
def test_an_empty_batch_keeps_its_types(uses, opened):
    _, function, rows = opened(uses)
    assert function(rows.slice(0, 0)).schema.types == function(rows.slice(0, 5)).schema.types
    assert function(rows.schema.empty_table()).num_rows == 0


@every_row_stage
def test_nulls_give_nulls_with_a_declared_reason(uses, opened):
    planned, function, rows = opened(uses)
    rows = rows.slice(0, 4)
    given = {name: pa.nulls(len(rows), rows.schema.field(name).type) for name in rows.column_names}
    out = function(pa.table({**given, UID.name: rows[UID.name]}))
    for column in planned.stage.writes:
        assert out[column.name].null_count == len(rows), column.name
    assert set(out[REASON.name].to_pylist()) <= set(planned.stage.reasons)


@every_row_stage
def test_a_value_that_is_missing_has_a_reason(uses, every_stage):
    for row in every_stage.written(every_stage.stage_of(uses)).to_pylist():
        reason = row.pop(REASON.name)
        assert reason is not None or None not in row.values()


@every_row_stage
def test_inputs_are_left_as_they_were(uses, opened):
    _, function, rows = opened(uses)
    before = rows.to_pydict()
    function(rows)
    assert rows.to_pydict() == before


@pytest.fixture(scope="module")
def in_pieces(generated, links, tmp_path_factory):
    """The same run on source files in another order, cut into more and smaller shards."""
    return every_stage_.run(generated, tmp_path_factory.mktemp("pieces"), links, 3, 37)


@pytest.mark.chaos  # every stage runs again
@every_use
def test_shards_and_their_order_change_no_value(uses, every_stage, in_pieces):
    planned = every_stage.stage_of(uses)
    assert len(in_pieces.state.stages["both"].shards) > len(every_stage.state.stages["both"].shards)
    whole, pieces = (
        sorted(repr(unnumbered(row)) for row in run.values(planned))
        for run in (every_stage, in_pieces)
    )
    assert pieces == whole


def unnumbered(row: dict) -> dict:
    """An exported row without its number, which is in the order of the files; so in tars' JSON."""
    inside = {name: unnumbered(it) for name, it in row.items() if isinstance(it, dict)}
    return {name: it for name, it in (row | inside).items() if name != "sample_index"}
