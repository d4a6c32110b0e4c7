"""Work on Ray: pools of Ray Core actors, one per resource profile. Only this file imports ray.

Core, not Data, by python -m tests.benchmarks.ray_streaming (Ray 2.60, two shared, busy cores; on
quiet ones 10,000 took 81 s and 8.5 s). Seconds to the first and to the last result:
                                       Ray Data         this file
    1,000 empty items, one profile      6.6   20.3      1.8    3.3
    10,000                             11.7  137.3      3.8   13.3
    1,000, two profiles                 4.5   20.6      3.1    4.8
    100 items, one kills its worker     two tries of it alone, in both
Ray Data makes all blocks before the first runs, so its first result waits longer the more items
there are, and it takes a list; here items are drawn as actors take them.

One item at a time is with an actor: a death names its item, and nothing was queued behind it.
"""

import atexit
import contextlib
import logging
import math
import os
import secrets
import socket
import sys
import sysconfig
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import ray
from ray._private import ray_constants, services, worker
from ray._raylet import (  # type: ignore[attr-defined]  # compiled
    AuthenticationTokenLoader,
    Config,
)
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.errors import RecipeError, StageError
from pipeline.executors import Item, Step
from pipeline.stage import Resources

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
OBJECT_STORE_BYTES = 512 * 2**20  # names travel, not rows; Ray's default is a third of the memory
IDLE_S = 0.5  # an actor without work this long goes, where another pool lacks room
PLACING_S = 30.0  # an actor not up after this long lacks room, whatever the totals say
GIVE_UP_S = 900.0  # time for a cluster to grow by the node that is missing
ANSWER_S = 10.0  # of a cluster that is asked for the first time
VITAL = (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)
EARLY_DEATHS = 3  # generations that died before one had started: none ever will

State = Literal["opening", "starting", "running", "idle"]  # of an actor


class _Worker:
    """One process of a pool; builds a step's function when it first meets the step."""

    def __init__(self) -> None:
        self.functions: dict[int, Callable[[Item], Item]] = {}

    def clear(self) -> None:
        self.functions.clear()

    def start(self, number: int, step: Step) -> None:
        self.functions[number] = step.start()

    def run(self, number: int, item: Item) -> Item:
        return self.functions[number](item)

    def launch(
        self, fn: Callable[[int, int], Mapping[str, Any]], rank: int, workers: int
    ) -> Mapping[str, Any]:
        return fn(rank, workers)


