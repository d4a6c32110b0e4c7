"""Checks that a stage keeps the engine's contract: `clipmill stages --check kind.name`.

A law is a function that returns what is wrong, or None. Some laws check the class's declarations,
some a row stage's answers to made-up rows of the columns it reads; the last run the stage with
other shards, and kill it. tests/test_contract.py applies the same laws to all stages of clipmill,
on rows of real stages.
"""

import dataclasses
import inspect
import pickle
import re
import struct
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.passes import read_stage
from clipmill.metadata.record import Record
from clipmill.metadata.schema import (
    IMAGE,
    KEEP,
    REASON,
    REASON_TYPE,
    SHA256,
    TEXT,
    TEXT_EMBEDDING,
    UID,
    URL,
    Column,
    Derived,
)
from clipmill.metadata.storage import Storage
from clipmill.pipeline import check_rows, own_code
from clipmill.pipeline.engine.run import Outcome, run_plan
from clipmill.pipeline.engine.streaming import EventLoop, streamed
from clipmill.pipeline.engine.worker import worker_of
from clipmill.pipeline.errors import ClipmillError, ShardError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.described import described, example_of, sample
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.planning.planned import PlannedStage, decides
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.planning.settings import stage_class
from clipmill.pipeline.run_folder.live import Watcher
from clipmill.pipeline.stage import (
    Conditions,
    RowFunction,
    RowStage,
    Stage,
    StreamFunction,
    Worker,
    edges_taken,
    optional_columns,
)

ROOT = "check.rows"
HEAVY = ("torch", "faiss", "ray", "cv2", "transformers", "vllm")
ROWS, SHARD_ROWS = 80, 20  # made-up rows; rows of a shard
WIDTH = 16  # of a made-up vector
CLOSE = 1e-3  # tolerance for values that are `close`
GIVEN = {"rows", "data", "model", "centroids"}  # what stages can give
TAKEN = {*GIVEN, "start", "targets"}
CAPTIONS = ("a red star", "Zwei Kreise in Blau", "FREE 24/7!", "", "星", "one, two. 3", "a" * 300)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The result of one check; a `note` says what was not checked."""

    name: str
    verdict: Literal["good", "note", "bad"]
    found: str = ""
    where: str = ""
    do: str = ""


@dataclass(frozen=True)
class Law:
    """A check: its name, a function that returns what is wrong or None, where, what to do."""

    name: str
    wrong: Callable[[Any], str | None]
    where: str
    do: str


def check(uses: str) -> list[Checked]:
    """Runs every check of a stage; RecipeError if its file cannot be read."""
    before = set(sys.modules)
    cls = stage_class(uses, "clipmill stages --check")
    stage, file = sample(cls), inspect.getfile(cls)
    heavy = sorted({*HEAVY} & (set(sys.modules) - before))
    subject = Declared(uses, cls, stage, heavy)
    results = [_checked(law, subject, file) for law in DECLARED]
    others = [value for value in example_of(cls).values() if str(value).startswith("stage:")]
    if "rows" not in cls.takes or others:
        takes = " and ".join(others or edges_taken(stage)) or "nothing"
        note = f"it takes {takes}, and made-up rows are all there is: its work is not tried"
        return [*results, Checked(name="work", verdict="note", found=note)]
    try:
        stage.look()
    except ClipmillError as error:  # its example names something that is not here
        return [*results, Checked(name="work", verdict="note", found=f"not tried: {error.args[0]}")]
    with tempfile.TemporaryDirectory(prefix="check-") as scratch:
        return [*results, *_checks_of_work(subject, file, Path(scratch))]


def _checks_of_work(subject: "Declared", file: str, scratch: Path) -> Iterator[Checked]:
    """Runs the stage on made-up rows, and yields the checks of its answers and runs."""
    try:
        trial = Trial(subject.uses, subject.stage, scratch)
        if isinstance(subject.stage, RowStage):
            opened = trial.opened()
            for law in (*FUNCTIONS, *(ANSWERS if opened.is_repeated else ())):
                yield _checked(law, opened, file)
        if subject.cls.determinism == "recorded":
            note = "it is recorded: answers are compared with none"
            yield Checked(name="the same again", verdict="note", found=note)
        for law in RUNS:
            yield _checked(law, trial, file)
    except ClipmillError as error:
        found, where, do = error.args
        yield Checked(name="plan", verdict="bad", found=found, where=where, do=do)


def _checked(law: Law, subject: Any, file: str) -> Checked:
    try:
        wrong = law.wrong(subject)
    except ClipmillError as error:
        found, where, do = error.args
        return Checked(name=law.name, verdict="bad", found=found, where=where, do=do)
    except Exception as error:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
        ]
        where = f"{file}:{frames[-1].lineno}" if frames else f"{file}, {law.where}"
        found = f"{type(error).__name__}: {error}"
        return Checked(name=law.name, verdict="bad", found=found, where=where, do="mend it there")
    if wrong is None:
        return Checked(name=law.name, verdict="good")
    where = f"{file}, {law.where}"
    return Checked(name=law.name, verdict="bad", found=wrong, where=where, do=law.do)


# The class's declarations


@dataclass(frozen=True)
class Declared:
    """A stage's class, an instance with the settings of its example, and what its file imports."""

    uses: str
    cls: type[Stage]
    stage: Stage
    heavy: list[str] = field(default_factory=list)


