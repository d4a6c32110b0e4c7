"""From a bench as asked for to a folder that runs: pictures exported once, arms written, a recipe.

Nothing is trained here, and no picture is copied: what the arms read lies in the runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.metadata.record import MANIFEST, Manifest
from clipmill.metadata.sealed import read_sealed_as
from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench.arms import Made, Maker, subset_name
from clipmill.pipeline.bench.pool import Choice, Runs, are_of_one_pool, choices_of, raw_of, raw_rows
from clipmill.pipeline.bench.recipe import FILE, Data, arms_of, as_yaml, recipe_of, stages_of
from clipmill.pipeline.bench.spec import RAW, SCORES, TRUSTED, Arm, Bench, as_json
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
OURS = (SPEC, FILE, "arms", lock.NAME)  # in a folder in which nothing has run


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A bench that can run: its recipe planned, its arms, and the rows of each."""

    bench: Bench
    plan: Plan
    arms: dict[str, Arm]
    rows: dict[str, Made]  # by name of the rows

    def made(self, arm: str) -> Made:
        return self.rows[self.arms[arm].rows]

    def what(self, arm: str) -> str:
        """What the arm's rows are, in words."""
        rows = self.arms[arm].rows
        if rows in self.bench.rows:
            return str(self.bench.rows[rows])
        return "every row" if rows == RAW else "as many rows by chance"


def prepared(bench: Bench, out: Storage, executor: "Executor", watcher: "Watcher") -> Prepared:
    """Makes what is missing; RecipeError where the arms cannot be compared."""
    if not out.has("run.json"):
        refuse_others(out, OURS, "give --out a new folder, or an empty one")
    path = str(Path(out.path, FILE)) if out.is_local else f"{out}/{FILE}"
    runs = Runs()
    choices = choices_of(bench, runs)
    first = next(iter(choices.values()))
    apart = _own(bench, runs, first)
    if TRUSTED in bench.rows and apart is None:
        source = bench.rows[TRUSTED]
        choices[TRUSTED] = runs.choice(TRUSTED, source.run, source.stage)
    trainings = _trainings(bench, path)
    raw = _exported(first, raw_of(first), executor, watcher)
    shown = Storage(raw.out)
    with lock.held(out) as owned:
        maker = Maker(
            raw=raw_rows(first, shown),
            raw_of=_digest(shown),
            export=runs.choice(RAW, bench.runs[0], raw.stage).planned,
            folder=owned,
            batches=_batches(bench, trainings),
            seed=first.state.plan.seed,
        )
        made = maker.make(bench, choices)
        data = {name: Data(raw.out, str(_file(out, name))) for name in made}
        data[RAW] = Data(raw.out, None)
        if apart:
            theirs = _exported(apart, bench.rows[TRUSTED].stage, executor, watcher)
            data[TRUSTED] = Data(theirs.out, None)
            count = theirs.exported
            made_of = _digest(Storage(theirs.out))
            maker.add(TRUSTED, Made(made_of=made_of, rows=count, samples=count, lacking=0))
        maker.make_random([one.rows for one in made.values()])
        random = [name for name in made if name not in data]
        data |= {name: Data(raw.out, str(_file(out, name))) for name in random}
        arms = arms_of(bench, random)
        sizes = {name: trainings.get(name, trainings[RAW]).pixels_size for name in arms}
        stages = stages_of(bench, arms, data, sizes)
        plan = make_plan(recipe_of(stages, path))
        claim(plan, owned)
        owned.put(FILE, as_yaml(stages, out).encode(), point="bench")
        owned.put(SPEC, json.dumps(as_json(bench), indent=1).encode(), point="bench")
    return Prepared(bench=bench, plan=plan, arms=arms, rows=made)


def _file(out: Storage, name: str) -> str:
    """A file of the bench as a recipe names it."""
    file = subset_name(name)
    return str(Path(out.path, file)) if out.is_local else f"{out.uri.rstrip('/')}/{file}"


def _own(bench: Bench, runs: Runs, first: Choice) -> Choice | None:
    """The trusted rows, where they are of another pool: so they have an export of their own."""
    source = bench.rows.get(TRUSTED)
    if source is None or source.kind != "own":
        return None
    choice = runs.choice(TRUSTED, source.run, source.stage)
    return None if are_of_one_pool(first, choice) else choice


def _trainings(bench: Bench, path: str) -> dict[str, Any]:
    """By arm its training, but for chance, which trains as raw; RecipeError where one cannot be."""
    nowhere = Data("nowhere", None)
    arms = arms_of(bench, [])
    data = {name: nowhere for name in (RAW, *bench.rows)}
    stages = stages_of(bench, arms, data, dict.fromkeys(arms))
    plan = make_plan(recipe_of(stages, path))
    try:
        plan.stages[f"{RAW}{SCORES}"].stage.look()
    except ClipmillError as error:
        where = error.args[1].replace("key `tasks`:", "--tasks")
        raise RecipeError(error.args[0], where, error.args[2]) from None
    return {name: plan.stages[name].stage for name in arms}


def _batches(bench: Bench, trainings: Mapping[str, Any]) -> dict[str, int]:
    """The largest batch in which rows are trained on."""
    batches: dict[str, int] = {}
    for name, arm in arms_of(bench, []).items():
        batches[arm.rows] = max(trainings[name].batch_size, batches.get(arm.rows, 0))
    return batches


def _exported(choice: Choice, stage: str, executor: "Executor", watcher: "Watcher") -> Exported:
    """The rows of a stage with their pictures, in the run's own folder."""
    wanted = ExportRequest(to="parquet", stage=stage)
    try:
        return export(choice.state, wanted, None, executor, watcher)
    except StageError as error:
        if error.args[0].startswith("no row to export"):
            raise RecipeError(error.args[0], f"arm '{choice.arm}'", error.args[2]) from None
        raise


def _digest(export_stage: Storage) -> str:
    manifest = read_sealed_as(export_stage, MANIFEST, Manifest)
    assert manifest is not None  # it has just been made, or found done
    return manifest.digest
