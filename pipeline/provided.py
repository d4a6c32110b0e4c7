"""What a worker provides beside rows: stored answers, a budget, other Pythons, helper processes.

`clipmill.pipeline.stage` has these names too, for a stage's file imports all from there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


class Answers(Protocol):
    """Answers that a `recorded` stage once got, on the run's storage: none is asked for again."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The stored answer to each request, by its 32-byte digest; None where there is none."""
        ...

    def put(self, key: bytes, answer: bytes) -> None:
        """Keeps an answer: on storage about a second later, and before the shard's record."""
        ...


class Budget(Protocol):
    """What the workers of a stage may spend together, over all runs: `{"tokens": 1e6, "usd": 20}`.

    Calls may wait for storage: from an event loop, make them in a thread.
    """

    def reserve(self, amounts: Mapping[str, float]) -> bool:
        """Whether so much is left of each; it is then set aside until it is settled."""
        ...

    def settle(self, reserved: Mapping[str, float], spent: Mapping[str, float]) -> None:
        """Puts what was spent in the place of what was reserved."""
        ...

    def spent(self) -> dict[str, float]:
        """What all workers and earlier runs have spent, or may have, by unit."""
        ...

    def may_return(self) -> bool:
        """Whether other workers held something aside, as `reserve` found too little left."""
        ...


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one answer of a model took, as a stage that `asks` tells it."""

    prompt_tokens: int
    completion_tokens: int
    usd: float | None  # None where no prices are named
    slot_s: tuple[float, float] | None = None  # from when to when it was asked; None: it was stored
    at_once: int | None = None  # answers that the worker waits for side by side, at most


@dataclass(frozen=True)
class Finding:
    """One thing that `clipmill doctor` checked; `do` says what to do where it is not good."""

    name: str
    verdict: Literal["good", "note", "bad"]
    found: str
    do: str = ""


def ignored(_: object) -> None:
    """Only a probe asks what answers took."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Packages of another Python environment, as pip names them."""

    packages: tuple[str, ...]
    with_dependencies: bool = True  # false: these packages and no others
    without: tuple[str, ...] = ()  # what they bring and must not: taken out once all is installed
    hashes: tuple[str, ...] = ()  # SHA-256 of the files that pip may take for them; none: any
    versions: tuple[str, ...] = ()  # of what they bring: pip's constraints
    imports: str = ""  # the module that is of use in it: `clipmill doctor --model` tries it


class Helper(Protocol):
    """A process that a stage has started beside its worker, and that ends with it."""

    def is_alive(self) -> bool: ...

    def restart(self) -> None:
        """Ends it where it still runs, starts it again, and waits until it is healthy."""
        ...

    def stop(self) -> None:
        """Ends it and its children."""
        ...

    def log(self) -> str:
        """The last lines that it wrote, without keys."""
        ...


class StartHelper(Protocol):
    def __call__(
        self,
        command: Sequence[str],
        *,
        is_healthy: Callable[[], bool],
        wait_s: float,
        env: Mapping[str, str] | None = None,
    ) -> Helper:
        """A process that is healthy; StageError with its last lines where it ends or `wait_s` do.

        `env` is added to the environment of the worker; keys belong there, not in `command`.
        """
        ...


class Remembered:
    """Outside a run answers are kept in memory."""

    def __init__(self) -> None:
        self._answers: dict[bytes, bytes] = {}

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._answers.get(key) for key in keys]

    def put(self, key: bytes, answer: bytes) -> None:
        self._answers[key] = answer


class LocalBudget:
    """Outside a run one worker spends alone."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self._spent: dict[str, float] = dict.fromkeys(limits, 0)

    def reserve(self, amounts: Mapping[str, float]) -> bool:
        known = {unit: amounts.get(unit, 0) for unit in self._limits}
        if any(self._spent[unit] + more > self._limits[unit] for unit, more in known.items()):
            return False
        self._add(known, 1)
        return True

    def settle(self, reserved: Mapping[str, float], spent: Mapping[str, float]) -> None:
        self._add(reserved, -1)
        self._add(spent, 1)

    def spent(self) -> dict[str, float]:
        return dict(self._spent)

    def may_return(self) -> bool:
        return False

    def _add(self, amounts: Mapping[str, float], sign: int) -> None:
        for unit in self._limits:
            self._spent[unit] += sign * amounts.get(unit, 0)


def no_environment(environment: Environment) -> Path:
    """Outside a run there is no other Python."""
    raise NotImplementedError("clipmill.pipeline.engine.worker makes workers that have one")


def no_helper(
    command: Sequence[str],
    *,
    is_healthy: Callable[[], bool],
    wait_s: float,
    env: Mapping[str, str] | None = None,
) -> Helper:
    """Outside a run there are no helper processes."""
    raise NotImplementedError("clipmill.pipeline.engine.worker makes workers that have them")
