"""Starts and ends worker processes on this machine."""

import atexit
import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from typing import NoReturn

from clipmill.pipeline import own_code
from clipmill.pipeline.executors import Item, machine
from clipmill.pipeline.executors.streams import Stream
from clipmill.pipeline.executors.worker import serve
from clipmill.pipeline.stage import Resources

LEAVE_S = 0.2  # for idle workers to exit by themselves
MOST_EARLY = 4  # workers forked before it is known how many there will be
THREADS = Path("/proc/self/task")
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


class Forked:
    """A fork of this process; has what is used here of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> None:
        """Waits for its end; raises TimeoutExpired."""
        limit = time.monotonic() + (timeout or 0)
        while self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, 0 if timeout is None else os.WNOHANG)
            except ChildProcessError:  # SIGCHLD is ignored: the kernel took it, as Popen has it
                self.returncode = 0
                return
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > limit:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            else:
                time.sleep(0.001)


_early: list[tuple[Forked, Connection]] = []  # workers without work yet


@dataclass(eq=False)
class LocalWorker:
    """A worker process with its pipe and current job."""

    process: "subprocess.Popen[bytes] | Forked"
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


def fork_early(count: int) -> int:
    """Forks workers that import nothing again, if this process has one thread; returns how many.

    All later ones are spawned: a fork has none of the threads, and all of their locks. A fork never
    returns from here.
    """
    if sys.platform != "linux" or not THREADS.is_dir() or len(list(THREADS.iterdir())) > 1:
        return 0
    sys.stdout.flush()
    gc.freeze()  # pages that no collection writes to stay shared
    driver, before = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    for _ in range(min(count, MOST_EARLY)):
        ours, theirs = multiprocessing.Pipe()
        if pid := os.fork():
            theirs.close()
            _early.append((Forked(pid), ours))
        else:
            ours.close()
            _serve_early(theirs, driver)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return len(_early)


def _serve_early(pipe: Connection, driver: int) -> NoReturn:
    """Serves, and ends here: what the caller of `main` does next, at exit too, is the driver's."""
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]  # private, as below
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    code = 1
    try:
        while _early:  # what the driver listens to
            _early.pop()[1].close()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.path[:] = machine.import_path()
        with contextlib.suppress(EOFError):
            environment = pickle.loads(pipe.recv_bytes())
            os.environ.clear()
            os.environ.update(environment)
            serve(pipe, driver)
        code = 0
    except SystemExit:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:  # as at the end of a process, with what the worker itself has to close
        threading._shutdown()  # type: ignore[attr-defined]  # private
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start_worker(
    resources: Resources, cpus: float, gpus: tuple[str, ...], with_main: bool
) -> LocalWorker:
    """Starts a process with its own GPUs and as many threads as CPUs; it ends with this thread."""
    own = {**machine.thread_limits(resources.cpus), "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    environment = {**os.environ, **own}
    if _early and not with_main and not gpus and resources.cpus <= 1:
        forked, ours = _early.pop()
        with contextlib.suppress(*GONE):  # noticed at the next wait
            ours.send_bytes(pickle.dumps(environment))
            ours.send_bytes(pickle.dumps(own_code.own()))
        return LocalWorker(forked, ours, resources, cpus, gpus)
    # Only the driver handles Ctrl-C: workers inherit the blocked signal from this thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    ours, theirs = multiprocessing.Pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", BOOT, str(theirs.fileno()), str(os.getpid())],
        env=environment,
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


def end_early() -> None:
    """Ends workers that got no work."""
    while _early:
        process, pipe = _early.pop()
        pipe.close()
        process.kill()
        process.wait()


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
