"""Time rivals in one process on one input, and print each as a ratio to the first."""

from collections.abc import Callable
from statistics import median
from time import perf_counter


def side_by_side(
    rows: int,
    rounds: int = 7,
    clock: Callable[[], float] = perf_counter,  # process_time where others share the cores
    **rivals: Callable[[], object],
) -> None:
    """Rows/s of each rival and its median ratio to the first, with the least and the greatest."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():  # interleaved: a busy machine slows all alike
            start = clock()
            run()
            seconds[name].append(clock() - start)
    first = next(iter(seconds.values()))
    for name, spent in seconds.items():
        ratio = sorted(base / mine for base, mine in zip(first, spent, strict=True))
        print(
            f"{name:<18}{rows / median(spent):>12,.0f} rows/s"
            f"{median(ratio):>8.2f}x  ({ratio[0]:.2f} to {ratio[-1]:.2f})"
        )
