"""`clipmill evaluate`: evaluates a model on a folder of tasks, without a recipe."""

import argparse
import shlex
import tempfile
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from clipmill.metadata.keys import without_keys
from clipmill.pipeline.errors import RecipeError, StageError, did_you_mean
from clipmill.pipeline.terminal import aligned
from clipmill.pipeline.verbs import run as runs
from clipmill.pipeline.verbs._options import add_executor, add_json, add_stages, answered, executor

HELP = "what a model can do on a folder of tasks, without a recipe"
EXAMPLES = """\
clipmill evaluate stage:curated_models --run run --tasks pool/eval
clipmill evaluate checkpoint:s3://bucket/model --tasks eval --out scores
clipmill evaluate open_clip:ViT-B-32@weights.pt --tasks eval --json
"""
STAGE = "scores"  # name in the recipe that it runs
SCHEME = "stage:"


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="stage:NAME with --run, checkpoint:URI, or a model as a recipe names it:"
        " `open_clip:ViT-B-32/openai`",
    )
    parser.add_argument(
        "--tasks", required=True, metavar="DIR", help="folder of tasks, each a subfolder"
    )
    parser.add_argument("--run", metavar="URI", help="run folder of `stage:NAME`")
    parser.add_argument(
        "--out",
        metavar="URI",
        help="keep results, and ranks of right answers, there; go on from them (default: nowhere)",
    )
    add_stages(parser)
    add_json(parser)
    add_executor(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluates all seeds of a model; prints a table, or results.json."""
    from clipmill.metadata.storage import Storage
    from clipmill.pipeline.engine.run import run_plan
    from clipmill.pipeline.ledger.rows.stored import json_artifacts
    from clipmill.pipeline.planning.looks import look, refuse_missing
    from clipmill.pipeline.planning.plan import make_plan
    from clipmill.pipeline.planning.recipe import Recipe
    from clipmill.pipeline.progress import watcher
    from clipmill.pipeline.run_folder.sessions import session

    model = found_model(options.model, options.run)
    setting = {"uses": "evaluate.zero_shot", "model": model, "tasks": options.tasks}
    plan = make_plan(Recipe("evaluate", "clipmill evaluate", 0, {STAGE: setting}))
    place: AbstractContextManager[str] = nullcontext(options.out)
    if options.out is None:
        place = tempfile.TemporaryDirectory(prefix="clipmill-evaluate-")
    with place as out, executor(options) as workers:
        folder = Storage(out)
        refuse_missing(plan, look(plan, folder))
        with watcher() as watch, session(folder, plan.recipe.name):
            outcome = run_plan(plan, folder, workers, watch)
        if not outcome.complete:
            do = "mend the cause and run again"
            raise outcome.stopped.get(STAGE) or StageError(runs.text(outcome), "the evaluation", do)
        (results,) = json_artifacts(outcome.state.stages[STAGE], "results")
        stored_at = str(outcome.state.stages[STAGE].folder) + "/out" if options.out else ""
    return answered(
        results,
        options,
        lambda results: text(results, options.model, options.tasks, stored_at),
    )


def found_model(name: str, run: str | None) -> str:
    """Returns the model as recipes name it: `stage:NAME` becomes that stage's checkpoint."""
    if not name.startswith(SCHEME):
        if run is not None:
            do = "write stage:NAME, or leave --run away: other models need no run"
            raise RecipeError("--run without a model of a stage", "the arguments", do)
        return name
    if run is None:
        raise RecipeError(f"'{name}' without its run", "the arguments", "add --run RUN")
    from clipmill.pipeline.run_folder.state import latest

    state, stage = latest(run), name.removeprefix(SCHEME)
    trained = [
        other for other, planned in state.plan.stages.items() if "model" in planned.stage.gives
    ]
    if stage not in trained:
        what = "trains no model" if stage in state.plan.stages else "is no stage"
        do = did_you_mean(stage, trained, "its stages that train are") if trained else "train one"
        raise RecipeError(f"'{stage}' {what}", f"{name} of --run {run}", do)
    if not state.stages[stage].complete:
        do = f"finish it: clipmill status --run {shlex.quote(run)} says how far it is"
        raise StageError(f"'{stage}' is not complete", f"{name} of --run {run}", do)
    return f"checkpoint:{state.stages[stage].folder.uri}"


def text(results: dict[str, Any], model: str, tasks: str, stored_at: str) -> str:
    """Returns a table for each model: main metrics in percent, with intervals and chance."""
    from clipmill.pipeline.ledger.proof.trials import share_of

    lines = []
    for result in results["models"]:
        which = f", seed {result['seed']}" if len(results["models"]) > 1 else ""
        share = share_of(result)
        which += f", at {100 * share:.0f} % of its samples" if share < 1 else ""
        lines.append(f"{without_keys(model)}{which} (rules: {result['rules']})")
        lines += [*_table(result), ""]
    if any(line.endswith("*") for line in lines):
        lines.append("* no better than guessing, as far as these pictures tell")
    averages = [
        average
        for result in results["models"][:1]
        for name, average in result["averages"].items()
        if not name.startswith("language_")
    ]
    if not averages:
        lines.append("none of DataComp's 38 tasks is here whole, so there is no average over them")
    elif missing := averages[0]["missing"]:
        lines.append(f"{len(missing)} of DataComp's 38 tasks are missing: {', '.join(missing)}")
    if not averages or averages[0]["missing"]:
        lines.append(f"clipmill doctor tasks {shlex.quote(tasks)} says how to bring each")
    if stored_at:
        lines.append(f"all metrics: {stored_at}/results.json; ranks beside it")
    return "\n".join(lines)


def _table(result: dict[str, Any]) -> list[str]:
    heads = ("task", "metric", "of", "value", "95 % interval", "guessing")
    rows: list[tuple[str, ...]] = [heads]
    for name, task in result["tasks"].items():
        main = task["metrics"][task["metric"]]
        count = f"{task['instances'] or task['pictures']:,}"
        rows.append((name, task["metric"], count, *_figures(main)))
    for name, average in result["averages"].items():
        rows.append((name, "", f"{average['tasks']} tasks", *_figures(average)))
    return aligned(rows, {2, 3, 4})


def _figures(metric: dict[str, Any] | None) -> tuple[str, str, str]:
    if metric is None:
        return "none", "", ""
    low, high = 100 * metric["low"], 100 * metric["high"]
    mark = "" if metric["low"] > metric["chance"] else " *"
    return (
        f"{100 * metric['value']:.1f}",
        f"{low:.1f} to {high:.1f}",
        f"{100 * metric['chance']:.1f}{mark}",
    )