def not_frozen(subject: Declared) -> str | None:
    fields = dataclasses.fields(subject.cls)  # type: ignore[arg-type]  # checked by the plan
    is_frozen = subject.cls.__dataclass_params__.frozen  # type: ignore[attr-defined]  # private
    if not is_frozen:
        return "it can be changed"
    return None if all(f.kw_only for f in fields) else "its settings have places, not only names"


def odd_declarations(subject: Declared) -> str | None:
    if not isinstance(subject.cls.version, int) or subject.cls.version < 1:
        return f"version is {subject.cls.version!r}"
    if "version" not in vars(subject.cls):
        return "it inherits its version"
    if wrong := ({*edges_taken(subject.cls)} - TAKEN) | ({*subject.cls.gives} - GIVEN):
        return f"takes or gives {', '.join(sorted(wrong))}"
    return None


def odd_docstring(subject: Declared) -> str | None:
    first, *rest = (subject.cls.__doc__ or "").strip().splitlines() or [""]
    if not re.match(r"[A-Z`]|[a-z_]+\.[a-z]+\b", first):
        return "it does not begin with a sentence"
    if len(first) > 100:
        return f"its first line has {len(first)} characters"
    if re.search(r"\b(Args|Returns|This class|A stage that)\b", subject.cls.__doc__ or ""):
        return "it says what the signature says"
    if not any(re.match(r"\s*(Source|Error): \S", line) for line in rest):
        return "it names no source and no error"
    return None


def undocumented_settings(subject: Declared) -> str | None:
    page = described(subject.uses)
    silent = [entry.name for entry in page.settings if not entry.meaning]
    silent += [entry["name"] for entry in page.writes if not entry["doc"]]
    return f"nothing says what {', '.join(silent)} means" if silent else None


def odd_columns(subject: Declared) -> str | None:
    reads = (*subject.stage.reads, *optional_columns(subject.stage))
    names = [column.name for column in subject.stage.writes if isinstance(column, Column)]
    if not all(isinstance(read, Column | str) for read in reads):
        return "it reads what is neither a Column nor a name"
    if len(names) != len(subject.stage.writes) or len({*names}) != len(names):
        return "it writes what is no Column, or a name twice"
    taken = {UID.name, REASON.name} & {*names}
    return f"it writes {', '.join(sorted(taken))}, which the engine adds" if taken else None


def odd_reasons(subject: Declared) -> str | None:
    reasons = subject.stage.reasons
    if len({*reasons}) != len(reasons):
        return "a reason stands twice"
    # Prefixes for a column without a value, or for a select that another combines.
    first = "((undefined|dropped_by|kept_by):)?" if decides(subject.stage) else ""
    odd = [code for code in reasons if not re.fullmatch(first + r"[a-z][a-z0-9_]{2,31}", code)]
    if odd and not isinstance(subject.stage, Conditions):  # its reasons are the recipe's
        return f"{odd[0]!r} is no short word"
    if not {*subject.stage.transient} <= {*subject.stage.advice} <= {*reasons}:
        return "a transient reason has no advice, or one that is advised on is no reason"
    return None


def unpicklable(subject: Declared) -> str | None:
    again = pickle.loads(pickle.dumps(subject.stage))
    return None if again == subject.stage else "its settings come back as others"