class RayExecutor:
    """Runs on a local Ray that it starts (`address=None`) or on a cluster that it leaves running.

    `workers` bounds the actors of a profile; a local Ray has as many CPUs, else the machine's.
    `env` reaches every worker, as do CLIPMILL_* and the import path of this process.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        env: Mapping[str, str] | None = None,
    ):
        self.local = address is None
        self.most_actors = workers or sys.maxsize
        self.env = dict(env or {})
        self.kept: list[tuple[Resources, Any]] = []  # actors between two streams
        self.nodes_have: dict[str, float] = {}
        self.asked_s = -math.inf
        self.connected = not ray.is_initialized()
        self.own = contextlib.ExitStack()  # the environment of a Ray that it starts
        if self.connected:
            new: dict[str, Any] = {}
            if self.local:
                self.own.enter_context(_private())
                new = {
                    "num_cpus": workers or os.cpu_count(),
                    "include_dashboard": False,
                    "object_store_memory": OBJECT_STORE_BYTES,
                }
            _init(address, new)

    def stream(self, steps: Sequence[Step], items: Iterable[Item]) -> Iterator[Item]:
        stream = _Stream(self, steps, items)
        try:
            yield from stream.results()
        finally:
            if ray.is_initialized() and not self.lost():  # or asking for an end waits, or starts
                stream.end()

    def launch(
        self, fn: Callable[[int, int], Mapping[str, Any]], workers: int, resources: Resources
    ) -> list[Mapping[str, Any]]:
        self.drop_kept()
        need = self.need(resources, beside=workers)
        where = f"launch of {workers} workers, each with {need}"
        group = placement_group([need] * workers, strategy="PACK")
        actors: list[Any] = []
        try:
            give_up_s = time.monotonic() + (0 if self.lacks(need) else GIVE_UP_S)
            while not group.wait(IDLE_S):
                self.check_alive()
                if time.monotonic() > give_up_s:
                    raise self.no_room(need, where)
            for rank in range(workers):
                place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
                actors.append(self.actor(resources, need, scheduling_strategy=place))
            calls = [a.launch.remote(fn, rank, workers) for rank, a in enumerate(actors)]
            waiting = calls
            while waiting:  # the first failure, whichever rank has it
                done, waiting = ray.wait(waiting, timeout=IDLE_S)
                ray.get(done)
                self.check_alive()
            return list(ray.get(calls))
        except RayTaskError as error:
            raise _original(error) from error
        except DEATHS as error:
            raise StageError(
                found=f"a worker died: {_first_line(error)}",
                where=where,
                do="run again: it goes on from what it last stored; if it dies again, raise memory",
            ) from error
        finally:
            if not self.lost():
                for actor in actors:
                    ray.kill(actor)
                remove_placement_group(group)

    def close(self) -> None:
        if self.lost():
            _node().kill_all_processes(check_alive=False)
            atexit.register(_end_at_once)
        else:
            self.drop_kept()
            if self.connected:
                ray.shutdown()
        self.own.close()

    def lost(self) -> str | None:
        """The process of a local Ray without which it is none, where that has died."""
        dead = _node().dead_processes() if self.local and ray.is_initialized() else []
        return next((name for name, _ in dead if name in VITAL), None)

    def check_alive(self) -> None:
        """Ray waits a minute for such a process, and ends this one then."""
        if name := self.lost():
            raise StageError(
                found=f"{name} of the local Ray has died",
                where=f"logs in {_node().get_session_dir_path()}/logs",
                do="look for too little memory, then run the same command again",
            )

    def drop_kept(self) -> None:
        while self.kept:
            ray.kill(self.kept.pop()[1])

    def actor(self, resources: Resources, need: dict[str, float], **options: Any) -> Any:
        """A new process, placed where `need` is free; Ray queues it until then."""
        env = {name: value for name, value in os.environ.items() if name.startswith("CLIPMILL_")}
        env |= dict.fromkeys(THREADS, str(resources.cpus))
        env |= {"PYTHONPATH": os.pathsep.join(_import_path())} | self.env
        return (
            ray.remote(_Worker)
            .options(
                num_cpus=need["CPU"],
                num_gpus=need.get("GPU", 0),
                memory=need["memory"],
                runtime_env={"env_vars": env},
                **options,
            )
            .remote()
        )

    def need(self, resources: Resources, beside: int = 1) -> dict[str, float]:
        """What one of `beside` workers asks of Ray; a local one takes what the machine has."""
        need: dict[str, float] = {"CPU": resources.cpus, "memory": resources.memory_gb * 2**30}
        if self.local:
            share = {name: self.total()[name] / beside for name in need}
            need["CPU"] = min(need["CPU"], math.floor(share["CPU"]) or share["CPU"])
            need["memory"] = min(need["memory"], math.floor(share["memory"]))
        return need | ({"GPU": resources.gpus} if resources.gpus else {})

    def lacks(self, need: dict[str, float]) -> bool:
        """Whether it can never be placed: a local Ray does not grow."""
        return self.local and any(self.total().get(name, 0) < need[name] for name in need)

    def no_room(self, need: dict[str, float], where: str) -> StageError:
        return StageError(
            found=f"no place for {need}; the nodes have {self.total()}",
            where=where,
            do="add a node that has these resources, or lower the stage's",
        )

    def total(self) -> dict[str, float]:
        """What all nodes have; of a cluster asked again each second, for nodes come and go."""
        if not (self.nodes_have and self.local) and time.monotonic() - self.asked_s > 1:
            self.nodes_have = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray
            self.asked_s = time.monotonic()
        return self.nodes_have


@dataclass(eq=False)
class _Actor:
    handle: Any
    state: State = "opening"
    step: int = -1
    item: Item | None = None
    started: set[int] = field(default_factory=set)
    born_s: float = field(default_factory=time.monotonic)
    since_s: float = field(default_factory=time.monotonic)  # in its state

    def enter(self, state: State) -> None:
        self.state, self.since_s = state, time.monotonic()

    def rests(self) -> bool:
        return self.state == "idle" and time.monotonic() - self.since_s > IDLE_S


@dataclass(eq=False)
class _Pool:
    resources: Resources
    need: dict[str, float]
    where: str
    queues: dict[int, deque[Item]]  # by step, the latest first
    actors: list[_Actor] = field(default_factory=list)
    early_deaths: int = 0
    early_death_s: float = -math.inf  # when the last of them was

    def waiting(self) -> int:
        return sum(map(len, self.queues.values()))

    def opening(self) -> list[_Actor]:
        return [actor for actor in self.actors if actor.state == "opening"]

    def up(self) -> list[_Actor]:
        return [actor for actor in self.actors if actor.state != "opening"]


class _Stream:
    """One call of `stream`: items between source and result, and the actors that carry them."""

    def __init__(self, executor: RayExecutor, steps: Sequence[Step], items: Iterable[Item]):
        self.executor, self.source = executor, iter(items)
        self.steps = [ray.put(step) for step in steps]  # stored once, however many actors read it
        self.inside = 0  # items taken from the source whose result is not out
        self.calls: dict[Any, tuple[_Pool, _Actor]] = {}  # by the reference of their answer
        self.pools: list[_Pool] = []
        for resources in dict.fromkeys(step.resources for step in steps):
            mine = {i: step for i, step in enumerate(steps) if step.resources == resources}
            where = "steps " + ", ".join(step.name for step in mine.values())
            need = executor.need(resources)
            if executor.lacks(need):
                raise executor.no_room(need, where)
            queues = {i: deque[Item]() for i in reversed(mine)}
            self.pools.append(_Pool(resources, need, where, queues))
        self.queues = {i: queue for pool in self.pools for i, queue in pool.queues.items()}

    def results(self) -> Iterator[Item]:
        self.adopt_kept()
        while True:
            self.feed()
            if not self.inside:
                return
            self.executor.check_alive()
            self.ask_for_actors()
            done, _ = ray.wait(list(self.calls), timeout=IDLE_S)
            for answer in done:
                result = self.take(answer)
                if result is not None:
                    self.feed()  # before the consumer takes its time
                    yield result

    def feed(self) -> None:
        """An item for every idle actor; the latest step first, so that results come early."""
        self.pull()
        for pool in self.pools:
            for actor in pool.actors:
                step = next((step for step, queue in pool.queues.items() if queue), None)
                if step is None:
                    break
                if actor.state == "idle":
                    actor.step, actor.item = step, pool.queues[step].popleft()
                    self.call(pool, actor)
                    self.pull()

    def pull(self) -> None:
        """As many items wait at the entrance as actors are up, while those inside are few."""
        up = sum(len(pool.up()) for pool in self.pools)
        ahead = min(max(1, up) - len(self.queues[0]), max(32, 8 * up) - self.inside)
        for item in islice(self.source, max(0, ahead)):
            self.queues[0].append(item)
            self.inside += 1

    def call(self, pool: _Pool, actor: _Actor) -> None:
        """Asks the actor for its next answer: that the step has started, or the item's result."""
        if actor.step in actor.started:
            actor.enter("running")
            answer = actor.handle.run.remote(actor.step, actor.item)
        else:
            actor.enter("starting")
            answer = actor.handle.start.remote(actor.step, self.steps[actor.step])
        self.calls[answer] = (pool, actor)

    def take(self, answer: Any) -> Item | None:
        """The result, if the answer is one and its step was the last."""
        pool, actor = self.calls.pop(answer)
        try:
            result: Item = ray.get(answer)
        except RayTaskError as error:
            raise _original(error) from error
        except DEATHS as error:
            self.bury(pool, actor, error)
            return None
        state, step = actor.state, actor.step
        if state == "starting":
            pool.early_deaths = 0
            actor.started.add(step)
            self.call(pool, actor)
            return None
        actor.item = None
        actor.enter("idle")
        if state == "opening":
            return None
        if step + 1 == len(self.steps):
            self.inside -= 1
            return result
        self.queues[step + 1].append(result)
        return None

    def bury(self, pool: _Pool, actor: _Actor, error: Exception) -> None:
        """Its item goes back to the head of the queue; a new actor comes by `ask_for_actors`."""
        self.drop(pool, actor)
        if actor.item is not None:
            pool.queues[actor.step].appendleft(actor.item)
        if actor.state != "running" and actor.born_s > pool.early_death_s:
            # Actors born before the last such death belong to it: a lost node takes many at once.
            pool.early_deaths, pool.early_death_s = pool.early_deaths + 1, time.monotonic()
        if pool.early_deaths >= EARLY_DEATHS and not any(a.started for a in pool.actors):
            raise StageError(
                found=f"workers die before they start: {_first_line(error)}",
                where=pool.where,
                do="see that the workers can import the stage and have the memory its models need",
            ) from error

    def ask_for_actors(self) -> None:
        """One actor for each pool, more where items wait, at most twice as many at a time.

        What is asked for may exceed what is free: that is how a cluster learns to grow. So that
        no pool waits for ever, actors at rest go where another pool's items lack room.
        """
        short = [pool for pool in self.pools if pool.waiting() and self.lacks_room(pool)]
        for pool in self.pools:
            opening, up = len(pool.opening()), len(pool.up())
            wanted = min(pool.waiting(), up) if up else int(pool.waiting() > 0 or not short)
            for _ in range(min(wanted - opening, self.executor.most_actors - opening - up)):
                actor = _Actor(self.executor.actor(pool.resources, pool.need))
                pool.actors.append(actor)
                self.calls[actor.handle.clear.remote()] = (pool, actor)
            if short and not pool.waiting():
                spare = [actor for actor in pool.actors if actor.rests() or actor in pool.opening()]
                if all(other.up() for other in short):  # they only want more: one, not the last
                    spare = spare[: int(up > 1)]
                for actor in spare:
                    self.drop(pool, actor)

    def lacks_room(self, pool: _Pool) -> bool:
        """Whether an actor was asked for and can't be placed beside those that are up."""
        if not pool.opening():
            return False
        asked_s = time.monotonic() - pool.opening()[0].since_s
        if asked_s > GIVE_UP_S and not any(other.up() for other in self.pools):
            raise self.executor.no_room(pool.need, pool.where)
        free = defaultdict(float, self.executor.total())
        for other in self.pools:
            for name, amount in other.need.items():
                free[name] -= amount * len(other.up())
        return asked_s > PLACING_S or any(free[name] < pool.need[name] for name in pool.need)

    def adopt_kept(self) -> None:
        """Kept actors are up at once; those of a profile that no step asks for end."""
        for pool in self.pools:
            for kept in [kept for kept in self.executor.kept if kept[0] == pool.resources]:
                self.executor.kept.remove(kept)
                pool.actors.append(_Actor(kept[1], state="idle"))
        self.executor.drop_kept()

    def drop(self, pool: _Pool, actor: _Actor) -> None:
        ray.kill(actor.handle)
        pool.actors.remove(actor)
        self.calls = {answer: who for answer, who in self.calls.items() if who[1] is not actor}

    def end(self) -> None:
        """Idle actors stay for the next stream, without their functions; the others end."""
        for pool in self.pools:
            for actor in list(pool.actors):
                if actor.state == "idle":
                    actor.handle.clear.remote()
                    self.executor.kept.append((pool.resources, actor.handle))
                else:
                    self.drop(pool, actor)


