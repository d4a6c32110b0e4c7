"""Work on Ray: pools of Ray Core actors, one per resource profile, shared by all streams.

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

import math
import os
import queue
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import ray
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

from pipeline.errors import StageError
from pipeline.executors import Item, Step, machine
from pipeline.executors.ray_session import Session, first_line
from pipeline.executors.streams import TURN_S, Dispatcher, Stream, stopped
from pipeline.executors.worker import Functions
from pipeline.stage import Resources

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)
IDLE_S = 0.5  # an actor without work this long goes, where another pool lacks room
KEPT_S = 10.0  # one of a profile that no open stream uses goes anyway
PLACING_S = 30.0  # an actor not up after this long lacks room, whatever the totals say
GIVE_UP_S = 900.0  # time for a cluster to grow by the node that is missing
EARLY_DEATHS = 3  # generations that died before one had started: none ever will

State = Literal["opening", "starting", "running", "idle"]  # of an actor
Need = dict[str, float]  # amounts by Ray's name of the resource


class _Worker(Functions):
    """An actor: one process of a pool."""

    def ready(self) -> None:
        """Answers once the process is up."""

    def launch(
        self, fn: Callable[[int, int], Mapping[str, Any]], rank: int, workers: int
    ) -> Mapping[str, Any]:
        return fn(rank, workers)


@dataclass(eq=False)
class _Actor:
    handle: Any
    state: State = "opening"
    job: tuple[Stream, int, Item] | None = None  # step number and item in hand
    answer: Any = None  # what it was asked last
    leaves: bool = False  # once it is idle, for a pool without any
    started: set[str] = field(default_factory=set)  # ids of steps
    born_s: float = field(default_factory=time.monotonic)
    since_s: float = field(default_factory=time.monotonic)  # in its state

    def enter(self, state: State) -> None:
        self.state, self.since_s = state, time.monotonic()

    def rests(self, how_long_s: float) -> bool:
        return self.state == "idle" and time.monotonic() - self.since_s > how_long_s


@dataclass(eq=False)
class _Pool:
    resources: Resources
    need: Need
    actors: list[_Actor] = field(default_factory=list)
    early_death_s: float = -math.inf  # when one last died before it had started

    def opening(self) -> list[_Actor]:
        return [actor for actor in self.actors if actor.state == "opening"]

    def up(self) -> list[_Actor]:
        return [actor for actor in self.actors if actor.state != "opening"]


@dataclass(eq=False)
class _Launch:
    need: Need  # of all ranks
    since_s: float = field(default_factory=time.monotonic)
    is_placed: bool = False


class RayExecutor(Dispatcher):
    """Runs on a local Ray that it starts (`address=None`) or on a cluster that it leaves running.

    `workers` bounds the actors of a profile; a local Ray has as many CPUs, else the machine's.
    `env` reaches every worker, as do CLIPMILL_* and the import path of this process.
    """

    side_by_side = True

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        env: Mapping[str, str] | None = None,
    ):
        super().__init__()
        self.most_actors = workers or sys.maxsize
        self.env = dict(env or {})
        self._session = Session(address, workers)
        self._pools: dict[Resources, _Pool] = {}
        self._launches: list[_Launch] = []
        self._gave_s = -math.inf  # when an actor last left for others
        self._nodes_have: Need = {}
        self._asked_s = -math.inf

    def launch(
        self, fn: Callable[[int, int], Mapping[str, Any]], workers: int, resources: Resources
    ) -> list[Mapping[str, Any]]:
        where = f"launch of {workers} workers"
        self._refuse(resources, where, workers)
        need = self._need(resources, workers)
        launch = _Launch({name: amount * workers for name, amount in need.items()})
        self._tell(lambda: self._launches.append(launch))
        group = placement_group([need] * workers, strategy="PACK")
        actors: list[Any] = []
        try:
            while not group.wait(IDLE_S):
                self._check_alive()
                if time.monotonic() - launch.since_s > GIVE_UP_S and not self._is_busy():
                    raise self._no_room(resources, where, workers)
            launch.is_placed = True
            for rank in range(workers):
                place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
                actors.append(self._new(resources, need, scheduling_strategy=place))
            calls = [a.launch.remote(fn, rank, workers) for rank, a in enumerate(actors)]
            waiting = calls
            while waiting:  # the first failure, whichever rank has it
                done, waiting = ray.wait(waiting, timeout=IDLE_S)
                ray.get(done)
                self._check_alive()
            return list(ray.get(calls))
        except RayTaskError as error:
            raise _original(error) from error
        except DEATHS as error:
            raise StageError(
                found=f"a rank died: {first_line(error)}",
                where=where,
                do="run again: it goes on from what it last stored; if it dies again, raise memory",
            ) from error
        finally:
            self._tell(lambda: self._launches.remove(launch))
            if self._session.is_usable():
                for actor in actors:
                    ray.kill(actor)
                remove_placement_group(group)

    def close(self) -> None:
        super().close()
        self._session.close()

    def _check_alive(self) -> None:
        if self._closed:
            raise stopped()
        self._session.check_alive()

    # Turns

    def _turn(self) -> None:
        if self._streams or self._launches:
            self._check_alive()
        self._feed()
        self._share_room()
        with suppress(queue.Empty):
            self._commands.get(timeout=IDLE_S)()
            self._obey()

    def _ring(self) -> None:
        """`_turn` waits for commands alone: answers of actors come as such."""

    def _feed(self) -> None:
        for stream, number in self._by_turn():
            pool = self._pools.get(stream.steps[number].resources)
            idle = [actor for actor in pool.actors if actor.state == "idle"] if pool else []
            if pool and idle:
                actor = max(idle, key=lambda actor: stream.ids[number] in actor.started)
                actor.job = (stream, number, stream.begin(number))
                self._call(pool, actor)
                return self._feed()  # whose turn it is has changed
        return None

    def _call(self, pool: _Pool, actor: _Actor) -> None:
        """Asks the actor for its next answer: that it is up, has started a step, or the result."""
        if actor.job is None:
            answer = actor.handle.ready.remote()
        else:
            stream, number, item = actor.job
            step = stream.ids[number]
            if step in actor.started:
                actor.enter("running")
                answer = actor.handle.run.remote(step, item)
            else:
                actor.enter("starting")
                used = self._open_ids()
                actor.started &= used
                answer = actor.handle.start.remote(step, stream.packed[number], used)
        actor.answer = answer
        answer.future().add_done_callback(
            lambda _: self._commands.put(partial(self._take, pool, actor, answer))
        )

    def _take(self, pool: _Pool, actor: _Actor, answer: Any) -> None:
        if actor.answer is not answer:
            return  # it was ended
        try:
            result: Item = ray.get(answer)
        except RayTaskError as error:
            assert actor.job is not None
            stream, _, _ = actor.job
            failed = _original(error)
            failed.__cause__ = error
            self._free(pool, actor)
            stream.fail(failed)
            return
        except DEATHS as error:
            self._bury(pool, actor, error)
            return
        state, job = actor.state, actor.job
        if job is None:
            actor.enter("idle")
        elif state == "starting":
            stream, number, _ = job
            stream.early_deaths[number] = 0
            actor.started.add(stream.ids[number])
            self._call(pool, actor)
        else:
            stream, number, _ = job
            self._free(pool, actor)
            stream.passed(number, result)

    def _free(self, pool: _Pool, actor: _Actor) -> None:
        """The actor has answered for its item."""
        assert actor.job is not None
        actor.job[0].busy -= 1
        actor.job = None
        actor.enter("idle")
        if actor.leaves:
            self._drop(pool, actor)
            self._gave_s = time.monotonic()

    def _bury(self, pool: _Pool, actor: _Actor, error: Exception) -> None:
        """Puts a dead actor's item at the head of the queue; `_share_room` starts a new actor."""
        self._drop(pool, actor)
        concerned = self._users(pool)
        if actor.job is not None:
            stream, number, item = actor.job
            stream.busy -= 1
            stream.queues[number].appendleft(item)
            concerned = [(stream, number)]
        if actor.state == "running" or actor.born_s <= pool.early_death_s:
            return  # actors born before the last early death belong to it: a lost node takes many
        pool.early_death_s = time.monotonic()
        for stream, number in concerned:
            stream.early_deaths[number] += 1
            is_started = any(stream.ids[number] in other.started for other in pool.actors)
            if stream.early_deaths[number] >= EARLY_DEATHS and not is_started:
                found = f"workers die before they start: {first_line(error)}"
                do = "see that they can import the stage and have the memory its models need"
                stream.fail(StageError(found, f"step {stream.steps[number].name}", do))

    def _users(self, pool: _Pool) -> list[tuple[Stream, int]]:
        return [
            (stream, number)
            for stream in self._streams
            for number, step in enumerate(stream.steps)
            if step.resources == pool.resources
        ]

    # Actors

    def _share_room(self) -> None:
        """One actor for each pool, more where items wait, at most twice as many at a time.

        What is asked for may exceed what is free: that is how a cluster learns to grow. So that
        no stream or launch waits for ever, actors go where others lack room: those at rest first.
        """
        used = {step.resources for stream in self._streams for step in stream.steps}
        self._pools = {r: pool for r, pool in self._pools.items() if pool.actors or r in used}
        for resources in used - self._pools.keys():
            self._pools[resources] = _Pool(resources, self._need(resources))
        pools = list(self._pools.values())
        waiting = {pool: self._waiting(pool.resources) for pool in pools}
        short = [pool for pool in pools if waiting[pool] and self._lacks_room(pool)]
        without = [pool for pool in short if not pool.up()]
        launching = [launch for launch in self._launches if self._could_be_placed(launch)]
        is_wanted = bool(short) or any(
            self._is_short_of(launch.need, launch.since_s) for launch in launching
        )
        for pool in pools:
            opening, up = len(pool.opening()), len(pool.up())
            if pool.resources in used and not launching and not (without and up):
                wanted = min(waiting[pool], up) if up else int(waiting[pool] > 0 or not short)
                for _ in range(min(wanted - opening, self.most_actors - opening - up)):
                    actor = _Actor(self._new(pool.resources, pool.need))
                    pool.actors.append(actor)
                    self._call(pool, actor)
            if pool.resources not in used:
                spare = [a for a in pool.actors if a.rests(0 if is_wanted else KEPT_S)]
            elif is_wanted and not waiting[pool]:
                spare = [a for a in pool.actors if a.rests(IDLE_S) or a.state == "opening"]
                if not (without or launching):  # they only want more: one, not the last
                    spare = spare[: int(up > 1)]
            else:
                spare = []
            for actor in spare:
                self._drop(pool, actor)
        if is_wanted and (without or launching):
            self._make_way([pool for pool in pools if pool.up() and pool not in without])

    def _make_way(self, givers: Sequence[_Pool]) -> None:
        """One actor of the largest pool leaves after its item; the only one of a pool in turn."""
        if not givers or any(actor.leaves for pool in givers for actor in pool.actors):
            return
        giver = max(givers, key=lambda pool: len(pool.up()))
        if len(giver.up()) == 1:
            giver = min(givers, key=lambda pool: pool.up()[0].born_s)
            if time.monotonic() - giver.up()[0].born_s < TURN_S:
                return
        actor = min(giver.up(), key=lambda actor: actor.state != "idle")
        actor.leaves = True
        if actor.state == "idle":
            self._drop(giver, actor)
            self._gave_s = time.monotonic()

    def _lacks_room(self, pool: _Pool) -> bool:
        """Whether an actor was asked for and can't be placed beside those that are up."""
        if not pool.opening():
            return False
        since_s = pool.opening()[0].since_s
        if time.monotonic() - since_s > GIVE_UP_S and not self._is_busy():
            for stream, number in self._users(pool):
                stream.fail(self._no_room(pool.resources, f"step {stream.steps[number].name}"))
        return self._is_short_of(pool.need, since_s)

    def _could_be_placed(self, launch: _Launch) -> bool:
        """Whether only actors are in the way of a launch: not other launches, or missing nodes."""
        placed = [other.need for other in self._launches if other.is_placed]
        left = _less(self.total(), [*placed, launch.need])
        return not launch.is_placed and all(amount >= 0 for amount in left.values())

    def _is_short_of(self, need: Need, since_s: float) -> bool:
        taken = [pool.need for pool in self._pools.values() for _ in pool.up()]
        taken += [launch.need for launch in self._launches if launch.is_placed]
        free = _less(self.total(), taken)
        is_late = time.monotonic() - max(since_s, self._gave_s) > PLACING_S
        return is_late or any(free[name] < need[name] for name in need)

    def _is_busy(self) -> bool:
        """Whether something runs that will leave its room to others."""
        return any(pool.up() for pool in list(self._pools.values())) or any(
            launch.is_placed for launch in list(self._launches)
        )

    def _drop(self, pool: _Pool, actor: _Actor) -> None:
        ray.kill(actor.handle)
        pool.actors.remove(actor)
        actor.answer = None

    def _end_workers_of(self, stream: Stream | None) -> None:
        if not self._session.is_usable():
            self._pools.clear()
        for pool in self._pools.values():
            for actor in list(pool.actors):
                if stream is None or (actor.job and actor.job[0] is stream):
                    self._drop(pool, actor)

    def _new(self, resources: Resources, need: Need, **options: Any) -> Any:
        """A new process, placed where `need` is free; Ray queues it until then."""
        env = {name: value for name, value in os.environ.items() if name.startswith("CLIPMILL_")}
        env |= machine.thread_limits(resources.cpus)
        env |= {"PYTHONPATH": os.pathsep.join(_import_path())} | self.env
        if not resources.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ""
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

    # Resources

    def _pack(self, step: Step) -> Any:
        return ray.put(step.start)  # stored once, however many actors read it

    def _most_inside(self, stream: Stream) -> int:
        return max(32, 8 * sum(len(pool.up()) for pool in list(self._pools.values())))

    def _need(self, resources: Resources, beside: int = 1) -> Need:
        """What one of `beside` workers asks of Ray; of a local one, its share of the CPUs."""
        cpus = float(resources.cpus)
        if self._session.is_local:
            share = self.total()["CPU"] / beside
            cpus = min(cpus, math.floor(share) or share)
        need = {"CPU": cpus, "memory": resources.memory_gb * 2**30}
        return need | ({"GPU": resources.gpus} if resources.gpus else {})

    def _refuse(self, resources: Resources, where: str, beside: int = 1) -> None:
        """A local Ray does not grow; for a cluster it is too early to say."""
        need = self._need(resources, beside)
        left = _less(self.total(), [need] * beside)
        if self._session.is_local and any(left[name] < 0 for name in need):
            raise self._no_room(resources, where, beside)

    def _no_room(self, resources: Resources, where: str, beside: int = 1) -> StageError:
        asked, there = _in_words(self._need(resources, beside)), _in_words(self.total())
        workers = "a worker" if beside == 1 else f"{beside} workers, each"
        return StageError(
            found=f"no place for {workers} with {asked}: the nodes have {there}",
            where=where,
            do="lower what the stage asks for, or add a node that has it",
        )

    def total(self) -> Need:
        """What all nodes have; of a cluster asked again each second, for nodes come and go."""
        is_known = self._nodes_have and self._session.is_local
        if not is_known and time.monotonic() - self._asked_s > 1:
            self._nodes_have = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray
            self._asked_s = time.monotonic()
        return self._nodes_have


def _less(total: Need, taken: Sequence[Need]) -> Need:
    """What is left of the total."""
    left = defaultdict(float, total)
    for need in taken:
        for name, amount in need.items():
            left[name] -= amount
    return left


def _in_words(amounts: Need) -> str:
    gb, gpus = amounts.get("memory", 0) / 2**30, amounts.get("GPU", 0)
    return f"{amounts.get('CPU', 0):g} CPUs, {gb:.1f} GB and {gpus:g} GPUs"


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
