"""Where work runs: the contract of the local executor and of the one on Ray.

The suite tests/pipeline/executors/test_contract.py holds both to it.

**Work.** A `Step` is a function and what one worker of it needs. `stream` carries items through
steps, `launch` runs one function in several fresh processes. Both may be called from several
threads at once. An executor knows nothing of what the work is.

**Workers** live on from stream to stream, so a step's function loads its models once in each. A
worker that dies is replaced, and its item is tried again for as long as that takes: the function
counts its attempts in storage. An item with a field `begun` has it set then, so that a count is
looked for only where there can be one; where its machine went away, it is unset. A field `ended`
has the words of why the executor ended that worker, empty where it did not. Workers that die before
a step has started end the stream.

**Resources.** Workers that run never need more CPUs, memory or GPUs in sum than there are.
- CPUs: `--workers` of them locally and on a Ray that the run starts; a step that asks for more gets
  all, and runs one item at a time.
- Memory: the machine's, or that of the container. GPUs: those of CUDA_VISIBLE_DEVICES, else those
  that the driver lists. Each worker sees its own GPUs only; workers of 0.5 share one.
- Local workers that take more memory together than CLIPMILL_MAX_MEMORY_PERCENT of it lose one, the
  busy one furthest above what it declares, before the kernel ends another.
- A worker that asks for more memory or GPUs than there are is refused, with the figures.
- A cluster has what its nodes have, and may grow.

**Turns.** Streams share the workers: the one with the fewest busy is served first, and of its steps
the last. An idle worker of another profile ends where one that is wanted lacks room.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.stage import Resources

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

    side_by_side: bool  # whether several streams gain from running at once
    on_told: Callable[[Any], None]  # gets what functions `tell` while they run (telling.py)

    def stream(self, steps: Sequence[Step], items: Iterable[Item]) -> Iterator[Item]:
        """Each item through every step in turn; results in the order they finish.

        Items are drawn in the caller's thread, a bounded number ahead. An exception raised by a
        function is raised here. A stream that is left early ends its own busy workers only.
        """
        ...

    def launch(
        self,
        fn: Callable[[Rank], Mapping[str, Any]],
        workers: int,
        resources: Resources,
    ) -> list[Mapping[str, Any]]:
        """fn(rank) in `workers` fresh processes side by side; results by rank.

        They share the CPUs where there are fewer than they ask for. All end if one fails.
        """
        ...

    def halted(self) -> list[int]:
        """Process ids of this machine's workers that hold an item and were stopped by a signal."""
        ...

    def close(self) -> None:
        """Ends all workers; streams that are still open raise."""
        ...
