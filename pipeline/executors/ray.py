"""Runs work on Ray: pools of Ray Core actors, one per resource profile, shared by all streams.

On Ray Core, not Ray Data, which takes a list and makes all blocks before the first runs: its first
result takes longer with more items; here items are drawn as actors take them. 10,000 empty items
took 13 s, and 137 s by Ray Data (Ray 2.60); whole runs: python -m tests.benchmarks.ray_data.

An actor has one item at a time: its death names that item, and no other was queued behind it.
"""

import queue
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

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

from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.errors import RankDiedError, RankLostError, StageError
from clipmill.pipeline.executors import Item, Step
from clipmill.pipeline.executors.ranks import Ends
from clipmill.pipeline.executors.ray_pools import IDLE_S, Actor, ActorPools, Launch, Pool
from clipmill.pipeline.executors.ray_session import Session, first_line
from clipmill.pipeline.executors.streams import Dispatcher, Stream, stopped
from clipmill.pipeline.executors.telling import Notice
from clipmill.pipeline.stage import Resources

NODE_DIED = "node has died"  # in Ray's message: an actor's error has no type for it
# In Ray's message about an actor that it ended: its id, the bytes it declared, the GB it used.
SELECTED = tuple(
    re.compile(f"Selected to kill: .*{pattern}")
    for pattern in (r"Actor\((\w+)\)", r"memory: ([\d.e+]+)", r"memory used=([\d.]+)GB")
)
DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)
ECHO_S = 60.0  # within it, the death of a rank or node behind another rank's error is noticed
ASK_S = 1.0  # between two requests for events
EARLY_DEATHS = 3  # generations of actors that died before starting a step, until the stream fails


