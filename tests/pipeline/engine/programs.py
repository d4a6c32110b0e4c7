"""What programs of tests let workers do. Workers import this file, so it imports no pytest."""

import os
import tempfile
from functools import partial

import numpy as np
import pyarrow as pa

from clipmill.metadata.schema import REASON_TYPE


def with_value(value, rows: pa.Table) -> pa.Table:
    number = rows["number"].to_numpy()
    made = rows.append_column("value", pa.array(value(number), pa.int64()))
    return made.append_column("reason", pa.nulls(len(rows), REASON_TYPE))


def store(rows, ctx, value=lambda n: n) -> None:
    ctx.restore(ctx.map_shards(partial(with_value, value), rows))


def plus(more: int, number):
    return number + more


def always(value: int, number):
    return np.full_like(number, value)


def read(rows: pa.Table) -> pa.Table:
    """The rows, as they are read from storage: each time leaves a file, named by the process."""
    handle, _ = tempfile.mkstemp(prefix=f"{os.getpid()}-", dir=os.environ["CLIPMILL_TEST_SEEN"])
    os.close(handle)
    return rows


# Sums


def summed(rows: pa.Table):
    return {"sum": rows["number"].to_numpy().sum()}


def wide(rows: pa.Table):
    """1.6 MB."""
    return {"sum": np.full(200_000, rows["number"].to_numpy().sum())}


def added(one, other):
    return {"sum": one["sum"] + other["sum"]}


# Ranks


def first_number(rows, rank, task):
    return {"first": rows.table(0)["number"][0].as_py()}


def says_its_stage(rank, task):
    if rank.rank == 0:
        path = task.worker.scratch / f"launched-{os.getpid()}"
        path.write_text(task.worker.stage)
        task.put_file("said", path)
    return {"rank": rank.rank, "of": rank.of, "pid": os.getpid()}


def gpu_of_rank(rank, task):
    return {"gpu": int(os.environ["CUDA_VISIBLE_DEVICES"])}


def one_step_a_life(steps: int, rank, task):
    """Dies after each of its first steps."""
    checkpoints = task.checkpoints("it")
    step, path = checkpoints.newest() or (0, None)
    assert step == 0 or path.read_text() == f"at {step}"
    if step == steps:
        return {"steps": step}
    state = task.worker.scratch / "state"
    state.write_text(f"at {step + 1}")
    checkpoints.put(step + 1, state)
    os.abort()


def die(rank, task):
    os.abort()
