"""Starts and ends worker processes on this machine."""

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

LEAVE_S = 0.2  # for idle workers to exit by themselves
GONE = (EOFError, OSError)  # raised by the pipe of a process that died, even in mid-answer
# Gives a worker our sys.path and main module, as multiprocessing does. Its `Process` is not used,
# as it takes os.environ, which all threads share, and not an environment of the worker's own.
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
    """A worker process with its pipe and current job."""

    process: "subprocess.Popen[bytes]"
    pipe: Connection
    resources: Resources
    cpus: float  # while it is busy
    gpus: tuple[str, ...]
    born_s: float = field(default_factory=time.monotonic)
    ready: bool = False
    started: list[str] = field(default_factory=list)  # ids of steps whose function it has
    job: tuple[Stream, int, Item] | None = None  # stream, step number and current item
    ended: str = ""  # why we ended it, if we did
    taken: int = 0  # bytes of memory, when last looked at
    oom_kills: int | None = None  # the kernel's count when it got its job


def start_worker(
    resources: Resources, cpus: float, gpus: tuple[str, ...], with_main: bool
) -> LocalWorker:
    """Starts a process with its own GPUs and as many threads as CPUs; it ends with this thread."""
    # Only the driver handles Ctrl-C: workers inherit the blocked signal from this thread.
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
    parents.pop("authkey")  # for multiprocessing's servers, of which there are none
    if not with_main:
        parents["sys_path"] = machine.import_path()
        parents.pop("init_main_from_path", None)
        parents.pop("init_main_from_name", None)
    with contextlib.suppress(*GONE):  # noticed at the next wait
        ours.send_bytes(pickle.dumps(parents))
        ours.send_bytes(pickle.dumps(own_code.own()))
    return LocalWorker(process, ours, resources, cpus, gpus)


def end_workers(workers: Sequence[LocalWorker]) -> None:
    """Ends workers in parallel: busy ones at once; idle ones get time to exit by themselves."""
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
