"""Runs or resumes a recipe from Python."""

from collections.abc import Sequence

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import Outcome, run_plan
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.executors import Executor
from clipmill.pipeline.planning.looks import look, refuse_missing
from clipmill.pipeline.planning.plan import Plan, check_retry
from clipmill.pipeline.progress import watcher
from clipmill.pipeline.run_folder.sessions import session
from clipmill.pipeline.run_folder.state import RunState


def checked(plan: Plan, folder: Storage | None = None) -> Plan:
    """Returns the plan; RecipeError if files it names are missing, and no run has them."""
    refuse_missing(plan, look(plan, folder))
    return plan


def started(
    plan: Plan,
    out: str,
    workers: int | None = None,
    executor: str = "local",
    address: str | None = None,
    retry: Sequence[str] = (),
    keep_going: bool = False,
) -> RunState:
    """Runs a plan to its end; StageError, caused by the first stage that stopped, if it cannot."""
    check_retry(plan, retry)
    folder = Storage(out)
    chosen = executor_of(executor, workers, address)
    try:
        checked(plan, folder)
        with watcher() as watch, session(folder, plan.recipe.name) as spent:
            outcome = run_plan(plan, folder, chosen, watch, tuple(retry), keep_going)
            spent.update(outcome.spent)
    finally:
        chosen.close()
    if not outcome.complete:
        raise _stopped(outcome) from next(filter(None, outcome.stopped.values()), None)
    return outcome.state


def executor_of(name: str, workers: int | None, address: str | None = None) -> Executor:
    """Returns an executor by the arguments of `clipmill run`; RecipeError if they are wrong."""
    if workers is not None and workers < 0:
        raise RecipeError(f"workers={workers}", "the arguments", "give 0 or more")
    if name == "ray":
        from clipmill.pipeline.executors.ray import RayExecutor

        return RayExecutor(address=address, workers=workers)
    if name != "local" or address:
        found = f"executor={name!r}" + (f", address={address!r}" if address else "")
        do = "write executor='local', or executor='ray', which takes an address"
        raise RecipeError(found, "the arguments", do)
    from clipmill.pipeline.executors.local import LocalExecutor

    return LocalExecutor(workers, with_main=False)  # workers must not run the caller's script


def _stopped(outcome: Outcome) -> StageError:
    stages = outcome.state.stages
    left = [name for name, stage in stages.items() if not stage.complete]
    found = f"not complete: {', '.join(left)}"
    failed = [
        f"'{name}': {failure.found}"
        for name, stage in stages.items()
        for failure in list(filter(None, stage.failures.values()))[:1]
    ]
    if failed:
        found += f"; of the first shard that failed, {failed[0]}"
    do = "mend the cause and run again: finished shards are kept; clipmill.open has what is there"
    return StageError(found, str(outcome.state.run), do)