class RayExecutor(Dispatcher):
    """An executor on a local Ray that it starts (`address=None`), or on a cluster that stays up.

    `workers` bounds the actors of a profile; it is also a local Ray's number of CPUs, by default
    the machine's. Workers get `env`, CLIPMILL_* variables and the import path of this process.
    """

    side_by_side = True

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        env: Mapping[str, str] | None = None,
    ):
        super().__init__()
        self._session = Session(address, workers)
        self._actors = ActorPools(self._session, workers, env or {})
        self._lost = {node["NodeID"] for node in lost_nodes()}
        self._news: Any = None  # the pending request for events
        self._asked_s = 0.0

    def launch(
        self, fn: Callable[[Rank], Mapping[str, Any]], workers: int, resources: Resources
    ) -> list[Mapping[str, Any]]:
        where = f"launch of {workers} workers"
        self._refuse(resources, where, workers)
        need = self._actors.need(resources, workers)
        launch = Launch(where, {name: amount * workers for name, amount in need.items()})
        self._tell(lambda: self._actors.launches.append(launch))
        group = placement_group([need] * workers, strategy="PACK")
        actors: list[Any] = []
        try:
            while not group.wait(IDLE_S):
                self._check_alive()
                if self._actors.is_given_up(launch.since_s):
                    raise self._actors.no_room(resources, where, workers)
            launch.is_placed = True
            for rank in range(workers):
                place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
                actors.append(self._actors.new(resources, need, scheduling_strategy=place))
            (address,) = self._ended({0: actors[0].address.remote()})
            launch.machines = self._ended({i: a.ready.remote() for i, a in enumerate(actors)})
            ranks = [Rank(rank=i, of=workers, rendezvous=address) for i in range(workers)]
            calls = [a.launch.remote(fn, r) for a, r in zip(actors, ranks, strict=True)]
            return self._ended(dict(enumerate(calls)))
        except DEATHS as error:
            died = RankLostError if died_with_machine(error) else RankDiedError
            raise died(
                found=f"a rank of {workers} died: {first_line(error)}",
                where=where,
                do="look for a crash or too little memory, then run again",
            ) from error
        finally:
            self._tell(lambda: self._actors.launches.remove(launch))
            if self._session.is_usable():
                for actor in actors:
                    ray.kill(actor)
                remove_placement_group(group)

    def _holdings(self) -> Iterator[tuple[str, str, float, float]]:
        for pool in list(self._actors.pools.values()):
            cpus, gpus = pool.need["CPU"], pool.need.get("GPU", 0)
            for actor in list(pool.up):
                job = actor.job
                yield actor.machine, job[0].steps[job[1]].name if job else "", cpus, gpus
        for launch in list(self._actors.launches):
            for machine in launch.machines:
                of_all = (launch.need.get(name, 0) for name in ("CPU", "GPU"))
                cpus, gpus = (amount / len(launch.machines) for amount in of_all)
                yield machine, launch.name, cpus, gpus

    def on_machines(self, fn: Callable[[], str]) -> dict[str, str]:
        return {} if self._session.is_local else self._actors.on_machines(fn)

    def close(self) -> None:
        super().close()
        self._session.close()

    def _ended(self, calls: Mapping[int, Any]) -> list[Any]:
        """Returns the results of the calls, by rank."""
        ends, rank_of = Ends(len(calls), ECHO_S), {call: rank for rank, call in calls.items()}
        waiting = list(rank_of)
        while (results := ends.results()) is None:
            done, waiting = ray.wait(waiting, timeout=IDLE_S)
            for call in done:
                try:
                    ends.add(rank_of[call], ray.get(call))
                except RayTaskError as error:
                    ends.add(rank_of[call], _original(error))
            self._check_alive()
        return results

    def _check_alive(self) -> None:
        if self._closed:
            raise stopped()
        self._session.check_alive()

    # Scheduling

    def _turn(self) -> None:
        if self._streams or self._actors.launches:
            self._check_alive()
        while self._feed_one():
            pass
        self._share_resources()
        self._listen()
        with suppress(queue.Empty):
            self._commands.get(timeout=IDLE_S)()
            self._obey()

    def _listen(self) -> None:
        """Passes on events of workers that have arrived, without waiting for any."""
        with suppress(RayError):  # the event queue has died: events are lost, but no work
            if self._news is not None and ray.wait([self._news], timeout=0)[0]:
                taken, self._news = self._news, None
                for message in ray.get(taken):
                    self.on_told(message)
            is_time = time.monotonic() - self._asked_s >= ASK_S
            if is_time and self._actors.events is not None:
                self._asked_s = time.monotonic()
                self._name_lost_nodes()
                if self._news is None:
                    self._news = self._actors.events.take.remote()

    def _ring(self) -> None:
        """Does nothing: `_turn` waits for commands only, and actors' answers come as commands."""

    def _feed_one(self) -> bool:
        """Gives one item to an idle actor; returns False if none fits."""
        for stream, number in self._by_turn():
            pool = self._actors.pools.get(stream.steps[number].resources)
            if pool and (actor := pool.next_for(stream.ids[number])):
                actor.job = (stream, number, stream.begin(number))
                self._call(pool, actor)
                return True
        return False

    def _share_resources(self) -> None:
        used = {step.resources for stream in self._streams for step in stream.steps}
        for pool, actor in self._actors.share(used, self._waiting):
            self._call(pool, actor)
        for pool in self._actors.pools.values():
            if any(self._actors.is_given_up(actor.since_s) for actor in islice(pool.opening, 1)):
                for stream, number in self._users(pool):
                    where = f"step {stream.steps[number].name}"
                    stream.fail(self._actors.no_room(pool.resources, where))

    def _call(self, pool: Pool, actor: Actor) -> None:
        """Requests the actor's next answer: that it is up, has started a step, or a result."""
        if actor.job is None:
            answer = actor.handle.ready.remote()
        else:
            stream, number, item = actor.job
            step = stream.ids[number]
            if step in actor.started:
                pool.enter(actor, "running")
                answer = actor.handle.run.remote(step, item)
            else:
                pool.enter(actor, "starting")
                used = self._open_ids()
                actor.started &= used
                answer = actor.handle.start.remote(step, stream.packed[number], used)
        actor.answer = answer
        answer.future().add_done_callback(
            lambda _: self._commands.put(partial(self._take, pool, actor, answer))
        )

    def _take(self, pool: Pool, actor: Actor, answer: Any) -> None:
        if actor.answer is not answer:
            return  # the actor was ended meanwhile
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
        if actor.job is None:
            pool.enter(actor, "idle")
            actor.up_s, actor.machine = actor.since_s, result
            return
        stream, number, _ = actor.job
        if actor.state == "starting":
            stream.early_deaths[number] = 0
            actor.started.add(stream.ids[number])
            self._call(pool, actor)
        else:
            self._free(pool, actor)
            stream.passed(number, result)

    def _free(self, pool: Pool, actor: Actor) -> None:
        """Makes an actor idle after its item; a preempted one ends."""
        assert actor.job is not None
        actor.job[0].busy -= 1
        actor.job = None
        pool.enter(actor, "idle")
        if actor.is_preempted:
            self._actors.release(pool, actor)

    def _bury(self, pool: Pool, actor: Actor, error: Exception) -> None:
        """Puts a dead actor's item at the head of the queue; a new actor starts later."""
        self._actors.drop(pool, actor)
        affected = self._users(pool)
        if actor.job is not None:
            stream, number, item = actor.job
            stream.busy -= 1
            ended = why_ended(error, actor.handle._actor_id.hex())
            if hasattr(item, "ended"):
                item.ended = ended or ""
            stream.again(number, item, is_own=ended is not None)
            affected = [(stream, number)]
        if actor.state == "running" or actor.born_s <= pool.early_death_s:
            return  # actors older than the last early death count with it, as a lost node ends many
        pool.early_death_s = time.monotonic()
        for stream, number in affected:
            stream.early_deaths[number] += 1
            is_started = any(stream.ids[number] in other.started for other in pool.actors)
            if stream.early_deaths[number] >= EARLY_DEATHS and not is_started:
                found = f"workers die before they start: {first_line(error)}"
                do = "see that they can import the stage and have the memory its models need"
                stream.fail(StageError(found, f"step {stream.steps[number].name}", do))

    def _name_lost_nodes(self) -> None:
        """Says once of each node that went away."""
        for node in lost_nodes():
            if node["NodeID"] not in self._lost:
                self._lost.add(node["NodeID"])
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                text = f"lost node {node['NodeID'][:8]} on {name}: others do what it had in hand"
                self.on_told(Notice(text))

    def _users(self, pool: Pool) -> list[tuple[Stream, int]]:
        return [
            (stream, number)
            for stream in self._streams
            for number, step in enumerate(stream.steps)
            if step.resources == pool.resources
        ]

    # Workers

    def _refuse(self, resources: Resources, where: str, beside: int = 1) -> None:
        self._actors.refuse(resources, where, beside)

    def _end_workers_of(self, stream: Stream | None) -> None:
        if not self._session.is_usable():
            self._actors.pools.clear()
        for pool in self._actors.pools.values():
            for actor in pool.actors:
                if stream is None or (actor.job and actor.job[0] is stream):
                    self._actors.drop(pool, actor)

    def _pack(self, step: Step) -> Any:
        return ray.put(step.start)  # stored once for all actors

    def _most_inside(self, stream: Stream) -> int:
        return max(32, 8 * sum(len(pool.up) for pool in list(self._actors.pools.values())))


