"""A worker process of this machine: how it is started and ended."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.spawn import get_preparation_data

from clipmill.pipeline import own_code
from clipmill.pipeline.executors import Item, machine
from clipmill.pipeline.executors.streams import Stream
from clipmill.pipeline.stage import Resources

LEAVE_S = 0.2  # what idle workers have to leave by themselves
GONE = (EOFError, OSError)  # what a pipe says of a process that died, or died in mid-answer
# A path and a main module like ours, as multiprocessing gives them; its own `Process` would put our
# environment, which is every thread's, in the place of the worker's.
BOOT = """
import pickle, sys
from multiprocessing.connection import Connection
from multiprocessing.spawn import prepare
pipe, driver = Connection(int(sys.argv[1])), int(sys.argv[2])
try:
    prepare(pickle.loads(pipe.recv_bytes()))
except EOFError:
    sys.exit()
from clipmill.pipeline.executors.worker import serve
serve(pipe, driver)
"""


@dataclass(eq=False)
class LocalWorker:
    """A process with a pipe of its own, and the item it holds."""

    process: "subprocess.Popen[bytes]"
    pipe: Connection
    resources: Resources
    cpus: float  # while it is busy
    gpus: tuple[str, ...]
    born_s: float = field(default_factory=time.monotonic)
    ready: bool = False
    started: list[str] = field(default_factory=list)  # ids of the steps whose function it holds
    job: tuple[Stream, int, Item] | None = None  # step number and item in hand
    ended: str = ""  # why we ended it, where we did


def start_worker(
    resources: Resources, cpus: float, gpus: tuple[str, ...], with_main: bool
) -> LocalWorker:
    """A new process, with its own GPUs and as many threads as CPUs; it ends with this thread."""
    # Ctrl-C is the driver's to answer: a worker is born deaf to it, as this thread is.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    ours, theirs = multiprocessing.Pipe()
    own = {**machine.thread_limits(resources.cpus), "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", BOOT, str(theirs.fileno()), str(os.getpid())],
        env={**os.environ, **own},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    parents = get_preparation_data("worker")
    parents.pop("authkey")  # of multiprocessing's servers, which there are none of
    if not with_main:
        parents["sys_path"] = machine.import_path()
        parents.pop("init_main_from_path", None)
        parents.pop("init_main_from_name", None)
    with contextlib.suppress(*GONE):  # seen when we wait
        ours.send_bytes(pickle.dumps(parents))
        ours.send_bytes(pickle.dumps(own_code.own()))
    return LocalWorker(process, ours, resources, cpus, gpus)


def end_workers(workers: Sequence[LocalWorker]) -> None:
    """Ends them all, side by side: busy ones at once, idle ones may leave by themselves."""
    for worker in workers:
        if worker.job is not None:
            worker.process.kill()
        worker.pipe.close()
    limit = time.monotonic() + LEAVE_S
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.0, limit - time.monotonic()))
        worker.process.kill()
        worker.process.wait()
