"""Services of a worker: stored answers, a budget, other Pythons, helper processes.

`clipmill.pipeline.stage` exports these names, too: stages import all from there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


class Answers(Protocol):
    """Stored answers of a `recorded` stage, in the run folder; none is requested twice."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns the stored answer to each request, by 32-byte digest, or None."""

    def put(self, key: bytes, answer: bytes) -> None:
        """Keeps an answer; it is in storage about a second later, and before the shard's record."""


class Budget(Protocol):
    """The budget of all workers of a stage, over all runs: `{"tokens": 1e6, "usd": 20}`.

    Calls may wait for storage: an event loop makes them in a thread.
    """

    def reserve(self, amounts: Mapping[str, float]) -> bool:
        """Reserves amounts until `settle`; returns False, reserving nothing, if one is not left."""

    def settle(self, reserved: Mapping[str, float], spent: Mapping[str, float]) -> None:
        """Replaces a reservation by what was spent."""

    def spent(self) -> dict[str, float]:
        """Returns the spending of all workers and earlier runs, by unit, with reservations."""

    def may_return(self) -> bool:
        """Returns whether other workers had reservations when `reserve` last failed."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The usage of one answer of a model, reported by a stage that `asks`."""

    prompt_tokens: int
    completion_tokens: int
    usd: float | None  # None without prices
    slot_s: tuple[float, float] | None = None  # start and end; None if the answer was stored
    at_once: int | None = None  # most requests that the worker has open


@dataclass(frozen=True)
class Finding:
    """The result of one check of `clipmill doctor`; `do` says what to do if it is not good."""

    name: str
    verdict: Literal["good", "note", "bad"]
    found: str
    do: str = ""


def ignored(*_: object, **__: object) -> None:
    """Does nothing: outside a run no digest is compared, no progress shown, no usage counted."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Another Python environment: its packages, as pip names them."""

    packages: tuple[str, ...]  # where a Python has these, it is used as it is
    without: tuple[str, ...] = ()  # unless it has one of these
    # Else all that is installed, each with the digests of the files that may be taken:
    # "a==1.0 --hash=sha256:…". Empty: the packages and what they need, in any version.
    requirements: tuple[str, ...] = ()
    imports: str = ""  # its main module, which `clipmill doctor --model` imports


class Helper(Protocol):
    """A process that a stage started beside its worker; it ends with the worker."""

    def is_alive(self) -> bool: ...

    def restart(self) -> None:
        """Ends it if it still runs, starts it again, and waits until it is healthy."""

    def stop(self) -> None:
        """Ends it and its children."""

    def log(self) -> str:
        """Returns its last lines of output, without keys."""


class StartHelper(Protocol):
    def __call__(
        self,
        command: Sequence[str],
        *,
        is_healthy: Callable[[], bool],
        wait_s: float,
        env: Mapping[str, str] | None = None,
    ) -> Helper:
        """Starts a process and waits until it is healthy.

        Raises StageError with its last lines if it ends, or is not healthy after `wait_s`.

        `env` is added to the environment of the worker; keys belong there, not in `command`.
        """


class Remembered:
    """Answers outside a run, kept in memory."""

    def __init__(self) -> None:
        self._answers: dict[bytes, bytes] = {}

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._answers.get(key) for key in keys]

    def put(self, key: bytes, answer: bytes) -> None:
        self._answers[key] = answer


class LocalBudget:
    """A budget outside a run, for one worker."""

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


def only_in_a_run(*_: object, **__: object) -> Any:
    """Raises NotImplementedError: outside a run there are no other Pythons and no helpers."""
    raise NotImplementedError("clipmill.pipeline.engine.worker makes workers that have them")