def why_ended(error: Exception, actor: str) -> str | None:
    """Returns why Ray ended an actor, an empty string if it did not; None if it is not to blame.

    Where memory runs out, Ray ends several actors at once. To blame is the one that is furthest
    above its declared memory.
    """
    if not isinstance(error, OutOfMemoryError):
        return None if died_with_machine(error) else ""
    found = {}
    for line in str(error).splitlines():
        name, declared, used = (part.search(line) for part in SELECTED)
        if name and used:
            used_gb = float(used[1])
            found[name[1]] = used_gb - (float(declared[1]) / 2**30 if declared else 0), used_gb
    if actor not in found:  # another Ray words it in another way
        return first_line(error)
    if found[actor] < max(found.values()):
        return None
    return f"it took {found[actor][1]:.1f} GB of memory, and its machine had too little"


def lost_nodes() -> list[dict[str, Any]]:
    """Returns the nodes that the cluster had and has no more, as Ray describes them."""
    # Ray gives its function no types.
    return [node for node in ray.nodes() if not node["Alive"]]  # type: ignore[no-untyped-call]


def died_with_machine(error: Exception) -> bool:
    """Returns whether an actor ended because its machine went away."""
    return isinstance(error, NodeDiedError) or NODE_DIED in str(error)


def _original(error: RayTaskError) -> Exception:
    """Returns the function's exception; a StageError if it, or the function, did not pickle."""
    cause: Exception = error.cause
    if not isinstance(cause, RayError):
        return cause
    return StageError(
        found=str(cause),
        where="between a Ray worker and the driver",
        do="see that the workers can import the stage, and that what it raises pickles",
    )
