"""How a benchmark begins, and how it times rivals in one process on one input."""

import sys
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

FULL, LACKS = "full", 77  # the word that asks for the documents' sizes; an exit code
_most_rounds: int | None = None


class NeedError(Exception):
    """The machine lacks what is measured; says what."""


def begin(
    main: Callable[..., str], quick: Sequence[Any] = (), full: Sequence[Any] | None = None
) -> None:
    """Measures, prints the headline that `main` returns, and ends the process.

    Quick sizes where nothing is asked, and three rounds at most; by the word `full` those that the
    documents' figures were taken at; else the sizes asked for.
    """
    global _most_rounds
    asked: Sequence[Any] = sys.argv[1:]
    full = quick if full is None else full
    _most_rounds = None if asked else 3
    if asked and asked[0] != FULL:
        kinds = {type(size) for size in (*quick, *full)} or {str}
        (kind,) = kinds
        asked = [kind(word) for word in asked]
    elif asked:
        asked = full
    try:
        print(f"=> {main(*asked or quick)}")
    except NeedError as need:
        print(f"=> needs {need}")
        sys.exit(LACKS)


def rounds_of(many: int) -> int:
    """So many rounds, or the few of a quick run."""
    return min(many, _most_rounds or many)


def side_by_side(
    rows: int,
    rounds: int = 7,
    clock: Callable[[], float] = perf_counter,  # process_time where others share the cores
    **rivals: Callable[[], object],
) -> dict[str, str]:
    """The median ratio of each rival to the first, as text; prints rows/s, least and greatest."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds_of(rounds)):
        for name, run in rivals.items():  # interleaved: a busy machine slows all alike
            start = clock()
            run()
            seconds[name].append(clock() - start)
    first = next(iter(seconds.values()))
    ratios = {}
    for name, spent in seconds.items():
        ratio = sorted(base / mine for base, mine in zip(first, spent, strict=True))
        ratios[name] = f"{median(ratio):.2f}x"
        print(
            f"{name:<18}{rows / median(spent):>12,.0f} rows/s"
            f"{ratios[name]:>9}  ({ratio[0]:.2f} to {ratio[-1]:.2f})",
            flush=True,
        )
    return ratios
