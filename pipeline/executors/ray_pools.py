"""Manages actor pools on Ray, one for each resource profile, and launches beside them."""

import math
import os
import socket
import sys
import sysconfig
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clipmill.pipeline import own_code
from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.executors import Item, machine
from clipmill.pipeline.executors.ranks import as_rank, free_address
from clipmill.pipeline.executors.ray_session import Session
from clipmill.pipeline.executors.streams import TURN_S, Stream
from clipmill.pipeline.executors.telling import EventQueue, connect
from clipmill.pipeline.executors.worker import Functions
from clipmill.pipeline.stage import Resources

IDLE_S = 0.5  # after this long an idle actor ends if another pool lacks room
KEPT_S = 10.0  # after this long an idle actor ends if no open stream uses its profile
PLACING_S = 30.0  # an actor not up after this long lacks room, whatever the totals say
ID_LETTERS = 8  # of a node's id, which tell it from others
GIVE_UP_S = 900.0  # for a cluster to grow by a missing node

State = Literal["opening", "starting", "running", "idle"]  # of an actor
Need = dict[str, float]  # Ray's name of a resource -> amount


class Worker(Functions):
    """The process of an actor."""

    def __init__(self, events: Any, own: own_code.Files) -> None:
        super().__init__()
        own_code.receive(own)  # needed to unpickle items
        connect(events.leave.remote)

    def ready(self) -> str:
        """Returns, once the process is up, its machine: the host and the start of the node's id."""
        return f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:ID_LETTERS]}"

    def address(self) -> str:
        """Returns an address for the rendezvous of ranks on this node."""
        return free_address(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray

    def launch(self, fn: Callable[[Rank], Mapping[str, Any]], rank: Rank) -> Mapping[str, Any]:
        return as_rank(fn, rank)


@dataclass(eq=False)
class Actor:
    handle: Any
    state: State = "opening"
    job: tuple[Stream, int, Item] | None = None  # stream, step number and current item
    answer: Any = None  # the pending request
    machine: str = ""  # once it is up
    is_preempted: bool = False  # ends after its item, for a pool without an actor
    started: set[str] = field(default_factory=set)  # ids of steps
    born_s: float = field(default_factory=time.monotonic)  # when it was requested
    up_s: float = math.inf  # when it was placed, maybe long after
    since_s: float = field(default_factory=time.monotonic)  # start of its state


@dataclass(eq=False)
class Pool:
    """The actors of a resource profile, indexed by state so that dispatching an item is O(1)."""

    resources: Resources
    need: Need
    opening: dict[Actor, None] = field(default_factory=dict)  # oldest first
    up: dict[Actor, None] = field(default_factory=dict)
    idle: dict[Actor, None] = field(default_factory=dict)  # longest idle first
    idle_by_step: dict[str, dict[Actor, None]] = field(default_factory=dict)  # by started step
    early_death_s: float = -math.inf  # when an actor last died before it started a step

    @property
    def actors(self) -> list[Actor]:
        return [*self.up, *self.opening]

    def enter(self, actor: Actor, state: State) -> None:
        """Sets the actor's state; it is up from the first other than `opening`."""
        self._leave_idle(actor)
        if state == "opening":
            self.opening[actor] = None
        elif actor in self.opening:
            del self.opening[actor]
            self.up[actor] = None
        actor.state, actor.since_s = state, time.monotonic()
        if state == "idle":
            self.idle[actor] = None
            for step in actor.started:
                self.idle_by_step.setdefault(step, {})[actor] = None

    def remove(self, actor: Actor) -> None:
        self._leave_idle(actor)
        self.opening.pop(actor, None)
        self.up.pop(actor, None)

    def _leave_idle(self, actor: Actor) -> None:
        if actor in self.idle:
            del self.idle[actor]
            for step in actor.started:
                del self.idle_by_step[step][actor]
                if not self.idle_by_step[step]:
                    del self.idle_by_step[step]

    def next_for(self, step: str) -> Actor | None:
        """Returns the least idle actor, so others may end; best one with the step started."""
        return next(reversed(self.idle_by_step.get(step) or self.idle), None)

    def idle_for(self, duration_s: float) -> Iterator[Actor]:
        """Yields actors that have been idle for longer than `duration_s`."""
        now_s = time.monotonic()
        return takewhile(lambda actor: now_s - actor.since_s > duration_s, self.idle)


@dataclass(eq=False)
class Launch:
    name: str
    need: Need  # of all ranks
    since_s: float = field(default_factory=time.monotonic)
    is_placed: bool = False
    machines: list[str] = field(default_factory=list)  # of its ranks


class ActorPools:
    """The actor pool manager: actors by profile, and launches, within the nodes' resources."""

    def __init__(self, session: Session, workers: int | None, env: Mapping[str, str]) -> None:
        self.pools: dict[Resources, Pool] = {}
        self.launches: list[Launch] = []
        self.events: Any = None  # queue of events, from the first worker on
        self._birth = threading.Lock()
        self._session = session
        self._most_actors = workers or sys.maxsize
        self._env = dict(env)
        self._released_s = -math.inf  # when an actor last ended to make room
        self._preempted: set[Actor] = set()  # end after their item
        self._nodes_have: Need = {}
        self._asked_s = -math.inf
        self._looked_s = -math.inf  # when nodes were last searched for an idle GPU
        self._is_gpu_idle = False  # then actors without one are not requested
        self._to_clear: str | None = None  # id of a node

    def share(
        self, used: Collection[Resources], items: Callable[[Resources], int]
    ) -> list[tuple[Pool, Actor]]:
        """Requests and ends actors; returns the new ones.

        Each pool gets one, and more if items wait, at most doubling at a time. Requests may exceed
        free resources, which makes a cluster grow. So that no stream or launch waits for ever,
        actors end if others lack room, idle ones first.
        """
        opened = []
        self.pools = {
            r: pool for r, pool in self.pools.items() if pool.opening or pool.up or r in used
        }
        for resources in set(used) - self.pools.keys():
            self.pools[resources] = Pool(resources, self.need(resources))
        pools = list(self.pools.values())
        waiting = {pool: items(pool.resources) for pool in pools}
        short = [pool for pool in pools if waiting[pool] and self._lacks_room(pool)]
        starved = [pool for pool in short if not pool.up]
        launching = [launch for launch in self.launches if self._could_be_placed(launch)]
        needs_room = bool(short) or any(
            self._is_short_of(launch.need, launch.since_s) for launch in launching
        )
        pending = [pool for pool in pools if waiting[pool] and pool.opening and not pool.up]
        self._look_for_gpus([pool for pool in pools if waiting[pool]])
        for pool in pools:
            opening, up = len(pool.opening), len(pool.up)
            yields = self._is_gpu_idle and "GPU" not in pool.need
            # A first actor needs room beside other first ones; more wait for pools without any.
            may_open = not (starved or yields) if up else self._fits_beside(pool, pending)
            if pool.resources in used and not launching and may_open:
                # As many again as are up; a first one even before it has items, if nobody is short.
                due = min(waiting[pool], up) if up else int(waiting[pool] > 0 or not short)
                for _ in range(min(due - opening, self._most_actors - opening - up)):
                    actor = Actor(self.new(pool.resources, pool.need))
                    pool.enter(actor, "opening")
                    opened.append((pool, actor))
            if pool.resources not in used:
                spare = list(pool.idle_for(0 if needs_room else KEPT_S))
            elif needs_room and not waiting[pool]:
                # If the others have actors and only want more, one ends, never the last.
                most = None if starved or launching else int(up > 1)
                spare = list(islice(chain(pool.idle_for(IDLE_S), pool.opening), most))
            else:  # pools that have actors get no more while another has none
                spare = list(pool.opening) if launching or yields or (starved and up) else []
            for actor in spare:
                self.drop(pool, actor)
        if needs_room and (starved or launching):
            self._preempt([pool for pool in pools if pool.up and pool not in starved])
        elif self._to_clear:
            self._clear(self._to_clear)
            self._to_clear = None
        return opened

    def _preempt(self, pools: Sequence[Pool]) -> None:
        """Preempts one actor of the largest pool, to end after its item.

        If no pool has two, it is the actor that has been up longest, and at least TURN_S.
        """
        if not pools or self._preempted:
            return
        pool = max(pools, key=lambda pool: len(pool.up))
        if len(pool.up) == 1:
            pool = min(pools, key=lambda pool: next(iter(pool.up)).up_s)
            if time.monotonic() - next(iter(pool.up)).up_s < TURN_S:
                return
        self._end_soon(pool, next(iter(pool.idle or pool.up)))

    def _end_soon(self, pool: Pool, actor: Actor) -> None:
        """Ends an actor after its item."""
        actor.is_preempted = True
        self._preempted.add(actor)
        if actor.state == "idle":
            self.release(pool, actor)

    def _look_for_gpus(self, waiting: Sequence[Pool]) -> None:
        """Notes whether a GPU is idle for want of an actor, and the node to clear for it, if any.

        A node is cleared where actors without a GPU hold the CPUs or the memory beside a free one.
        A request as old as PLACING_S is left out: others than this run may hold its GPU.
        """
        now_s = time.monotonic()
        wanting = [
            pool
            for pool in waiting
            if "GPU" in pool.need
            and any(IDLE_S < now_s - actor.since_s < PLACING_S for actor in islice(pool.opening, 1))
        ]
        if not wanting:
            self._is_gpu_idle, self._to_clear = False, None
        elif not self._preempted and now_s - self._looked_s > IDLE_S:
            self._looked_s = now_s
            self._is_gpu_idle, self._to_clear = self._idle_gpu(wanting)

    def _idle_gpu(self, wanting: Sequence[Pool]) -> tuple[bool, str | None]:
        """Returns whether a node has a GPU for any of the pools, and the one to clear first."""
        left: dict[str, defaultdict[str, float]] = {
            node["NodeID"][:ID_LETTERS]: defaultdict(float, node["Resources"])
            for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray
            if node["Alive"]
        }
        held = [(actor.machine, pool.need) for pool in self.pools.values() for actor in pool.up]
        for launch in self.launches:
            share = _times(1 / max(1, len(launch.machines)), launch.need)
            held += [(where, share) for where in launch.machines]
        for where, need in held:
            if node := left.get(where[-ID_LETTERS:]):
                for name, amount in need.items():
                    node[name] -= amount
        is_idle = False
        for pool in wanting:
            free = {id: node for id, node in left.items() if node["GPU"] >= pool.need["GPU"]}
            is_idle |= bool(free)
            if free and not any(_fits(pool.need, node) for node in free.values()):
                return True, max(free, key=lambda id: free[id]["CPU"])
        return is_idle, None

    def _clear(self, node: str) -> None:
        """Ends one actor without a GPU there, an idle one first; of no pool the last."""
        there = [
            (pool, actor)
            for pool in self.pools.values()
            if "GPU" not in pool.need and len(pool.up) > 1
            for actor in pool.up
            if actor.machine.endswith(node)
        ]
        if there:
            self._end_soon(*min(there, key=lambda found: found[1].state != "idle"))

    def release(self, pool: Pool, actor: Actor) -> None:
        """Ends an actor to make room for others."""
        self.drop(pool, actor)
        self._released_s = time.monotonic()

    def _fits_beside(self, pool: Pool, pending: Sequence[Pool]) -> bool:
        """Returns whether its first actor leaves room for those requested before."""
        others = [other.need for other in pending if other is not pool]
        claims = [need for need in others if _fits(need, self.total())]
        return not claims or _fits(pool.need, self._free(claims))

    def _lacks_room(self, pool: Pool) -> bool:
        """Returns whether a requested actor can't be placed beside those that are up."""
        if not pool.opening:
            return False
        return self._is_short_of(pool.need, next(iter(pool.opening)).since_s)

    def is_given_up(self, since_s: float) -> bool:
        """Returns whether a request of `since_s` is too old, and nothing runs to make room."""
        # Asked in a launch's thread too.
        pools, launches = list(self.pools.values()), list(self.launches)
        is_busy = any(pool.up for pool in pools) or any(launch.is_placed for launch in launches)
        return time.monotonic() - since_s > GIVE_UP_S and not is_busy

    def _could_be_placed(self, launch: Launch) -> bool:
        """Returns whether a waiting launch would fit if all actors ended."""
        placed = [other.need for other in self.launches if other.is_placed]
        return not launch.is_placed and _fits(launch.need, _less(self.total(), placed))

    def _is_short_of(self, need: Need, since_s: float) -> bool:
        is_late = time.monotonic() - max(since_s, self._released_s) > PLACING_S
        return is_late or not _fits(need, self._free())

    def _free(self, claimed: Sequence[Need] = ()) -> Need:
        """Returns the nodes' resources minus actors that are up, placed launches and claims."""
        taken = [_times(len(pool.up), pool.need) for pool in self.pools.values()]
        taken += [launch.need for launch in self.launches if launch.is_placed]
        return _less(self.total(), [*taken, *claimed])

    def drop(self, pool: Pool, actor: Actor) -> None:
        ray.kill(actor.handle)
        pool.remove(actor)
        self._preempted.discard(actor)
        actor.answer = None

    def new(self, resources: Resources, need: Need, **options: Any) -> Any:
        """Requests a new process on a node where `need` is free; Ray queues it until then."""
        env = self._environment(resources)
        with self._birth:  # a launch's thread may be here, too
            if self.events is None:
                own = {"env_vars": {"PYTHONPATH": env["PYTHONPATH"], "CUDA_VISIBLE_DEVICES": ""}}
                queue = ray.remote(EventQueue).options(num_cpus=0, max_restarts=-1, runtime_env=own)
                self.events = queue.remote()  # on another node where its own is lost
        return (
            ray.remote(Worker)
            .options(
                num_cpus=need["CPU"],
                num_gpus=need.get("GPU", 0),
                memory=need["memory"],
                runtime_env={"env_vars": env},
                **options,
            )
            .remote(self.events, own_code.own())
        )

    def on_machines(self, fn: Callable[[], str]) -> dict[str, str]:
        """Returns what fn returns on each node that answers in time, by its name."""
        task = ray.remote(num_cpus=0, max_retries=0)(called)
        environment = {"env_vars": self._environment(Resources(cpus=1))}
        calls = {}
        for node in ray.nodes():  # type: ignore[no-untyped-call]  # Ray
            if node["Alive"]:
                place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                options = {"runtime_env": environment, "scheduling_strategy": place}
                name = f"{node['NodeManagerHostname']}/{node['NodeID'][:ID_LETTERS]}"
                calls[task.options(**options).remote(fn)] = name
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=PLACING_S)
        found = {}
        for answer in done:
            with suppress(RayError):  # a node that has gone
                found[calls[answer]] = ray.get(answer)
        return found

    def _environment(self, resources: Resources) -> dict[str, str]:
        """Returns the variables of a worker's process."""
        env = {name: value for name, value in os.environ.items() if name.startswith("CLIPMILL_")}
        env |= machine.thread_limits(resources.cpus)
        env |= {"PYTHONPATH": os.pathsep.join(_import_path())} | self._env
        return env if resources.gpus else env | {"CUDA_VISIBLE_DEVICES": ""}

    def need(self, resources: Resources, beside: int = 1) -> Need:
        """Returns the request of one of `beside` workers; on a local Ray, its share of the CPUs."""
        cpus = float(resources.cpus)
        if self._session.is_local:
            share = self.total()["CPU"] / beside
            cpus = min(cpus, math.floor(share) or share)
        need = {"CPU": cpus, "memory": resources.memory_gb * 2**30}
        return need | ({"GPU": resources.gpus} if resources.gpus else {})

    def refuse(self, resources: Resources, where: str, beside: int = 1) -> None:
        """Raises StageError if a local Ray, which cannot grow, has no room for the workers."""
        need = self.need(resources, beside)
        left = _less(self.total(), [need] * (beside - 1))
        if self._session.is_local and not _fits(need, left):
            raise self.no_room(resources, where, beside)

    def no_room(self, resources: Resources, where: str, beside: int = 1) -> StageError:
        need, total = _in_words(self.need(resources, beside)), _in_words(self.total())
        workers = "a worker" if beside == 1 else f"{beside} workers, each"
        return StageError(
            found=f"no place for {workers} with {need}: the nodes have {total}",
            where=where,
            do="lower what the stage asks for, or add a node that has it",
        )

    def total(self) -> Need:
        """Returns the resources of all nodes; read again each second, as a cluster may change."""
        is_known = self._nodes_have and self._session.is_local
        if not is_known and time.monotonic() - self._asked_s > 1:
            self._nodes_have = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray
            self._asked_s = time.monotonic()
        return self._nodes_have


def called(fn: Callable[[], str]) -> str:
    return fn()


def _times(count: float, need: Need) -> Need:
    return {name: count * amount for name, amount in need.items()}


def _less(total: Need, taken: Sequence[Need]) -> Need:
    """Returns the rest of the total."""
    left = defaultdict(float, total)
    for need in taken:
        for name, amount in need.items():
            left[name] -= amount
    return left


def _fits(need: Need, free: Need) -> bool:
    return all(free.get(name, 0) >= amount for name, amount in need.items())


def _in_words(amounts: Need) -> str:
    gb, gpus = amounts.get("memory", 0) / 2**30, amounts.get("GPU", 0)
    return f"{amounts.get('CPU', 0):g} CPUs, {gb:.1f} GB and {gpus:g} GPUs"


def _import_path() -> list[str]:
    """Returns the entries of sys.path beyond the interpreter's own folders.

    Workers have package folders anyway; in front of the standard library these would hide parts.
    """
    own = tuple(map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")))
    mine = [path for path in machine.import_path() if not path.startswith(own)]
    return [os.path.abspath(path) for path in mine if not path.endswith("-packages")]
