"""The embedded default: long-lived processes on this machine, within its CPUs, memory and GPUs.

An idle process takes no CPU but keeps its memory and its GPU: CPUs are counted over the workers
that are busy, memory and GPUs over those that live.

The first workers of `clipmill run` are forked of it before it has a second thread; all others are
spawned.

Not concurrent.futures: its pool breaks as a whole when one worker dies, and cannot say which item
the worker held. Here each worker has a pipe of its own, so a death costs one item one attempt.
"""

import math
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from typing import Any

from clipmill.metadata.limits import limit
from clipmill.metadata.scratch import sweep_scratch
from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.errors import RankDiedError, RankLostError, StageError
from clipmill.pipeline.executors import Item, Step, local_worker, machine
from clipmill.pipeline.executors.local_worker import GONE, LocalWorker
from clipmill.pipeline.executors.ranks import Ends, as_rank, free_address
from clipmill.pipeline.executors.streams import LOOK_UP_S, TURN_S, Dispatcher, Stream
from clipmill.pipeline.executors.telling import connect
from clipmill.pipeline.stage import Resources

ECHO_S = 5.0  # after a rank's error: the death that caused it is heard by then
EARLY_DEATHS = 3  # times the number of workers, in a row before a step starts: then it fails
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WATCH_S = 0.2  # between looks at what workers take
LOOPBACK = "127.0.0.1"  # where ranks meet
ROUNDING = 1e-6  # of ten shares of 0.1


