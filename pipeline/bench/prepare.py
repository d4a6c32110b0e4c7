"""Prepares a bench's folder: exports pictures once, writes the arms, and makes a recipe.

Nothing is trained here, and no picture is copied: arms read the exports in the runs' folders.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.metadata.record import MANIFEST, Manifest
from clipmill.metadata.sealed import read_sealed_as
from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench.arms import (
    FOLDER,
    ArmRows,
    ArmWriter,
    by_chance,
    random_name,
    subset_name,
)
from clipmill.pipeline.bench.pool import (
    Choice,
    Runs,
    are_of_one_pool,
    choices_of,
    ground_of,
    parents_of,
    raw_rows,
)
from clipmill.pipeline.bench.recipe import FILE, Data, arms_of, as_yaml, recipe_of, stages_of
from clipmill.pipeline.bench.spec import RAW, SCORES, TRUSTED, Arm, Bench
from clipmill.pipeline.errors import ClipmillError, RecipeError, StageError
from clipmill.pipeline.export import Exported, ExportRequest, export
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.claim import claim
from clipmill.pipeline.target import refuse_others

if TYPE_CHECKING:
    from clipmill.pipeline.executors import Executor
    from clipmill.pipeline.run_folder.live import Watcher

SPEC = "bench.json"
OURS = (SPEC, FILE, FOLDER, lock.NAME)  # the only files of a folder in which nothing has run


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A bench that can run: its recipe planned, its arms, and the rows of each."""

    bench: Bench
    plan: Plan
    arms: dict[str, Arm]
    rows: dict[str, ArmRows]  # by the rows' name
    parents: dict[str, str]  # by the rows' name, the arm from which as many are drawn by chance

    def rows_of(self, arm: str) -> ArmRows:
        return self.rows[self.arms[arm].rows]

    def chance_of(self, arm: str) -> str:
        """Returns the name of the arm with as many rows by chance."""
        rows = self.arms[arm].rows
        return random_name(self.rows[rows].rows, self.parents.get(rows, RAW))

    def what(self, arm: str) -> str:
        """Returns a description of the arm's rows."""
        rows = self.arms[arm].rows
        if rows in self.bench.rows:
            return str(self.bench.rows[rows])
        which = f" that '{self.bench.hold_out}' drops" if self.bench.hold_out else ""
        which = f" that '{self.bench.hold_in}' keeps" if self.bench.hold_in else which
        return f"every row{which}" if rows == RAW else by_chance(rows)


def prepared(bench: Bench, out: Storage, executor: "Executor", watcher: "Watcher") -> Prepared:
    """Writes missing files and plans the recipe; RecipeError if the arms cannot be compared."""
    is_bench = out.has(SPEC) or (out.has("run.json") and FOLDER in out.folders())
    if not is_bench:  # a run's folder that is no bench's either
        refuse_others(out, OURS, "give --out a new folder, or an empty one")
    path = str(Path(out.path, FILE)) if out.is_local else f"{out}/{FILE}"
    runs = Runs()
    choices = choices_of(bench, runs)
    first = next(iter(choices.values()))
    trusted: Choice | None = None  # of another pool, so with an export of its own
    if (source := bench.rows.get(TRUSTED)) and source.kind == "own":
        trusted = runs.choice(TRUSTED, source.run, source.stage)
        if are_of_one_pool(first, trusted):
            choices[TRUSTED], trusted = trusted, None
    ground = ground_of(bench, [*choices.values()]) if bench.hold_out or bench.hold_in else None
    trainings = _trainings(bench, path)
    raw = _exported(first, first.image[0], executor, watcher)  # holds every picture
    export_folder = Storage(raw.out)
    with lock.held(out) as owned:
        writer = ArmWriter(
            raw=raw_rows(first, export_folder, ground),
            raw_of=_digest(export_folder),
            export=runs.choice(RAW, bench.runs[0], raw.stage).planned,
            folder=owned,
            batches=_batches(bench, trainings),
            seed=first.state.plan.seed,
        )
        writer.write(bench, choices)
        written = writer.written  # grows with each arm that is added or written below
        data = {name: Data(raw.out, _file(out, name)) for name in written}
        if ground is None:
            data[RAW] = Data(raw.out, None)
        if trusted:
            trusted_export = _exported(trusted, bench.rows[TRUSTED].stage, executor, watcher)
            data[TRUSTED] = Data(trusted_export.out, None)
            count = trusted_export.exported
            made_of = _digest(Storage(trusted_export.out))
            writer.add(TRUSTED, ArmRows(made_of=made_of, rows=count, samples=count, lacking=0))
        parents = dict.fromkeys(written, RAW)
        for name, parent in parents_of(choices).items():
            if written[name].rows < written[parent].rows:
                parents[name] = parent
        writer.write_random(parents)
        random = [name for name in written if name not in data]
        data |= {name: Data(raw.out, _file(out, name)) for name in random}
        arms = arms_of(bench, random)
        sizes = {name: trainings.get(name, trainings[RAW]).pixels_size for name in arms}
        stages = stages_of(bench, arms, data, sizes)
        plan = make_plan(recipe_of(stages, path))
        claim(plan, owned)
        owned.put(FILE, as_yaml(stages, out).encode(), point="bench")
        owned.put(SPEC, json.dumps(asdict(bench), indent=1).encode(), point="bench")
    return Prepared(bench=bench, plan=plan, arms=arms, rows=written, parents=parents)


def _file(out: Storage, name: str) -> str:
    """Returns the path of an arm's subset file, as the recipe names it."""
    file = subset_name(name)
    return str(Path(out.path, file)) if out.is_local else f"{out.uri.rstrip('/')}/{file}"


def _trainings(bench: Bench, path: str) -> dict[str, Any]:
    """Returns trainings by arm, without random arms; RecipeError if one is not possible."""
    nowhere = Data("nowhere", None)
    arms = arms_of(bench, [])
    data = {name: nowhere for name in (RAW, *bench.rows)}
    stages = stages_of(bench, arms, data, dict.fromkeys(arms))
    try:
        plan = make_plan(recipe_of(stages, path))
        plan.stages[f"{RAW}{SCORES}"].stage.look()
    except ClipmillError as error:
        where = error.args[1].replace("key `tasks`:", "--tasks")
        where = where.replace(f"{path}, stage", "the arguments, arm")  # no such file yet
        raise RecipeError(error.args[0], where, error.args[2]) from None
    return {name: plan.stages[name].stage for name in arms}


def _batches(bench: Bench, trainings: Mapping[str, Any]) -> dict[str, int]:
    """Returns the largest batch size, by the rows' name."""
    batches: dict[str, int] = {}
    for name, arm in arms_of(bench, []).items():
        batches[arm.rows] = max(trainings[name].batch_size, batches.get(arm.rows, 0))
    return batches


def _exported(choice: Choice, stage: str, executor: "Executor", watcher: "Watcher") -> Exported:
    """Exports a stage's rows with their pictures to the run's own folder."""
    wanted = ExportRequest(to="parquet", stage=stage)
    try:
        return export(choice.state, wanted, None, executor, watcher)
    except StageError as error:
        if error.args[0].startswith("no row to export"):
            raise RecipeError(error.args[0], f"arm '{choice.arm}'", error.args[2]) from None
        raise


def _digest(export_stage: Storage) -> str:
    manifest = read_sealed_as(export_stage, MANIFEST, Manifest)
    assert manifest is not None  # the export is complete
    return manifest.digest
