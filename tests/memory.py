"""The engine's calls on tables in memory: what a dataset stage means, without running one.

tests/pipeline/engine/test_context_contract.py holds it to what the engine does.
"""

import json
import shutil
import zlib
from functools import reduce
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from clipmill.metadata.outputs import digest_of
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.engine.checkpoints import StoredCheckpoints
from clipmill.pipeline.stage import Worker


class MemoryShards(list):
    """Tables with uid, as shards 0, 1, …: shard and position are added where they are missing."""

    def __init__(self, *tables: pa.Table) -> None:
        for shard, table in enumerate(tables):
            if "shard" not in table.schema.names:
                number = pa.array(np.full(len(table), shard, np.int32))
                position = pa.array(np.arange(len(table), dtype=np.int32))
                table = table.append_column("shard", number).append_column("position", position)
            self.append(table)

    def rows(self, index: int) -> int:
        return len(self[index])

    def table(self, index: int) -> pa.Table:
        return self[index]

    def select(self, names):
        place = ("uid", "shard", "position")
        return MemoryShards(
            *(t.select([n for n in t.column_names if n in (*place, *names)]) for t in self)
        )

    def batches(self, index: int, batch_rows: int = 1024):
        for start in range(0, max(1, len(self[index])), batch_rows):
            yield self[index][start : start + batch_rows]


class MemoryContext:
    """Keeps what `restore` stores in `stored`, one table a shard, and files below `out`."""

    partition_rows = 250_000

    def __init__(self, folder, seed: int = 0) -> None:
        scratch = folder / "scratch"
        scratch.mkdir(parents=True)
        self.folder, self.out = str(folder), folder / "out"
        self.stored, self.states = [], []
        self.walks = 0
        self.worker = Worker(seed=seed, stage="it", device="cpu", threads=1, scratch=scratch)

    def say(self, words): ...

    def put_file(self, name, path, sha256=""):
        assert sha256 in ("", digest_of(path))
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, self.out / name)

    def checkpoints(self, name):
        return StoredCheckpoints(Storage(self.folder), f"checkpoints/{name}", self.worker.scratch)

    def once(self, key, make, prefix=""):
        return json.loads(json.dumps(make(lambda name, path: self.put_file(prefix + name, path))))

    @property
    def task(self):
        """What a function of `map` or `launch` gets."""
        doors = {name: getattr(self, name) for name in ("put_file", "checkpoints", "once")}
        return SimpleNamespace(worker=self.worker, page_checksums=True, **doors)

    def map(self, fn, items):
        return [json.loads(json.dumps(fn(item, self.task))) for item in items]

    def launch(self, fn, workers):
        """One rank, in this process."""
        assert workers == 1
        rank = Rank(rank=0, of=1, rendezvous="tcp://127.0.0.1:0")
        return json.loads(json.dumps(fn(rank, self.task)))

    def map_shards(self, fn, over):
        return MemoryShards(*map(fn, over))

    def keep_local(self, over):
        return over

    def shuffle(self, over, key, partitions=3):
        if not over:
            return MemoryShards()
        rows = pa.concat_tables(over.table(index) for index in range(len(over)))
        part = np.array([zlib.crc32(repr(v).encode()) % partitions for v in rows[key].to_pylist()])
        order = np.argsort(part, kind="stable")
        rows, bounds = rows.take(order), np.searchsorted(part[order], range(partitions + 1))
        return MemoryShards(*(rows[a:b].combine_chunks() for a, b in pairwise(bounds.tolist())))

    def partitions(self, over, more=0):
        return -(-(sum(map(len, over)) + more) // self.partition_rows) or 1

    def drop(self, shuffled):
        shuffled.clear()

    def restore(self, over):
        rows = pa.concat_tables(t.unify_dictionaries() for t in over).sort_by(
            [("shard", "ascending"), ("position", "ascending")]
        )
        shard = rows["shard"].to_numpy()
        self.stored = [rows.filter(pa.array(shard == s)) for s in range(shard.max(initial=-1) + 1)]
        for table in self.stored:
            assert table["position"].to_pylist() == list(range(len(table))), "each row once"

    def reduce(self, fn, over, merge):
        return reduce(merge, map(fn, over))

    def iterate(self, state, step, rounds, until=None):
        # Those of a killed run, to go on from, are the first walk's.
        self.states = [state] if self.walks or not self.states else self.states
        self.walks += 1
        while (taken := len(self.states) - 1) < rounds:
            if until and taken and until(self.states[-1]):
                break
            self.states.append(step(self.states[-1], taken))
        return self.states[-1]
