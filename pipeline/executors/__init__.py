"""Where work runs. One interface, two implementations; neither knows what the work is.

A `Step` is a function and what a worker of it needs. `stream` carries items through steps:
workers are long-lived, so that a step's function loads its models once. An executor restarts a
worker that dies and gives it the same item again; it never gives up on an item by itself: the
function counts its attempts in storage and answers for the item that keeps killing its worker.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.stage import Resources

Item = Any  # a small picklable object: names and digests, never rows


@dataclass(frozen=True, kw_only=True)
class Step:
    """One function over items; workers of equal resources are shared between steps.

    `start()` runs once in each worker that meets the step and returns the function of one item.
    It is picklable: a module-level class instance or functools.partial.
    """

    name: str
    start: Callable[[], Callable[[Item], Item]]
    resources: Resources


class Executor(Protocol):
    """What the engine asks of the place where work runs."""

    def stream(self, steps: Sequence[Step], items: Iterable[Item]) -> Iterator[Item]:
        """Each item through every step in turn; results in the order they finish.

        An exception raised by a function is raised here; a worker that dies (killed, out of
        memory) is replaced and the item is tried again. Items in flight are bounded.
        """
        ...

    def launch(
        self,
        fn: Callable[[int, int], Mapping[str, Any]],
        workers: int,
        resources: Resources,
    ) -> list[Mapping[str, Any]]:
        """fn(rank, workers) in `workers` fresh processes side by side; results by rank.

        All of them end if one fails.
        """
        ...

    def close(self) -> None:
        """Ends all workers."""
        ...
