"""A worker's life: the functions of the steps it has met, and the loop of a local one."""

import atexit
import ctypes
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection
from typing import Any

from clipmill.pipeline import own_code
from clipmill.pipeline.executors.telling import connect
from clipmill.pipeline.extras import hide_pandas
from clipmill.pipeline.terminal import guard

_one_at_a_time = threading.Lock()  # a stage may tell from threads of its own
FULL_EVERY = 100  # searches of the middle generation; ten would be four searches of all of torch
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


class Functions:
    """The functions that a worker has started, by the id of their step."""

    def __init__(self) -> None:
        self._started: dict[str, Callable[[Any], Any]] = {}

    def start(
        self, step: str, start: Callable[[], Callable[[Any], Any]], used: Collection[str]
    ) -> None:
        """Closes the steps that are no longer used, with their models; then starts this one."""
        for name in self._started.keys() - set(used):
            function = self._started.pop(name)
            # Not left to a search for garbage, which takes seconds: a client of a server is a
            # circle, and the next step may need the server's GPU.
            if close := getattr(function, "close", None):
                close()
        self._started[step] = start()

    def run(self, step: str, item: Any) -> Any:
        return self._started[step](item)


def serve(pipe: Connection, driver: int) -> None:
    """Runs each item that comes by the pipe and sends its answer back, until the pipe closes."""
    _end_with(driver)
    guard()
    hide_pandas()
    atexit.register(gc.freeze)  # a last search for garbage in all it imported takes half a second
    gc.set_threshold(*gc.get_threshold()[:2], FULL_EVERY)
    own_code.receive(pickle.loads(pipe.recv_bytes()))  # items are unpickled by its package
    functions = Functions()
    connect(lambda message: _answer(pipe, pickle.dumps(("told", message))))
    _answer(pipe, pickle.dumps(("ready", None)))
    while True:
        try:
            step, start, used, item = pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            return
        try:
            if start is not None:
                functions.start(step, pickle.loads(start), used)
                _answer(pipe, pickle.dumps(("started", None)))
            answer = pickle.dumps(("done", functions.run(step, item)))
        except Exception as error:
            answer = pickle.dumps(("error", _portable(error)))
        _answer(pipe, answer)


def _answer(pipe: Connection, answer: bytes) -> None:
    try:
        with _one_at_a_time:
            pipe.send_bytes(answer)
    except (BrokenPipeError, ConnectionResetError):
        sys.exit()  # the driver has gone


def _end_with(driver: int) -> None:
    """Lets the kernel kill this process when its driver, or the thread that started it, ends.

    Without Linux it ends when it next looks at its pipe.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if driver != os.getppid():  # it ended before we asked
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """Returns the error if it survives pickling, else one with its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
