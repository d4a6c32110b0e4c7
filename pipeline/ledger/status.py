"""How a run stands, for whoever asks from any machine: as it tells, else by what lies there."""

from metadata.storage import Storage
from pipeline.run_folder import lock
from pipeline.run_folder.live import LiveRun, Phase, live_run, of_holder, read_live
from pipeline.run_folder.state import latest


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
        found.phase = "stopped" if said is None else said.phase if said.ended else "gone"
        if found.phase == "complete":  # its files have changed since
            found.phase = "stopped"
    return found