def _init(address: str | None, new: Mapping[str, Any]) -> None:
    """RecipeError where no Ray starts, or answers: its own init would ask for minutes."""
    # Ray prints what befalls its nodes, on standard output: our errors say what matters of it.
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        if address:
            is_named = address != "auto"
            _hear(address if is_named else services.canonicalize_bootstrap_address_or_die(address))
        ray.init(
            address=address or "local",
            namespace="clipmill",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **new,
        )
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise RecipeError(
            found=f"no Ray {'answers' if address else 'starts'}: {_first_line(error)}",
            where=f"--address {address}" if address else "--executor ray",
            do="give HOST:6379, where HOST is the head, or `auto` on one of its machines"
            if address
            else "look into /tmp/ray/session_latest/logs, or run without --executor",
        ) from None


def _hear(address: str) -> None:
    """OSError where nobody at the address greets as gRPC does: by HTTP/2's frame of settings."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S) as line:
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        if line.recv(9, socket.MSG_WAITALL)[3:4] != b"\x04":
            raise ConnectionError("what listens there is no Ray")


def _end_at_once() -> None:
    """Ends this process as failed: Ray's own way out waits for what has died, or crashes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _node() -> Any:
    return worker._global_node


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """A Ray that is started inside listens on loopback, to those who have its token: this process
    and its children."""
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # so named since Ray keeps to loopback there
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    before = {name: os.environ.get(name) for name in own}
    is_cluster = ray_constants.ENABLE_RAY_CLUSTER
    try:
        _set_environment(own)
        ray_constants.ENABLE_RAY_CLUSTER = False
        yield
    finally:
        _set_environment(before)
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")  # Ray reads its environment once, as it is imported
    AuthenticationTokenLoader.instance().reset_cache()


def _import_path() -> list[str]:
    """What this process put on its path beyond the interpreter's own folders.

    Packages stay behind: a worker finds them, and before the library they would hide parts of it.
    """
    own = tuple(map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")))
    mine = [path for path in sys.path if not path.startswith(own)]
    return [os.path.abspath(path) for path in mine if not path.endswith("-packages")]


def _original(error: RayTaskError) -> Exception:
    """What the function raised; a StageError where that, or the function, could not travel."""
    cause: Exception = error.cause
    if not isinstance(cause, RayError):
        return cause
    return StageError(
        found=str(cause),
        where="between a Ray worker and the driver",
        do="see that the workers can import the stage, and that what it raises pickles",
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