def slow_to_plan(subject: Declared) -> str | None:
    return f"its file imports {', '.join(subject.heavy)}" if subject.heavy else None


def blind_to_selects(subject: Declared) -> str | None:
    reads = (*optional_columns(subject.stage), *subject.stage.reads)
    named = [column if isinstance(column, str) else column.name for column in reads]
    reads_keep = any(column.rpartition(".")[2] == KEEP.name for column in named)
    if not decides(subject.stage) or reads_keep:
        return None
    return "it writes `keep` and reads none: it would keep what an earlier select dropped"


DECLARED = (
    Law("dataclass", not_frozen, "@dataclass", "write @dataclass(frozen=True, kw_only=True)"),
    Law("declarations", odd_declarations, "`version`, `takes`", "see pipeline/stage.py"),
    Law(
        "docstring",
        odd_docstring,
        "docstring",
        "lead with the result in a line of 100 characters; add a line `Source: …` or `Error: …`",
    ),
    Law(
        "settings say what they mean",
        undocumented_settings,
        "fields",
        "write a comment beside each",
    ),
    Law("columns", odd_columns, "`reads`, `writes`", "declare each Column once"),
    Law(
        "reasons",
        odd_reasons,
        "`reasons`",
        "name each once, in 3 to 32 small letters, digits and _; `transient` wants `advice`",
    ),
    Law("settings travel to workers", unpicklable, "fields", "keep plain values in settings"),
    Law("plans fast", slow_to_plan, "imports", "import it in `open`, or where it is used"),
    Law(
        "sees earlier selects",
        blind_to_selects,
        "`optional_reads`",
        "write `optional_reads = (KEEP,)`, and keep no row whose `keep` is false",
    ),
)


# A row stage's answers


class OneByOne:
    """A stream function wrapped as a batch function, with an event loop of its own."""

    def __init__(self, function: StreamFunction) -> None:
        self.function, self.events = function, EventLoop()
        weakref.finalize(self, self.events.close)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (answer,) = self.all([batch])
        return answer

    def all(self, batches: Iterable[pa.Table]) -> list[pa.Table]:
        """Returns the answers to the batches of one shard."""
        return list(streamed(self.function, iter(batches), self.events, "a check"))


def row_function(stage: RowStage, worker: Worker) -> RowFunction | OneByOne:
    """Opens a row stage as a function of one batch, whether it streams or not."""
    function: Any = stage.open(worker)
    return OneByOne(function) if stage.streams else function


@dataclass(kw_only=True)
class Opened:
    """A row stage and rows it can read; opened, and run on all rows, by the first law."""

    stage: RowStage
    worker: Worker
    rows: pa.Table  # in one chunk
    is_close: bool = False  # values may differ in their last bits

    @cached_property
    def function(self) -> Callable[[pa.Table], pa.Table]:
        return row_function(self.stage, self.worker)

    @cached_property
    def answer(self) -> pa.Table:
        """Returns the answer to all rows at once."""
        return self.function(self.rows)

    @property
    def expected(self) -> pa.Table:
        """Returns the answer that all others are compared with."""
        return self.answer

    @property
    def is_repeated(self) -> bool:
        """Returns whether equal rows get equal answers."""
        return self.stage.determinism != "recorded"

    def differing(self, answer: pa.Table, start: int = 0) -> str | None:
        """Returns how an answer to rows from `start` differs from `expected`; NaN equals NaN."""
        names = [name for name in self.expected.column_names if name != UID.name]
        if {*answer.column_names} != {*names}:
            return f"columns {', '.join(answer.column_names)} came back"
        expected = self.expected.select(names).slice(start, len(answer))
        if len(answer) != len(expected):
            return f"{len(answer)} rows came back for {len(expected)}"
        pairs = zip(answer.to_pylist(), expected.to_pylist(), strict=True)
        for number, pair in enumerate(pairs, start):
            if wrong := other_value(*pair, f"row {number}", self.is_close):
                return wrong
        return None


def other_value(
    row: Mapping[str, Any], expected: Mapping[str, Any], which: str, is_close: bool
) -> str | None:
    """Returns the first value that is not as expected, or None; `is_close` allows last bits."""
    for name, other in expected.items():
        value = row[name]
        if repr(value) != repr(other) and not (is_close and _is_close(value, other)):
            return f"{name} of {which} is {value!r}, and was {other!r}"
    return None