class LocalExecutor(Dispatcher):
    """Runs steps on `workers` CPUs of this machine; in the caller's thread where that is 0.

    With 0 an item that crashes ends the run: it is for a debugger. `with_main`: workers import the
    main module, so that its functions can be steps; without a `__main__` guard it runs again.
    """

    def __init__(self, workers: int | None = None, with_main: bool = True) -> None:
        super().__init__()
        self.with_main = with_main
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        self.side_by_side = self.workers > 0
        self._memory_gb, self._gpus = machine.memory_gb(), machine.gpus()
        self._most_bytes = self._memory_gb * 2**30 * limit("MAX_MEMORY_PERCENT") / 100
        self._next_look_s = 0.0
        self._living: list[LocalWorker] = []
        self._bell, self._ringer = multiprocessing.Pipe(duplex=False)

    def stream(self, steps: Sequence[Step], items: Iterable[Item]) -> Generator[Item]:
        if self.workers:
            return super().stream(steps, items)
        connect(self.on_told)
        return _in_this_thread(steps, items)

    def launch(
        self, fn: Callable[[Rank], Mapping[str, Any]], workers: int, resources: Resources
    ) -> list[Mapping[str, Any]]:
        start = partial(partial, as_rank, fn)
        step = Step(name=f"launch of {workers} workers", start=start, resources=resources)
        self._refuse(resources, step.name, workers)
        stream = Stream([step], [self._pack(step)], workers)
        stream.queues[0].extend(range(workers))
        self._open(stream)
        ends = Ends(workers, ECHO_S)
        try:
            while (results := ends.results()) is None:
                with suppress(queue.Empty):
                    ends.add(*stream.next_within(LOOK_UP_S))
            return results
        finally:
            self._ask(lambda: self._leave(stream))

    def places(self, resources: Resources) -> int:
        """Returns how many workers with these resources have room where nothing else runs."""
        most = max(1, int(max(1, self.workers) / self._cpus(resources, 1) + ROUNDING))
        return next((n for n in range(most, 0, -1) if self._room(resources, n, []) is not None), 0)

    def halted(self) -> list[int]:
        busy = [worker.process.pid for worker in list(self._living) if worker.job]
        return [pid for pid in busy if machine.process(pid)[0] in ("T", "t")]

    def _holdings(self) -> Iterator[tuple[str, str, float, float]]:
        for worker in list(self._living):
            share = min(1, worker.resources.gpus)  # of each GPU that it sees
            job = worker.job
            name, cpus = (job[0].steps[job[1]].name, worker.cpus) if job else ("", 0)
            yield socket.gethostname(), name, cpus, share * len(worker.gpus)

    def close(self) -> None:
        super().close()
        local_worker.end_early()
        sweep_scratch()  # of those that were killed

    # Who gets a worker

    def _turn(self) -> None:
        while self._place_one():
            pass
        busy = {worker.pipe: worker for worker in self._living if worker.job}
        self._end_one_too_large()
        for pipe in wait([self._bell, *busy], WATCH_S if busy else None):
            if pipe is self._bell:
                self._bell.recv_bytes()
                self._obey()
            elif (worker := busy[pipe]) in self._living:  # type: ignore[index]  # one we gave
                self._hear(worker)

    def _end_one_too_large(self) -> None:
        """Where all workers take too much memory, ends the busy one most above what it declared.

        What a worker started counts as its own, a model's server too: a stage declares memory for
        both. Looks every WATCH_S, less often if looking would take over a twentieth of the time;
        if memory runs out between two looks, the kernel ends a process.
        """
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return
        families = {it: machine.family(it.process.pid) for it in self._living if not it.ended}
        found = _taken(families, shared_once=False)
        if sum(map(sum, found.values())) > self._most_bytes:  # the exact sum may be less
            found = _taken(families, shared_once=True)
        self._next_look_s = time.monotonic() + max(WATCH_S, 20 * (time.monotonic() - now_s))
        for worker, bytes_ in found.items():
            worker.taken = sum(bytes_)
        busy = [worker for worker in found if worker.job]
        all_taken = sum(worker.taken for worker in found)
        if not busy or all_taken <= self._most_bytes:
            return
        worst = max(busy, key=lambda it: it.taken - it.resources.memory_gb * 2**30)
        most, largest = max(zip(found[worst], families[worst], strict=True))
        child = machine.program(largest) if largest != worst.process.pid else ""
        worst.ended = (
            f"it took {worst.taken / 2**30:.1f} GB of memory"
            + (f", {most / 2**30:.1f} of them its child {child}" if child else "")
            + f", and all workers {all_taken / 2**30:.1f} of the {self._most_bytes / 2**30:.1f} GB"
            " they may"
        )
        started = machine.family(worst.process.pid)[1:]
        worst.process.kill()
        for pid in started:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _place_one(self) -> bool:
        """Gives one item, or all ranks of a launch, to workers; false where nothing fits.

        A stream without a worker, which gets one when others' items end, stops those after it.
        """
        for stream, number in self._by_turn():
            resources = stream.steps[number].resources
            if workers := self._workers_for(stream, resources):
                address = free_address(LOOPBACK) if stream.ranks else ""
                for worker in workers:
                    item = stream.begin(number)
                    if stream.ranks:
                        item = Rank(rank=item, of=stream.ranks, rendezvous=address)
                    worker.job, worker.oom_kills = (stream, number, item), machine.oom_kills()
                    if worker.ready:
                        self._send(worker)
                return True
            if not stream.busy and self._waits_for_items(stream, resources):
                return False
        return False

    def _workers_for(self, stream: Stream, resources: Resources) -> list[LocalWorker]:
        """Returns a worker for an item, or one for each rank; none if there is no room for all."""
        count, cpus = stream.ranks or 1, self._cpus(resources, stream.ranks or 1)
        if _cpus_of(self._living) + count * cpus > max(1, self.workers) + ROUNDING:
            return []
        idle = [worker for worker in self._living if not worker.job]
        if not stream.ranks and (mine := [w for w in idle if w.resources == resources]):
            return [max(mine, key=lambda worker: len(set(worker.started) & set(stream.ids)))]
        spare = self._may_end(idle, stream, resources)
        staying = list(self._living)
        while (gpus := self._room(resources, count, staying)) is None:
            if not spare:
                return []
            staying.remove(spare.pop())
        self._end([worker for worker in self._living if worker not in staying])
        started = [local_worker.start_worker(resources, cpus, own, self.with_main) for own in gpus]
        self._living += started
        return started

    def _waits_for_items(self, stream: Stream, resources: Resources) -> bool:
        """Returns whether the stream would get its workers if no item were in hand."""
        count = stream.ranks or 1
        launched = [worker for worker in self._living if worker.job and worker.job[0].ranks]
        ending = self._may_end(
            [worker for worker in self._living if worker not in launched], stream, resources
        )
        staying = [worker for worker in self._living if worker not in ending]
        cpus = _cpus_of(launched) + count * self._cpus(resources, count)
        return (
            cpus <= max(1, self.workers) + ROUNDING
            and self._room(resources, count, staying) is not None
        )

    def _may_end(
        self, workers: Sequence[LocalWorker], stream: Stream, resources: Resources
    ) -> list[LocalWorker]:
        """Returns workers that may end to make room for these resources; its last ends first.

        Workers that no open stream can use may always end. Others end only for a launch or for the
        first worker of these resources, if items wait only after TURN_S, lest models load in turn.
        """
        used = {step.resources for stream in self._streams for step in stream.steps}
        is_first = stream.ranks or all(w.resources != resources for w in self._living)
        old_s = time.monotonic() - TURN_S

        def may_end(worker: LocalWorker) -> bool:
            has_turn = self._waiting(worker.resources) and worker.born_s > old_s
            return worker.resources not in used or bool(is_first and not has_turn)

        ending = [worker for worker in workers if may_end(worker)]
        return sorted(ending, key=lambda w: (w.resources not in used, bool(w.gpus)))

    def _cpus(self, resources: Resources, beside: int) -> float:
        """Returns the CPUs that each of `beside` workers takes while it is busy."""
        return min(float(resources.cpus), max(1, self.workers) / beside)

    def _room(
        self, resources: Resources, count: int, living: Sequence[LocalWorker]
    ) -> list[tuple[str, ...]] | None:
        """Returns the GPUs of each of `count` workers beside these; None where any lack room."""
        wanted_gb = count * resources.memory_gb + sum(w.resources.memory_gb for w in living)
        if wanted_gb > self._memory_gb + ROUNDING:
            return None
        used: Counter[str] = Counter()
        for worker in living:
            used.update(dict.fromkeys(worker.gpus, min(1, worker.resources.gpus)))
        share = min(1, resources.gpus)
        found = []
        for _ in range(count):
            free = [gpu for gpu in self._gpus if used[gpu] + share <= 1 + ROUNDING]
            free.sort(key=lambda gpu: -used[gpu])  # those that others share already
            chosen = tuple(free[: math.ceil(resources.gpus)])
            if len(chosen) < resources.gpus:
                return None
            used.update(dict.fromkeys(chosen, share))
            found.append(chosen)
        return found

    def _refuse(self, resources: Resources, where: str, beside: int = 1) -> None:
        if self._room(resources, beside, []) is None:
            workers = "a worker" if beside == 1 else f"{beside} workers, each"
            raise StageError(
                found=f"no place for {workers} with {resources.memory_gb:.1f} GB and"
                f" {resources.gpus:g} GPUs: this machine has {self._memory_gb:.1f} GB and"
                f" {len(self._gpus)} GPUs",
                where=where,
                do="lower what the stage asks for, or run where there is more",
            )

    def _most_inside(self, stream: Stream) -> int:
        return stream.ranks or 2 * self.workers * len(stream.steps)

    # What workers say

    def _pack(self, step: Step) -> bytes:
        return pickle.dumps(step.start)

    def _send(self, worker: LocalWorker) -> None:
        assert worker.job is not None
        stream, number, item = worker.job
        step = stream.ids[number]
        start = None if step in worker.started else stream.packed[number]
        try:
            message = pickle.dumps((step, start, self._open_ids(), item))
        except Exception as error:
            stream.fail(error)
            return
        with suppress(*GONE):  # seen when we wait
            worker.pipe.send_bytes(message)

    def _hear(self, worker: LocalWorker) -> None:
        assert worker.job is not None
        stream, number, item = worker.job
        try:
            kind, value = pickle.loads(worker.pipe.recv_bytes())
        except GONE:
            self._bury(worker)
            return
        if kind == "told":
            self.on_told(value)
        elif kind == "ready":
            worker.ready = True
            self._send(worker)
        elif kind == "started":
            known = self._open_ids()
            worker.started = [step for step in worker.started if step in known]
            worker.started.append(stream.ids[number])
            stream.early_deaths[number] = 0
        else:
            worker.job = None
            stream.busy -= 1
            if stream.ranks:
                self._end([worker])
                stream.passed(number, (item.rank, value))
            elif kind == "error":
                stream.fail(value)
            else:
                stream.passed(number, value)

    def _bury(self, worker: LocalWorker) -> None:
        """Ends a worker that died; its item is tried again in another."""
        assert worker.job is not None
        stream, number, item = worker.job
        self._end([worker])
        stream.busy -= 1
        code = worker.process.returncode
        is_killed = self._is_killed(worker)
        if stream.ranks:
            found = f"rank {item.rank} of {stream.ranks} died (exit code {code})"
            found += f": {worker.ended}" if worker.ended else ""
            do = "look for a crash or too little memory, then run again"
            died = RankLostError if is_killed else RankDiedError
            stream.fail(died(found, stream.steps[number].name, do))
            return
        if hasattr(item, "ended"):
            item.ended = worker.ended
            item.killed += is_killed
        stream.again(number, item)
        if stream.ids[number] not in worker.started:
            stream.early_deaths[number] += 1
            if stream.early_deaths[number] >= EARLY_DEATHS * self.workers:
                found = f"workers die before they start (exit code {code})"
                found += f": {worker.ended}" if worker.ended else ""
                where = f"step {stream.steps[number].name}"
                stream.fail(StageError(found, where, "run with --workers 0 to see why"))

    def _is_killed(self, worker: LocalWorker) -> bool:
        """Returns whether a worker was killed from outside: not by its work, us or the kernel.

        The kernel, out of memory, sends the same signal but counts its kills: if the count rose,
        `worker.ended` is set to say so. Without a count, it may have been the kernel: False.
        """
        if worker.ended or -(worker.process.returncode or 0) not in FROM_OUTSIDE:
            return False
        before, now = worker.oom_kills, machine.oom_kills()
        if before is None or now is None:
            return False
        if before != now:
            worker.ended = (
                "the kernel had no more memory for it; when last looked at, it took"
                f" {worker.taken / 2**30:.1f} GB"
            )
        return before == now

    def _end(self, workers: Sequence[LocalWorker]) -> None:
        for worker in workers:
            self._living.remove(worker)
        local_worker.end_workers(workers)

    def _end_workers_of(self, stream: Stream | None) -> None:
        self._end([w for w in self._living if stream is None or (w.job and w.job[0] is stream)])

    def _ring(self) -> None:
        self._ringer.send_bytes(b"")


def _taken(
    families: Mapping[LocalWorker, Sequence[int]], shared_once: bool
) -> dict[LocalWorker, list[int]]:
    """Returns the memory of each process of each worker's family. With `shared_once`, what several
    share counts once; a worker without children counts whole, with what it shares with us."""
    return {
        worker: [machine.resident_bytes(pid, shared_once and len(pids) > 1) for pid in pids]
        for worker, pids in families.items()
    }


def _in_this_thread(steps: Sequence[Step], items: Iterable[Item]) -> Generator[Item]:
    functions = [step.start() for step in steps]
    for item in items:
        for function in functions:
            item = function(item)
        yield item


def _cpus_of(workers: Iterable[LocalWorker]) -> float:
    return sum(worker.cpus for worker in workers if worker.job)
