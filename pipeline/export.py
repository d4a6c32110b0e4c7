"""`clipmill export`: a finished stage's rows to a folder, by a stage added to the recipe."""

import dataclasses
from typing import TYPE_CHECKING

from metadata.outputs import Outputs
from metadata.places import is_places
from metadata.storage import Storage
from pipeline.engine.run import run_plan
from pipeline.errors import RecipeError, did_you_mean
from pipeline.planning.plan import make_plan
from pipeline.run_folder.state import RunState
from pipeline.target import refuse_others

if TYPE_CHECKING:
    from pipeline.engine.running import Watcher
    from pipeline.executors import Executor


def export(
    state: RunState, stage: str, to: str, path: str, executor: "Executor", watcher: "Watcher"
) -> list[str]:
    """The names of the files written to `path`; the export itself stays in the run folder."""
    if stage not in state.plan.stages:
        raise RecipeError(
            f"no stage '{stage}'",
            "--stage",
            did_you_mean(stage, state.plan.stages, "the recipe has"),
        )
    name = f"export_{stage}_{to}"
    stages = {**state.plan.recipe.stages, name: {"uses": f"export.{to}", "from": stage}}
    recipe = dataclasses.replace(state.plan.recipe, stages=stages)
    outcome = run_plan(make_plan(recipe, until=name), state.run, executor, watcher)
    made = outcome.state.stages[name]
    if not made.complete:
        error = next((error for error in outcome.stopped.values() if error), None)
        raise error or RecipeError(
            f"stage '{stage}' is not complete", str(state.run), "run the recipe to its end first"
        )
    target = Storage(path)
    outputs = Outputs(made.folder)
    files = [name for name in outputs.names if not is_places(name)]  # they are of the run's shards
    refuse_others(target, files, "export to an empty folder")  # a loader would read both
    for file in files:
        outputs.check(file)
        with target.scratch(file) as scratch:
            with made.folder.open(f"out/{file}") as source, scratch.open("wb") as sink:
                while block := source.read(8 << 20):
                    sink.write(block)
            target.commit(scratch, file)
    return files
