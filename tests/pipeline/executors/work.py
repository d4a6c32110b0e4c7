"""What tests let workers do. Workers import this file, so it imports no Ray and no pytest."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.errors import ShardError, StageError
from clipmill.pipeline.executors import Step
from clipmill.pipeline.executors.telling import tell
from clipmill.pipeline.stage import Resources

LIMIT_S = 60.0  # against hanging
ONE = Resources(cpus=1, memory_gb=0.1)
OTHER = Resources(cpus=1, memory_gb=0.2)
WHOLE = Resources(cpus=2, memory_gb=0.1)


def step(function, resources=ONE) -> Step:
    """A step of a plain function of one item."""
    return Step(name="step", start=partial(partial, function), resources=resources)


def note(log: Path, **line):
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


def notes(log: Path, key: str) -> list[dict]:
    return [line for line in map(json.loads, log.read_text().splitlines()) if key in line]


def start_adding(log: Path, name: str, killed_by: int | None):
    note(log, built=name, pid=os.getpid())

    def add(item):
        note(log, step=name, i=item["i"])
        if item["i"] == killed_by and not log.with_suffix(".killed").exists():
            log.with_suffix(".killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item | {"sum": item.get("sum", 0) + 1, "pid": os.getpid()}

    return add


def adding(log: Path, name: str, resources=ONE, killed_by: int | None = None) -> Step:
    """A step that adds 1, and notes its start and each item; one item may end its worker once."""
    return Step(name=name, start=partial(start_adding, log, name, killed_by), resources=resources)


@dataclass
class Weighed:
    """An item that is told of the worker it ended."""

    i: int
    begun: bool = False
    ended: str = ""
    killed: int = 0


def grow_on_seven(item: Weighed) -> Weighed:
    """Takes 20 MB at a time, half a gigabyte at most; tried again, it takes nothing."""
    taken = []
    while item.i == 7 and not item.begun and len(taken) < 25:
        taken.append(b"x" * 20_000_000)
        time.sleep(0.05)
    return item


CHILD = """
import sys, time
taken = []
while len(taken) < 25:
    taken.append(b"x" * 20_000_000)
    time.sleep(0.05)
"""


def grow_a_child_on_seven(pids: Path, item: Weighed) -> Weighed:
    """Starts a process that takes as much, and waits for it."""
    if item.i == 7 and not item.begun:
        with subprocess.Popen([sys.executable, "-c", CHILD]) as child:
            pids.write_text(str(child.pid))
    return item


def until(condition) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


# What work tells


def tell_and_wait(gate: Path, item):
    tell(("half", item))
    while gate.exists():
        time.sleep(0.01)
    return item


def quote(item):
    print(item["text"], file=sys.stderr)
    return item


# Deaths


@dataclass
class Asking:
    """An item that wants to know whether a worker died of it."""

    number: int
    begun: bool = False


def die_unless_begun(item):
    if item.number == 11 and not item.begun:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def start_asking():
    return die_unless_begun


def start_dying():
    os.kill(os.getpid(), signal.SIGKILL)


def pid(item):
    return os.getpid()


def die_four_times(folder: Path, item):
    deaths = len(list(folder.iterdir()))
    if deaths < 4:
        (folder / str(deaths)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def die_in_mid_answer(folder: Path, item):
    """Kills its worker, the first time, when half of the answer is in the pipe."""
    if not (folder / "half").exists():
        (folder / "half").touch()
        Connection.send_bytes = half_an_answer
    return item


def half_an_answer(pipe, data):
    os.write(pipe.fileno(), (1000).to_bytes(4, "big") + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


# Errors


def fail_on_seven(item):
    if item["i"] == 7:
        raise ShardError("seven", "shard 7", "leave it out")
    return item


class UnpicklableError(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")  # args don't match the signature


def raise_unpicklable(item):
    raise UnpicklableError("this", "that")


def start_later_than_its_file(folder: Path):
    return (folder / "gone").read_text()


# What a worker sees


def see(item):
    names = ("CLIPMILL_FROM_DRIVER", "OMP_NUM_THREADS", "POLARS_MAX_THREADS")
    return {name: os.environ.get(name) for name in names} | {"path": sys.path}


def see_gpus(folder: Path, workers: int, item):
    stop_at(folder, "gpu", workers, os.getpid())
    return ",".join(sorted(os.environ["CUDA_VISIBLE_DEVICES"].split(",")))


def see_its_gpu(folder: Path, rank: Rank):
    return {"gpu": see_gpus(folder, rank.of, rank), "gloo": os.environ["GLOO_SOCKET_IFNAME"]}


# Several streams


def stop_at(folder: Path, name: str, wanted: int, item):
    """Ends once so many others are there too."""
    (folder / f"{name}-{item}").touch()
    until(lambda: len(list(folder.iterdir())) >= wanted)
    return name


def rest(log: Path, stopped: Path, item):
    """Takes a second, none once the file is there."""
    note(log, i=item["i"])
    limit = time.monotonic() + 1
    while time.monotonic() < limit and not stopped.exists():
        time.sleep(0.01)
    return item


def wait_for(file: Path, item):
    until(file.exists)
    return item


def overlap(log: Path, cpus: int, memory_gb: float, item):
    """Notes when it begins and ends, and how much memory the workers want that live meanwhile."""
    note(log, worker=os.getpid(), memory_gb=memory_gb)
    living = {line["worker"]: line["memory_gb"] for line in notes(log, "worker")}
    begin = time.monotonic()
    time.sleep(0.02)
    asked = sum(gb for pid, gb in living.items() if Path(f"/proc/{pid}").exists())
    note(log, begin=begin, end=time.monotonic(), cpus=cpus, living_gb=asked)
    return item


# Launches


def meet(folder: Path, rank: Rank):
    """Ends only when all ranks are there: they run side by side."""
    (folder / str(rank.rank)).touch()
    until(lambda: len(list(folder.iterdir())) >= rank.of)
    return {"rank": rank.rank, "pid": os.getpid()}


def fail_or_stay(folder: Path, how: str, rank: Rank):
    (folder / str(rank.rank)).write_text(str(os.getpid()))
    while len(list(folder.iterdir())) < rank.of or rank.rank == 0:
        time.sleep(0.01)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise StageError("rank", "one", "nothing")


def hear_the_other_die(rank: Rank):
    """Rank 0 listens where they meet; rank 1 connects, hangs up, and dies a little later."""
    host, port = rank.rendezvous.removeprefix("tcp://").split(":")
    if rank.rank == 0:
        with socket.create_server((host, int(port))) as server:
            server.accept()[0].recv(1)
            raise ConnectionResetError("connection closed by peer")
    until(partial(is_open, host, int(port)))
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)


def is_open(host: str, port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection((host, port)):
        return True
    return False


def find_the_port_taken(rank: Rank):
    host, port = rank.rendezvous.removeprefix("tcp://").split(":")
    if rank.rank == 0:
        with socket.create_server((host, int(port))):
            socket.create_server((host, int(port)))
    return {}
