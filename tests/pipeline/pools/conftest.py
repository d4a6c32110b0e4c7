from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.pools.build import build_pool

ROWS = 600


@dataclass(frozen=True)
class Pool:
    """A built pool with its tables as rows by uid."""

    folder: Path
    metadata: dict
    truth: dict
    trusted: dict


def rows_by_uid(path: Path) -> dict:
    return {row["uid"]: row for row in pq.read_table(path).to_pylist()}


@pytest.fixture(scope="session")
def pool(tmp_path_factory) -> Pool:
    folder = tmp_path_factory.mktemp("pools") / "generated"
    build_pool("generated", folder, rows=ROWS)
    return Pool(
        folder,
        rows_by_uid(folder / "metadata"),
        rows_by_uid(folder / "truth.parquet"),
        rows_by_uid(folder / "trusted" / "metadata"),
    )
