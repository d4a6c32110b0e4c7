"""How a run stands, for whoever asks from any machine: as it tells, else by what lies there."""

from clipmill.metadata.storage import Storage
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.live import LiveRun, Phase, live_run, of_holder, read_live
from clipmill.pipeline.run_folder.state import latest


def status(uri: str) -> LiveRun:
    """The run that works there, in two requests; else what its folder holds, and why it stopped.

    A run that has begun and told nothing yet is `starting`. One whose holder is gone is `gone`.
    """
    run = Storage(uri)
    lease, said = lock.holder(run), read_live(run)
    if lease and said and of_holder(said, lease):
        return said
    phase: Phase = "starting" if lease else "complete"
    found = live_run(latest(uri), phase, said)
    whole = all(stage.status == "done" for stage in found.stages.values())
    if lease:
        found.host, found.pid = lease.host, lease.pid
        return found
    if said:
        found.began, found.updated, found.ended = said.began, said.updated, said.ended
        found.host, found.pid = said.host, said.pid
    if not whole:
        found.phase = _unfinished(said)
    return found


def _unfinished(said: LiveRun | None) -> Phase:
    """How the last run ended, of a folder where stages are not done."""
    if said is None:
        return "stopped"
    if not said.ended:
        return "gone"
    return "part" if said.phase == "complete" else said.phase
