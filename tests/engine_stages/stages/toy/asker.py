"""An answer to each number, that is asked for once and then stored."""

import hashlib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from clipmill.metadata.schema import REASON, Column
from clipmill.pipeline.stage import Budget, RowFunction, RowStage, Worker, location

ANSWER = Column("answer", pa.string(), "", "What was answered.")
NUMBER = Column("number", pa.int64(), "", "Any number.")


@dataclass(frozen=True, kw_only=True)
class Asker(RowStage):
    """How often the number had been asked for, in words; null once the budget is spent.

    Every request is a line of the log: a later one of the same number has another answer.
    """

    log: str = location()
    tokens: int = location(1_000_000)  # a request takes 2
    wait_s: float = location(0.0)  # of each request
    question: str = "?"

    version = 1
    determinism = "recorded"
    reads = (NUMBER,)
    writes = (ANSWER,)
    reasons = ("over_budget",)
    transient = ("over_budget",)
    batch_rows = 4

    def open(self, worker: Worker) -> RowFunction:
        return partial(answers, self, worker, worker.budget({"tokens": self.tokens}))


def answers(stage: Asker, worker: Worker, budget: Budget, batch: pa.Table) -> pa.Table:
    found: list[str | None] = []
    for number in batch[NUMBER.name].to_pylist():
        key = hashlib.sha256(f"{stage.question} {number}".encode()).digest()
        [answer] = worker.answers.get([key])
        if answer is None and budget.reserve({"tokens": 3}):
            answer = asked(Path(stage.log), number, stage.wait_s)
            budget.settle({"tokens": 3}, {"tokens": 2})
            worker.answers.put(key, answer)
        found.append(answer and answer.decode())
    reason = [None if answer else "over_budget" for answer in found]
    return pa.table(
        {ANSWER.name: pa.array(found, pa.string()), REASON.name: pa.array(reason, pa.string())}
    )


def asked(log: Path, number: int, wait_s: float) -> bytes:
    """Asks a server that logs requests."""
    time.sleep(wait_s)
    with log.open("a") as file:
        file.write(f"{number}\n")
    times = log.read_text().splitlines().count(str(number))
    return f"{number}, asked {times}".encode()
