"""Profiles a stage in its workers: files in the run folder that a standard viewer opens."""

import contextlib
from collections.abc import Iterator

from clipmill.metadata.storage import Storage
from clipmill.pipeline.planning.planned import PlannedStage

FOLDER = "profiles"
MOST = 3  # shards of each worker, or units: the first one imports
INTERVAL_S = 0.001  # between two samples


def profiled_first(
    run: Storage, planned: PlannedStage | None, work: str, done: int
) -> contextlib.AbstractContextManager[None]:
    """Profiles the body in this thread, for a worker's first MOST; `planned`: if it is wanted.

    Stores a Chrome trace of a stage with a GPU, else a file of speedscope, named by the work.
    """
    if planned is None or done >= MOST:
        return contextlib.nullcontext()
    profiled = _trace if profiler_of(planned) == "torch" else _samples
    return profiled(run, planned, work)


def profiler_of(planned: PlannedStage) -> str:
    """Returns the package that profiles the stage."""
    return "torch" if planned.stage.resources.gpus else "pyinstrument"


@contextlib.contextmanager
def _samples(run: Storage, planned: PlannedStage, work: str) -> Iterator[None]:
    from pyinstrument import Profiler
    from pyinstrument.renderers import SpeedscopeRenderer

    profiler = Profiler(interval=INTERVAL_S, async_mode="disabled")
    profiler.start()
    try:
        yield
    finally:
        profiler.stop()
        name = f"{FOLDER}/{planned.name}/{work}.speedscope.json"
        run.put(name, profiler.output(SpeedscopeRenderer()).encode(), point="live")


@contextlib.contextmanager
def _trace(run: Storage, planned: PlannedStage, work: str) -> Iterator[None]:
    from torch.profiler import profile, record_function

    name = f"{FOLDER}/{planned.name}/{work}.trace.json"
    with profile() as profiler, record_function(planned.name):  # of all that is there
        yield
    with run.scratch(name) as path:
        profiler.export_chrome_trace(str(path))
        run.commit(path, name, point="live")