def _is_close(value: Any, other: Any) -> bool:
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_is_close, value, other))
    are_numbers = isinstance(value, int | float) and isinstance(other, int | float)
    is_near = are_numbers and abs(value - other) <= CLOSE * (1 + abs(other))
    return is_near or repr(value) == repr(other)  # NaN, null, text


def other_types(opened: Opened) -> str | None:
    if len(opened.answer) != len(opened.rows):
        return f"{len(opened.answer)} rows came back for {len(opened.rows)}"
    declared = {column.name: column.dtype for column in opened.stage.writes}
    declared |= {REASON.name: REASON_TYPE}
    types = {field.name: field.type for field in opened.answer.schema}
    odd = [name for name in {**declared, **types} if types.get(name) != declared.get(name)]
    if odd:
        name = min(odd)
        had, want = types.get(name, "not there"), declared.get(name, "not declared")
        return f"column '{name}' is {had}, and declared it is {want}"
    strange = {*opened.answer[REASON.name].to_pylist()} - {None, *opened.stage.reasons}
    return f"reason {min(strange)!r} is not declared" if strange else None


def batch_matters(opened: Opened) -> str | None:
    start = 20
    for size in (1, 1, 7, 1, 3):
        if wrong := opened.differing(opened.function(opened.rows.slice(start, size)), start):
            return wrong
        start += size
    return None


def order_matters(opened: Opened) -> str | None:
    answer = opened.function(opened.rows.take(pa.array(range(59, 29, -1))))
    return opened.differing(answer.take(pa.array(range(len(answer) - 1, -1, -1))), 30)


def chunks_matter(opened: Opened) -> str | None:
    rows = opened.rows.slice(25, 20)
    chunked = pa.concat_tables([rows.slice(0, 3), rows.slice(3, 0), rows.slice(3)])
    return opened.differing(opened.function(chunked), 25)


def fails_on_empty(opened: Opened) -> str | None:
    empty = opened.function(opened.rows.slice(0, 0))
    without_dictionaries = opened.function(opened.rows.schema.empty_table())
    if len(empty) or len(without_dictionaries):
        return "rows came back for none"
    types, known = (
        {field.name: field.type for field in answer.schema} for answer in (empty, opened.answer)
    )
    return None if types == known else f"no rows give {types}"


def invents_values(opened: Opened) -> str | None:
    rows = opened.rows.slice(0, 4)
    nulls = {name: pa.nulls(len(rows), rows[name].type) for name in rows.column_names}
    out = opened.function(pa.table(nulls | {UID.name: rows[UID.name]}))
    strange = {*out[REASON.name].to_pylist()} - {*opened.stage.reasons}
    if strange:
        return f"a row without any value has the reason {next(iter(strange))!r}"
    writes = [column.name for column in opened.stage.writes]
    invented = [name for name in writes if out[name].null_count < len(rows)]
    return f"column '{invented[0]}' has a value for a row without any" if invented else None


def gives_no_reason(opened: Opened) -> str | None:
    for number, row in enumerate(opened.expected.to_pylist()):
        if row.pop(REASON.name) is None and None in row.values():
            return f"row {number} has a null, and no reason"
    return None


def changes_inputs(opened: Opened) -> str | None:
    rows = opened.rows.slice(40, 20).combine_chunks()
    before = rows.to_pydict()
    opened.function(rows)
    return None if rows.to_pydict() == before else "the rows that it was given have changed"


def reopening_matters(opened: Opened) -> str | None:
    return opened.differing(row_function(opened.stage, opened.worker)(opened.rows))


FUNCTIONS = (
    Law(
        "rows and types", other_types, "`open`", "give back each row, the columns declared, reason"
    ),
    Law("no rows", fails_on_empty, "`open`", "give the types of `writes` for an empty batch, too"),
    Law("nulls", invents_values, "`open`", "give null and a reason of `reasons` for such a row"),
    Law("a reason for each null", gives_no_reason, "`open`", "name why in `reason`"),
    Law("inputs stay", changes_inputs, "`open`", "copy what you change"),
)
ANSWERS = (
    Law("batches", batch_matters, "`open`", "answer for each row alone, wherever a batch is cut"),
    Law("order", order_matters, "`open`", "answer for each row alone, whatever stands before it"),
    Law("chunks", chunks_matter, "`open`", "read a column of several chunks: combine_chunks()"),
    Law("the same again", reopening_matters, "`determinism`", "take chance from a hash of uids"),
)


