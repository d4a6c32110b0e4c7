"""The contract of executors, which run work on this machine or on Ray.

The suite tests/pipeline/executors/test_contract.py checks both against it.

**Work.** A `Step` is a function and the resources of one worker. `stream` carries items through
steps, `launch` runs one function in several fresh processes. Both may be called from several
threads at once. An executor knows nothing of the work itself.

**Workers** live on from stream to stream, so a step's function loads its models once in each. A
worker that dies is replaced, and its item is tried again without limit: the function counts its
attempts in storage. If the item has a field `begun`, it is then set to True, so that a count is
read only if there can be one; if the worker's machine went away, to False. A field `ended` gets the
reason if the executor or the kernel ended the worker, else an empty string; a field `killed` is
raised by one if somebody else did, as far as a local one can know. Workers that die before a step
has started end the stream.

**Resources.** Running workers never need more CPUs, memory or GPUs in sum than there are.
- CPUs: `--workers` of them locally and on a Ray that the run starts; a step that asks for more gets
  all, and runs one item at a time.
- Memory: the machine's, or the container's. GPUs: those in CUDA_VISIBLE_DEVICES, else all that the
  driver lists. Each worker sees its own GPUs only; workers of 0.5 share one.
- If local workers and what they started take more than CLIPMILL_MAX_MEMORY_PERCENT of the memory,
  the busy one furthest above its declared memory is ended, before the kernel ends another. Ray ends
  workers where a machine has little left: the one furthest above is blamed, the others try again.
- A worker that asks for more memory or GPUs than there are is refused, with the figures.
- A cluster has the resources of its nodes, and may grow.

**Scheduling.** Streams share the workers: the stream with the fewest busy workers is served first,
its last steps first. An idle worker of another profile ends if a worker to be started lacks room.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.stage import Resources

Item = Any  # a small picklable object: names and digests, never rows


@dataclass(frozen=True, kw_only=True)
class Step:
    """A function of items; steps of equal resources share workers.

    `start()` runs once in each worker that gets the step, and returns the function of one item.
    It must be picklable: a module-level class instance or functools.partial.
    """

    name: str
    start: Callable[[], Callable[[Item], Item]]
    resources: Resources


@dataclass(frozen=True, order=True)
class Placed:
    """Equal workers of one machine: what each holds, and the step that it works on."""

    machine: str  # its host; on Ray with the start of the node's id
    step: str  # stages that share a worker; "" if idle
    cpus: float  # of each worker; a local one that is idle holds none
    gpus: float
    workers: int


class Executor(Protocol):
    """The interface of an executor, as the engine uses it."""

    side_by_side: bool  # several streams gain from running at once
    on_told: Callable[[Any], None]  # gets messages that functions `tell` while running (telling.py)

    def stream(self, steps: Sequence[Step], items: Iterable[Item]) -> Generator[Item]:
        """Carries each item through every step in turn; yields results as they finish.

        Items are drawn in the caller's thread, a bounded number ahead. An exception in a function
        is raised here. A stream that is closed early ends only its own busy workers.
        """
        ...

    def launch(
        self, fn: Callable[[Rank], Mapping[str, Any]], workers: int, resources: Resources
    ) -> list[Mapping[str, Any]]:
        """Runs fn(rank) in `workers` fresh processes side by side; returns results by rank.

        They share the CPUs if there are fewer than they ask for. All end if one fails.
        """
        ...

    def halted(self) -> list[int]:
        """Returns pids of this machine's busy workers that are stopped by a signal."""
        ...

    def on_machines(self, fn: Callable[[], str]) -> dict[str, str]:
        """Returns what fn returns on each machine of a cluster; nothing where work stays here."""
        ...

    def placed(self) -> list[Placed]:
        """Returns the workers that live now, equal ones together, by machine and step."""
        ...

    def close(self) -> None:
        """Ends all workers; open streams raise."""
        ...
