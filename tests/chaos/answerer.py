"""Workers that ask, store and are killed: each a fork of this process, which has started nothing.

Each packs what lies there, as a driver does, and asks for what is missing, shard by shard. Now and
then a reader compares all answers with those that any reader found before: they are in found.txt. A
request is a line of asked.txt, an answer tells which worker asked.

    python -m tests.chaos.answerer FOLDER SCRATCH KILLS
"""

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import answers
from clipmill.pipeline.engine.answers import StoredAnswers, pack

ROWS, SHARD_ROWS = 240, 30
WAIT_S = 0.0005  # of a request
answers.STORE_S = 0.002  # of the clock: some are stored within a shard, in a thread
answers.MOST_SMALL = 3


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def work(uri: str, scratch: Path, name: int) -> None:
    """One worker's life, if nothing ends it."""
    folder = Storage(uri)
    pack(folder)
    look(folder, scratch, name)
    store = StoredAnswers(folder)
    for shard in range(ROWS // SHARD_ROWS):
        store.begin(shard)
        for number in range(shard * SHARD_ROWS, (shard + 1) * SHARD_ROWS):
            if store.get([key(number)]) == [None]:
                with (scratch / "asked.txt").open("a") as file:
                    file.write(f"{number}\n")
                time.sleep(WAIT_S)
                store.put(key(number), f"{number} by {name} {'long ' * (number % 50)}".encode())
            if number % 8 == 7:
                look(folder, scratch, name)
        store.flush()


def look(folder: Storage, scratch: Path, name: int) -> None:
    """Compares what a reader finds with what was ever found, and adds it there."""
    found = StoredAnswers(folder).get([key(number) for number in range(ROWS)])
    now = {str(n): answer.decode() for n, answer in enumerate(found) if answer}
    ledger = scratch / "found.txt"
    before = dict(line.split(" ", 1) for line in ledger.read_text().splitlines())
    if changed := {n: (a, now.get(n)) for n, a in before.items() if now.get(n) != a}:
        print(f"worker {name}: lost or changed: {changed}", flush=True)
    with ledger.open("a") as file:
        file.writelines(f"{n} {answer}\n" for n, answer in now.items() if n not in before)


def born(uri: str, scratch: Path, name: int, point: int) -> int:
    """A fork that works, and dies at its point or as its parent says; its process id."""
    child = os.fork()
    if not child:
        os.setsid()
        faults = scratch / f"faults-{name}"
        faults.mkdir()
        os.environ.update(CLIPMILL_FAULT=f"any:{point}", CLIPMILL_FAULT_DIR=str(faults))
        try:
            work(uri, scratch, name)
        except BaseException as error:
            print(f"worker {name}: {error!r}", flush=True)
        os._exit(0)
    return child


def main(uri: str, scratch: Path, kills: int) -> None:
    chance = random.Random(0)
    for name in ("asked.txt", "found.txt"):
        (scratch / name).touch()
    killed = 0
    name = 0
    while killed < kills:
        by_clock = "://" not in uri and name % 2
        child = born(uri, scratch, name, 0 if by_clock else chance.randint(1, 30))
        if by_clock:
            time.sleep(chance.uniform(0.005, 0.08))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        name += 1
        if name > 4 * kills:
            break
    os.waitpid(born(uri, scratch, name, 0), 0)
    os.waitpid(born(uri, scratch, name + 1, 0), 0)  # which compares what the last one stored
    print(f"killed {killed}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