# What a run stores


class EndedError(BaseException):
    """Stands for the kill of a process, inside this process."""


class Ending(Watcher):
    """Ends the run after the stage's first stored shard or unit of a call."""

    def __init__(self, name: str) -> None:
        self.name, self.has_ended = name, False

    def shard(self, name: str, record: Record, total: int | None) -> None:
        self._end(name)

    def unit(self, name: str, call: str, done: int, total: int) -> None:
        self._end(name)

    def _end(self, name: str) -> None:
        if name == self.name and not self.has_ended:
            self.has_ended = True
            raise EndedError


Stored = dict[bytes, dict[str, Any]]  # uid to columns and reason


class Trial:
    """A stage in a recipe over made-up rows of the columns it reads."""

    def __init__(self, uses: str, stage: Stage, scratch: Path) -> None:
        self.stage, self.scratch = stage, scratch
        folder = scratch / "stages" / "check"
        folder.mkdir(parents=True)
        (folder / "rows.py").write_bytes(Path(check_rows.__file__).read_bytes())
        own_code.add(scratch / "stages")
        self.reads = [*stage.reads, *optional_columns(stage)]
        pq.write_table(made_up(self.reads), scratch / "rows.parquet")
        names = [column if isinstance(column, str) else column.name for column in self.reads]
        bound = {column: f"pool.{column.rpartition('.')[2]}" for column in names if "." in column}
        settings = {"from": "pool", **({"read": bound} if bound else {})}
        self.keys = {"uses": uses, **settings, **example_of(type(stage))}

    def planned(self, backwards: bool = False, shard_rows: int = SHARD_ROWS) -> Plan:
        path = self.scratch / "rows.parquet"
        if backwards:
            rows, path = pq.read_table(path), self.scratch / "backwards.parquet"
            pq.write_table(rows.take(pa.array(range(len(rows) - 1, -1, -1))), path)
        pool = {"uses": ROOT, "path": str(path), "shard_rows": shard_rows}
        stages = {"pool": pool, "checked": self.keys}
        return make_plan(Recipe(name="check", path="the check", seed=0, stages=stages))

    def opened(self) -> Opened:
        planned: PlannedStage = self.planned().stages["checked"]
        assert isinstance(planned.stage, RowStage)
        pool = pq.read_table(self.scratch / "rows.parquet")
        columns = {UID.name: pool[UID.name]}
        for name, (_, source) in planned.bindings[0].items():
            derived = planned.derived.get(name)
            columns[name] = derived.derive(pool[source]) if derived else pool[source]
        return Opened(
            stage=planned.stage,
            worker=worker_of(planned, seed=0, scratch=self.scratch),
            rows=pa.table(columns).combine_chunks(),
            is_close=planned.stage.determinism == "close",
        )

    def stored(self, plan: Plan, name: str, ending: bool = False) -> Stored:
        """Returns what a run stores, by uid; with `ending`, a run that was ended and resumed."""
        run = Storage(str(self.scratch / name))
        if ending:
            with suppress(EndedError):
                _run(plan, run, Ending("checked"))
        outcome = _run(plan, run, Watcher())
        if error := next(filter(None, outcome.stopped.values()), None):
            raise error
        state = outcome.state.stages["checked"]
        if failure := next(filter(None, state.failures.values()), None):
            raise ShardError(failure.found, failure.where, failure.do)
        names = [UID.name, *(column.name for column in self.stage.writes), REASON.name]
        tables = (
            table
            for shard in sorted(state.shards)
            for table in read_stage(state.folder, state.shards[shard], names, ROWS)
        )
        return {row.pop(UID.name): row for table in tables for row in table.to_pylist()}

    @cached_property
    def whole(self) -> Stored:
        return self.stored(self.planned(), "whole")

    def differing(self, stored: Stored) -> str | None:
        if stored.keys() != self.whole.keys():
            return f"{len(stored)} rows are stored, and {len(self.whole)} were"
        if self.stage.determinism == "recorded":
            return None
        is_close = self.stage.determinism == "close"
        for uid, row in stored.items():
            if wrong := other_value(row, self.whole[uid], f"row {uid.hex()[:8]}", is_close):
                return wrong
        return None


