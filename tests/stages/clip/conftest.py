"""One thread, a tiny architecture, and the parts of small exports."""

import pytest
import torch

from clipmill.stages.clip.cache import cache_shard, read_cached
from clipmill.stages.ops.tables.exports import numbered
from tests.stages.clip.exported import batches_of, row, small_reading, write_export


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # the first imports for seconds: those of no test


@pytest.fixture
def cached(tmp_path):
    """The parts of an export of these shards, and what was said of each."""

    def make(*shards, **more):
        data, folder = write_export(tmp_path / "export", *shards), str(tmp_path / "stage")
        rows = [len(shard) for shard in shards]
        names = [f"{number:05d}.parquet" for number in range(len(shards))]
        files = numbered([{"file": name, "rows": n} for name, n in zip(names, rows, strict=True)])
        reading = small_reading(data=data, folder=folder, **more)
        said = [cache_shard(reading, file, None) for file in files]
        return list(read_cached(folder, said)), said

    return make


@pytest.fixture
def batches(cached):
    """Batches over 24 rows in two shards."""

    def make(size=8, seed=0):
        parts, _ = cached([row(i) for i in range(10)], [row(i) for i in range(10, 24)])
        return batches_of(parts, size=size, seed=seed)

    return make
