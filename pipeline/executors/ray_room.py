"""Who gets room on Ray: pools of actors, one for each profile, and launches beside them."""

import math
import os
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from typing import Any, Literal

import ray

from clipmill.pipeline import own_code
from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.executors import Item, machine
from clipmill.pipeline.executors.ranks import as_rank, free_address
from clipmill.pipeline.executors.ray_session import Session
from clipmill.pipeline.executors.streams import TURN_S, Stream
from clipmill.pipeline.executors.telling import Board, connect
from clipmill.pipeline.executors.worker import Functions
from clipmill.pipeline.stage import Resources

IDLE_S = 0.5  # an actor without work this long goes, where another pool lacks room
KEPT_S = 10.0  # one of a profile that no open stream uses goes anyway
PLACING_S = 30.0  # an actor not up after this long lacks room, whatever the totals say
GIVE_UP_S = 900.0  # time for a cluster to grow by the node that is missing

State = Literal["opening", "starting", "running", "idle"]  # of an actor
Need = dict[str, float]  # amounts by Ray's name of the resource


class Worker(Functions):
    """An actor: one process of a pool."""

    def __init__(self, board: Any, own: own_code.Files) -> None:
        super().__init__()
        own_code.receive(own)  # before an item that is unpickled by it
        connect(board.leave.remote)

    def ready(self) -> None:
        """Answers once the process is up."""

    def address(self) -> str:
        """Where ranks may meet on this node."""
        return free_address(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray

    def launch(self, fn: Callable[[Rank], Mapping[str, Any]], rank: Rank) -> Mapping[str, Any]:
        return as_rank(fn, rank)


@dataclass(eq=False)
class Actor:
    handle: Any
    state: State = "opening"
    job: tuple[Stream, int, Item] | None = None  # step number and item in hand
    answer: Any = None  # what it was asked last
    leaves: bool = False  # once it is idle, for a pool without any
    started: set[str] = field(default_factory=set)  # ids of steps
    born_s: float = field(default_factory=time.monotonic)  # when it was asked for
    up_s: float = math.inf  # when it was placed: Ray may have queued it long
    since_s: float = field(default_factory=time.monotonic)  # in its state

    def enter(self, state: State) -> None:
        self.state, self.since_s = state, time.monotonic()

    def rests(self, how_long_s: float) -> bool:
        return self.state == "idle" and time.monotonic() - self.since_s > how_long_s


@dataclass(eq=False)
class Pool:
    """The actors of a profile, by state: what one item costs does not hang on how many they are."""

    resources: Resources
    need: Need
    opening: dict[Actor, None] = field(default_factory=dict)  # the oldest first
    up: dict[Actor, None] = field(default_factory=dict)
    idle: dict[Actor, None] = field(default_factory=dict)  # the one that rests longest first
    idle_by_step: dict[str, dict[Actor, None]] = field(default_factory=dict)  # that have started it
    early_death_s: float = -math.inf  # when one last died before it had started

    @property
    def actors(self) -> list[Actor]:
        return [*self.up, *self.opening]

    def enter(self, actor: Actor, state: State) -> None:
        """The actor's new state; it is up from the first that is not `opening`."""
        self._leave_idle(actor)
        if state == "opening":
            self.opening[actor] = None
        elif actor in self.opening:
            del self.opening[actor]
            self.up[actor] = None
        actor.enter(state)
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
        """An idle actor, one that has started the step before others; the one that rests least, so
        that the others may go."""
        return next(reversed(self.idle_by_step.get(step) or self.idle), None)

    def resting(self, how_long_s: float) -> Iterator[Actor]:
        """Idle actors that have been so for longer."""
        return takewhile(lambda actor: actor.rests(how_long_s), self.idle)


@dataclass(eq=False)
class Launch:
    need: Need  # of all ranks
    since_s: float = field(default_factory=time.monotonic)
    is_placed: bool = False


class Room:
    """Actors by profile, and launches, within what the nodes have."""

    def __init__(self, session: Session, workers: int | None, env: Mapping[str, str]) -> None:
        self.pools: dict[Resources, Pool] = {}
        self.launches: list[Launch] = []
        self.board: Any = None  # from the first worker on
        self._session = session
        self._most_actors = workers or sys.maxsize
        self._env = dict(env)
        self._gave_s = -math.inf  # when an actor last left for others
        self._leaving: set[Actor] = set()  # those that will
        self._nodes_have: Need = {}
        self._asked_s = -math.inf

    def share(
        self, used: Collection[Resources], items: Callable[[Resources], int]
    ) -> list[tuple[Pool, Actor]]:
        """New actors: one for each pool, more where items wait, at most twice as many at a time.

        What is asked for may exceed what is free: that is how a cluster learns to grow. So that
        no stream or launch waits for ever, actors go where others lack room: those at rest first.
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
        without = [pool for pool in short if not pool.up]
        launching = [launch for launch in self.launches if self._could_be_placed(launch)]
        is_wanted = bool(short) or any(
            self._is_short_of(launch.need, launch.since_s) for launch in launching
        )
        asked = [pool for pool in pools if waiting[pool] and pool.opening and not pool.up]
        for pool in pools:
            opening, up = len(pool.opening), len(pool.up)
            may_open = not without if up else self._fits_beside(pool, asked)
            if pool.resources in used and not launching and may_open:
                wanted = min(waiting[pool], up) if up else int(waiting[pool] > 0 or not short)
                for _ in range(min(wanted - opening, self._most_actors - opening - up)):
                    actor = Actor(self.new(pool.resources, pool.need))
                    pool.enter(actor, "opening")
                    opened.append((pool, actor))
            if pool.resources not in used:
                spare = list(pool.resting(0 if is_wanted else KEPT_S))
            elif is_wanted and not waiting[pool]:
                # Of others that only want more: one, not the last.
                most = None if without or launching else int(up > 1)
                spare = list(islice(chain(pool.resting(IDLE_S), pool.opening), most))
            else:  # no more for who has some
                spare = list(pool.opening) if launching or (without and up) else []
            for actor in spare:
                self.drop(pool, actor)
        if is_wanted and (without or launching):
            self._make_way([pool for pool in pools if pool.up and pool not in without])
        return opened

    def _make_way(self, givers: Sequence[Pool]) -> None:
        """One actor of the largest pool leaves after its item; the only one of a pool in turn."""
        if not givers or self._leaving:
            return
        giver = max(givers, key=lambda pool: len(pool.up))
        if len(giver.up) == 1:
            giver = min(givers, key=lambda pool: next(iter(pool.up)).up_s)
            if time.monotonic() - next(iter(giver.up)).up_s < TURN_S:
                return
        actor = next(iter(giver.idle or giver.up))
        actor.leaves = True
        self._leaving.add(actor)
        if actor.state == "idle":
            self.give(giver, actor)

    def give(self, pool: Pool, actor: Actor) -> None:
        """An actor ends, so that others get its room."""
        self.drop(pool, actor)
        self._gave_s = time.monotonic()

    def _fits_beside(self, pool: Pool, asked: Sequence[Pool]) -> bool:
        """Whether its first actor takes no room from those that were asked for before."""
        claims = [it.need for it in asked if it is not pool and _fits(it.need, self.total())]
        return not claims or _fits(pool.need, self._free(claims))

    def _lacks_room(self, pool: Pool) -> bool:
        """Whether an actor was asked for and can't be placed beside those that are up."""
        if not pool.opening:
            return False
        return self._is_short_of(pool.need, next(iter(pool.opening)).since_s)

    def is_given_up(self, since_s: float) -> bool:
        """Whether what was asked for so long ago is not to be waited for: nothing runs either."""
        return time.monotonic() - since_s > GIVE_UP_S and not self._is_busy()

    def _could_be_placed(self, launch: Launch) -> bool:
        """Whether only actors are in the way of a launch: not other launches, or missing nodes."""
        placed = [other.need for other in self.launches if other.is_placed]
        return not launch.is_placed and _fits(launch.need, _less(self.total(), placed))

    def _is_short_of(self, need: Need, since_s: float) -> bool:
        is_late = time.monotonic() - max(since_s, self._gave_s) > PLACING_S
        return is_late or not _fits(need, self._free())

    def _free(self, claimed: Sequence[Need] = ()) -> Need:
        """What the nodes have beyond actors that are up, placed launches, and what is claimed."""
        taken = [_times(len(pool.up), pool.need) for pool in self.pools.values()]
        taken += [launch.need for launch in self.launches if launch.is_placed]
        return _less(self.total(), [*taken, *claimed])

    def _is_busy(self) -> bool:
        """Whether something runs that will leave its room to others."""
        return any(pool.up for pool in list(self.pools.values())) or any(
            launch.is_placed for launch in list(self.launches)
        )

    def drop(self, pool: Pool, actor: Actor) -> None:
        ray.kill(actor.handle)
        pool.remove(actor)
        self._leaving.discard(actor)
        actor.answer = None

    def new(self, resources: Resources, need: Need, **options: Any) -> Any:
        """A new process, placed where `need` is free; Ray queues it until then."""
        env = {name: value for name, value in os.environ.items() if name.startswith("CLIPMILL_")}
        env |= machine.thread_limits(resources.cpus)
        env |= {"PYTHONPATH": os.pathsep.join(_import_path())} | self._env
        if self.board is None:
            own = {"env_vars": {"PYTHONPATH": env["PYTHONPATH"], "CUDA_VISIBLE_DEVICES": ""}}
            self.board = ray.remote(Board).options(num_cpus=0, runtime_env=own).remote()
        if not resources.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ""
        return (
            ray.remote(Worker)
            .options(
                num_cpus=need["CPU"],
                num_gpus=need.get("GPU", 0),
                memory=need["memory"],
                runtime_env={"env_vars": env},
                **options,
            )
            .remote(self.board, own_code.own())
        )

    def need(self, resources: Resources, beside: int = 1) -> Need:
        """What one of `beside` workers asks of Ray; of a local one, its share of the CPUs."""
        cpus = float(resources.cpus)
        if self._session.is_local:
            share = self.total()["CPU"] / beside
            cpus = min(cpus, math.floor(share) or share)
        need = {"CPU": cpus, "memory": resources.memory_gb * 2**30}
        return need | ({"GPU": resources.gpus} if resources.gpus else {})

    def refuse(self, resources: Resources, where: str, beside: int = 1) -> None:
        """A local Ray does not grow; for a cluster it is too early to say."""
        need = self.need(resources, beside)
        left = _less(self.total(), [need] * (beside - 1))
        if self._session.is_local and not _fits(need, left):
            raise self.no_room(resources, where, beside)

    def no_room(self, resources: Resources, where: str, beside: int = 1) -> StageError:
        asked, there = _in_words(self.need(resources, beside)), _in_words(self.total())
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


def _times(count: int, need: Need) -> Need:
    return {name: count * amount for name, amount in need.items()}


def _less(total: Need, taken: Sequence[Need]) -> Need:
    """What is left of the total."""
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
    """What this process put on its path beyond the interpreter's own folders.

    Packages stay behind: a worker finds them, and before the library they would hide parts of it.
    """
    own = tuple(map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")))
    mine = [path for path in machine.import_path() if not path.startswith(own)]
    return [os.path.abspath(path) for path in mine if not path.endswith("-packages")]
