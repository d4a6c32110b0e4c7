"""The embedded default: long-lived spawned processes, one set per resource profile.

Not concurrent.futures: its pool breaks as a whole when one worker dies, and cannot say which item
the worker held. Here each worker has a pipe of its own, so a death costs one item one attempt.
"""

import atexit
import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from metadata.scratch import sweep_scratch
from pipeline.errors import StageError
from pipeline.executors import Item, Step
from pipeline.stage import Resources
from pipeline.terminal import guard

SPAWN = multiprocessing.get_context("spawn")
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
MAX_STILLBORN = 3  # workers in a row, for each there should be, that died before they were ready
HELD_STEPS = 8  # steps a worker keeps open
LOOK_UP_S = 0.5
LEAVE_S = 0.2  # what idle workers have to leave by themselves
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
READY = ("ready", None)
GONE = (EOFError, OSError)  # what a pipe says of a process that died, or died in mid-answer


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    knows: list[str] = field(default_factory=list)  # ids of the steps it has been sent
    job: tuple[int, Item] | None = None  # step number and item in hand
    ready: bool = False  # it has started, so a later death is the item's doing


class LocalExecutor:
    """Runs steps in `workers` processes a profile; in this process where workers is 0.

    With 0 an item that crashes ends the run: it is for a debugger.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        self._pools: dict[Resources, list[_Worker]] = {}
        self._stillborn = 0

    def stream(self, steps: Sequence[Step], items: Iterable[Item]) -> Iterator[Item]:
        if self.workers == 0:
            functions = [step.start() for step in steps]
            for item in items:
                for function in functions:
                    item = function(item)
                yield item
            return
        try:
            yield from self._stream(steps, items)
        finally:  # left early, some still hold an item of this stream
            for pool in self._pools.values():
                busy = [worker for worker in pool if worker.job is not None]
                pool[:] = [worker for worker in pool if worker.job is None]
                _end(busy)

    def _stream(self, steps: Sequence[Step], items: Iterable[Item]) -> Iterator[Item]:
        ids = [uuid.uuid4().hex for _ in steps]
        starts = [pickle.dumps(step.start) for step in steps]
        queues: list[deque[Item]] = [deque() for _ in steps]
        source = iter(items)
        bound = 2 * self.workers * len(steps)
        inside = 0
        while True:
            for item in itertools.islice(source, max(0, bound - inside)):
                queues[0].append(item)
                inside += 1
            if not inside:
                return
            # The last step first: what is nearly finished leaves before something new enters.
            for number in reversed(range(len(steps))):
                for worker in self._idle(steps[number].resources, len(queues[number])):
                    self._send(worker, number, queues[number].popleft(), ids, starts)
            for worker in self._answers():
                answer = self._receive(worker)
                if answer == READY:
                    continue
                number, item = worker.job or (0, {})
                worker.job = None
                if answer is None:  # it died: the same item again, in another worker
                    queues[number].appendleft(item)
                elif answer[0] == "error":
                    raise answer[1]
                elif number + 1 < len(steps):
                    queues[number + 1].append(answer[1])
                else:
                    inside -= 1
                    yield answer[1]

    def launch(
        self,
        fn: Callable[[int, int], Mapping[str, Any]],
        workers: int,
        resources: Resources,
    ) -> list[Mapping[str, Any]]:
        ranks: list[_Worker] = []
        results: dict[int, Mapping[str, Any]] = {}
        try:
            for rank in range(workers):
                ranks.append(self._start(resources, _rank, (fn, rank, workers)))
            while len(results) < workers:
                open_pipes = {w.pipe: rank for rank, w in enumerate(ranks) if rank not in results}
                for pipe in _readable(open_pipes):
                    rank = open_pipes[pipe]
                    try:
                        kind, value = pickle.loads(ranks[rank].pipe.recv_bytes())
                    except GONE:
                        raise StageError(
                            f"rank {rank} of {workers} died",
                            "launch",
                            "look for a crash or too little memory, then run again",
                        ) from None
                    if kind == "error":
                        raise value
                    results[rank] = value
        finally:
            _end(ranks)
        return [results[rank] for rank in range(workers)]

    def close(self) -> None:
        _end(list(itertools.chain(*self._pools.values())))
        self._pools = {}
        sweep_scratch()  # of those that were killed

    def _idle(self, resources: Resources, wanted: int) -> list[_Worker]:
        """Workers without a job, started as they are wanted."""
        pool = self._pools.setdefault(resources, [])
        idle = [worker for worker in pool if worker.job is None][:wanted]
        most = max(1, self.workers // max(1, resources.cpus))
        while len(idle) < wanted and len(pool) < most:
            pool.append(self._start(resources, _serve, ()))
            idle.append(pool[-1])
        return idle

    def _start(self, resources: Resources, target: Any, arguments: tuple[Any, ...]) -> _Worker:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
        # Ctrl-C is the driver's to answer: a worker is born deaf to it.
        resource_tracker.ensure_running()  # which hears it again where `start` starts it
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with _environment(dict.fromkeys(THREADS, str(resources.cpus))):
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        theirs.close()
        return _Worker(process, ours)

    def _send(
        self,
        worker: _Worker,
        number: int,
        item: Item,
        ids: list[str],
        starts: list[bytes],
    ) -> None:
        start = None if ids[number] in worker.knows else starts[number]
        worker.knows = [*worker.knows, ids[number]][-HELD_STEPS:] if start else worker.knows
        worker.job = (number, item)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # seen when we wait
            worker.pipe.send_bytes(pickle.dumps((ids[number], start, item)))

    def _answers(self) -> list[_Worker]:
        """Busy workers that have answered or died; waits for the first."""
        busy = {w.pipe: w for pool in self._pools.values() for w in pool if w.job is not None}
        return [busy[pipe] for pipe in _readable(busy)]

    def _receive(self, worker: _Worker) -> tuple[str, Any] | None:
        """The worker's answer; None where it died, and it is gone from its pool."""
        try:
            answer: tuple[str, Any] = pickle.loads(worker.pipe.recv_bytes())
        except GONE:
            for pool in self._pools.values():
                if worker in pool:
                    pool.remove(worker)
            _end([worker])
            self._stillborn += not worker.ready
            if self._stillborn >= MAX_STILLBORN * max(1, self.workers):
                raise StageError(
                    f"workers end before they are ready (exit code {worker.process.exitcode})",
                    "the local executor",
                    "run with --workers 0 to see why",
                ) from None
            return None
        worker.ready = True
        self._stillborn = 0
        return answer


