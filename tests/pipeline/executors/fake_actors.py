"""A Ray executor over actors that are objects here: what is left is the driver's part."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any
from unittest import mock

from clipmill.pipeline.executors import ray as on_ray
from clipmill.pipeline.executors import ray_pools
from clipmill.pipeline.executors.ray import RayExecutor


class Answer:
    """Of a call that is done at once, and heard when it is its turn."""

    def __init__(self, unheard: deque[Callable[[Any], object]], value: Any = None) -> None:
        self.unheard, self.value = unheard, value

    def future(self) -> "Answer":
        return self

    def add_done_callback(self, call: Callable[[Any], object]) -> None:
        self.unheard.append(call)


def heard(answer: Answer) -> Any:
    """What a call gave; raises the death that stands for it."""
    if isinstance(answer.value, Exception):
        raise answer.value
    return answer.value


class Method:
    def __init__(self, call: Callable[..., Answer]) -> None:
        self.remote = call


class Handle:
    """An actor; it is ready once it has a CPU."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster, self.functions = cluster, dict[str, Callable[[Any], Any]]()
        self.has_cpu = False
        self._actor_id = b"\xac"
        self.start, self.run = Method(self._start), Method(self._run)
        self.ready = Method(self._ready)
        self.up: deque[Callable[[Any], object]] = deque()  # who hears that it is

    def _start(self, step: str, start: Callable[[], Callable[[Any], Any]], *_: Any) -> Answer:
        self.functions = {step: start()}
        return Answer(self.cluster.unheard)

    def _run(self, step: str, item: Any) -> Answer:
        return Answer(self.cluster.unheard, self.functions[step](item))

    def _ready(self) -> Answer:
        self.cluster.queued[self] = None
        self.cluster.place()
        return Answer(self.cluster.unheard if self.has_cpu else self.up)


class Commands(SimpleQueue[Any]):
    """The driver hears one answer whenever it has nothing else to do: the worst case."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return super().get(block=False)
        except Empty:
            if self.cluster.unheard:
                self.cluster.unheard.popleft()(None)
        return super().get(block, timeout)


class Cluster:
    """CPUs, of which each actor takes one; those beyond them are queued."""

    is_local = False

    def __init__(self, cpus: int) -> None:
        self.resources = {"CPU": cpus, "memory": cpus * 2.0**40}
        self.unheard: deque[Callable[[Any], object]] = deque()
        self.queued: dict[Handle, None] = {}
        self.free, self.placed = cpus, 0

    def new(self, *given: Any, **options: Any) -> Handle:
        return Handle(self)

    def place(self) -> None:
        while self.free and self.queued:
            handle = next(iter(self.queued))
            del self.queued[handle]
            self.free, self.placed, handle.has_cpu = self.free - 1, self.placed + 1, True
            self.unheard += handle.up

    def kill(self, handle: Handle) -> None:
        self.queued.pop(handle, None)
        self.free += handle.has_cpu
        handle.has_cpu = False
        self.place()

    def check_alive(self) -> None: ...

    def is_usable(self) -> bool:
        return True

    def close(self) -> None: ...


@contextmanager
def fake_executor(cpus: int) -> Iterator[tuple[RayExecutor, Cluster]]:
    """An executor on a cluster of so many CPUs, which costs nothing."""
    cluster = Cluster(cpus)
    fake = mock.Mock(
        get=heard,
        put=lambda value: value,
        kill=cluster.kill,
        cluster_resources=lambda: cluster.resources,
        nodes=lambda: [],
    )
    with (
        mock.patch.object(on_ray, "ray", fake),
        mock.patch.object(ray_pools, "ray", fake),
        mock.patch.object(on_ray, "Session", return_value=cluster),
        mock.patch.object(ray_pools.ActorPools, "new", side_effect=cluster.new),
    ):
        executor = RayExecutor(address="fake")
        executor._commands = Commands(cluster)
        try:
            yield executor, cluster
        finally:
            executor.close()