def _run(plan: Plan, run: Storage, watcher: Watcher) -> Outcome:
    executor = LocalExecutor(0)
    try:
        return run_plan(plan, run, executor, watcher)
    finally:
        executor.close()


def sharding_matters(trial: Trial) -> str | None:
    return trial.differing(trial.stored(trial.planned(True, SHARD_ROWS // 2 + 1), "pieces"))


def kill_matters(trial: Trial) -> str | None:
    return trial.differing(trial.stored(trial.planned(), "killed", ending=True))


RUNS = (
    Law(
        "shards and their order",
        sharding_matters,
        "`run`, `open`",
        "break ties by uid; let no value depend on where a row stands",
    ),
    Law(
        "a kill",
        kill_matters,
        "`run`, `open`",
        "work through the calls of ctx alone: what is kept elsewhere is lost with the process",
    ),
)


# Made-up rows


def made_up(reads: Iterable[Column | str]) -> pa.Table:
    """Makes rows by the columns' types, some values null; the same rows each time."""
    rng = np.random.default_rng(0)
    columns = {UID.name: pa.array([rng.bytes(16) for _ in range(ROWS)], UID.dtype)}
    for read in reads:
        column = (
            Column(read.rpartition(".")[2], pa.float32(), "", "") if isinstance(read, str) else read
        )
        column = column.source if isinstance(column, Derived) else column
        values = [_value(column.name, column.dtype, rng, number) for number in range(ROWS)]
        if column.name != KEEP.name:
            values = [None if number % 9 == 4 else value for number, value in enumerate(values)]
        dtype = stored_type(column.dtype)
        try:
            columns[column.name] = pa.array(values, dtype)
        except (pa.ArrowInvalid, TypeError):  # a type without made-up values
            columns[column.name] = pa.nulls(ROWS, dtype)
    return pa.table(columns)


def _value(name: str, dtype: pa.DataType, rng: np.random.Generator, number: int) -> Any:
    """Makes a value by a column's name, if known, else by its type."""
    known: dict[str, Callable[[], Any]] = {
        TEXT.name: lambda: CAPTIONS[number % len(CAPTIONS)],
        URL.name: lambda: f"http://host{number % 5}.example/{number}.bmp",
        IMAGE.name: lambda: _bitmap(rng),
        SHA256.name: lambda: rng.bytes(32).hex(),
        KEEP.name: lambda: number % 3 > 0,
    }
    if name in known:
        return known[name]()
    if pa.types.is_struct(dtype):
        return {field.name: _value(field.name, field.type, rng, number) for field in dtype}
    if pa.types.is_list(dtype) and pa.types.is_floating(dtype.value_type):
        if name == TEXT_EMBEDDING.name:  # equal captions have equal vectors
            rng = np.random.default_rng(number % len(CAPTIONS))
        vector = rng.standard_normal(WIDTH)
        return (vector / np.linalg.norm(vector)).tolist()
    if pa.types.is_fixed_size_list(dtype):
        return [_value("", dtype.value_type, rng, number) for _ in range(dtype.list_size)]
    if pa.types.is_list(dtype):
        return [_value("", dtype.value_type, rng, number) for _ in range(number % 4)]
    if pa.types.is_boolean(dtype):
        return bool(rng.integers(2))
    if pa.types.is_integer(dtype):
        return int(rng.integers(9))
    if pa.types.is_floating(dtype):
        return float(np.float32(rng.random()))
    if pa.types.is_fixed_size_binary(dtype):
        return rng.bytes(dtype.byte_width)
    if pa.types.is_binary(dtype):
        return rng.bytes(9)
    return f"word {rng.integers(9)}"


def _bitmap(rng: np.random.Generator) -> bytes:
    """Makes a picture of one colour: the bytes of a 24-bit BMP file."""
    height, width = (int(length) for length in rng.integers(8, 40, 2))
    row = (rng.bytes(3) * width).ljust((width * 3 + 3) // 4 * 4, b"\0")
    head = struct.pack("<2sIII", b"BM", 54 + len(row) * height, 0, 54)
    head += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)
    return head + row * height


def stored_type(dtype: pa.DataType) -> pa.DataType:
    """Returns the type that a stage writes for a column: vectors get a width."""
    is_vector = pa.types.is_list(dtype) and pa.types.is_floating(dtype.value_type)
    return pa.list_(dtype.value_type, WIDTH) if is_vector else dtype