def _readable(pipes: Iterable[Connection]) -> list[Connection]:
    """Those with something to read; waits for the first.

    It looks up now and then: Python may see a signal late that another thread was given.
    """
    waited = list(pipes)
    while not (found := wait(waited, LOOK_UP_S)):
        pass
    return found  # type: ignore[return-value]  # `wait` gives back what it got


def _serve(pipe: Connection) -> None:
    """A worker's life: items in, answers out, until the pipe closes."""
    _end_with_driver()
    guard()
    atexit.register(gc.freeze)  # a last search for garbage in all it imported takes half a second
    functions: dict[str, Callable[[Item], Item]] = {}
    pipe.send_bytes(pickle.dumps(READY))
    while True:
        try:
            step, start, item = pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            return
        try:
            if start is not None:
                functions[step] = pickle.loads(start)()
                while len(functions) > HELD_STEPS:
                    functions.pop(next(iter(functions)))
            answer: tuple[str, Any] = ("ok", functions[step](item))
        except Exception as error:
            answer = ("error", _portable(error))
        try:
            pipe.send_bytes(pickle.dumps(answer))
        except (BrokenPipeError, ConnectionResetError):  # the driver has gone
            return


def _rank(pipe: Connection, fn: Callable[[int, int], Any], rank: int, workers: int) -> None:
    _end_with_driver()
    guard()
    try:
        answer: tuple[str, Any] = ("ok", fn(rank, workers))
    except Exception as error:
        answer = ("error", _portable(error))
    pipe.send_bytes(pickle.dumps(answer))


def _end_with_driver() -> None:
    """From now on this process is killed when its driver ends, whatever it is in the midst of.

    So it is when the thread ends that started it. Elsewhere than on Linux it ends when it next
    looks at its pipe.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    driver = multiprocessing.parent_process()
    if driver is None or driver.pid != os.getppid():  # it ended before we asked
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error itself where it survives pickling, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end(workers: list[_Worker]) -> None:
    """Ends them all, side by side: idle ones may leave by themselves."""
    for worker in workers:
        worker.pipe.close()
    limit = time.monotonic() + LEAVE_S
    for worker in workers:
        if worker.job is None:
            worker.process.join(max(0.0, limit - time.monotonic()))
        worker.process.kill()
    for worker in workers:
        worker.process.join()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables for the processes started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
