"""A small pool with planted faults, drawn here, for what else reads `clipmill pool demo`'s."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clipmill.pipeline.pools.build import build_pool
from tests.benchmarks.side_by_side import NeedError
from tests.benchmarks.toy import scratch

# As if of several vendors, for what leaves one out: a trusted one, a second, and two strangers.
VENDORS = ("openmoji", "@twemoji/svg", "@iconify-json/fxemoji", "@iconify-json/game-icons")


@contextmanager
def pool_at(given: str, rows: int) -> Iterator[Path]:
    """The pool in that folder; where none is given, one of so many rows, gone afterwards."""
    if given:
        yield there(given)
        return
    with scratch() as folder:
        yield drawn(folder / "pool", rows)


def there(given: str) -> Path:
    """The pool of that name, or what it needs."""
    if not Path(given).exists():
        raise NeedError(f"{given}: clipmill pool demo --out {given}")
    return Path(given)


def drawn(pool: Path, rows: int) -> Path:
    """A pool whose truth says that its drawings are of several vendors."""
    build_pool("generated", pool, rows=rows)
    truth = pl.read_parquet(pool / "truth.parquet")
    truth.with_columns(source=vendor_of("image_key")).write_parquet(pool / "truth.parquet")
    return pool


def vendor_of(column: str) -> pl.Expr:
    """One of VENDORS for each value."""
    return pl.col(column).hash(0).mod(len(VENDORS)).replace_strict(dict(enumerate(VENDORS)))


def auc(high: NDArray, low: NDArray) -> float:
    """How often one of `high` is above one of `low`; a tie is half."""
    if not len(high) or not len(low):
        return np.nan
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    return float(below.mean() / 2 / len(low))
