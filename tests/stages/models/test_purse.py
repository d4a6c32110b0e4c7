"""The door to a budget: what is set aside comes back, however an answer ends."""

import asyncio
import contextlib
import time
from pathlib import Path

from clipmill.pipeline.provided import Purse as Alone
from clipmill.pipeline.stage import Worker
from clipmill.stages.models.endpoint import Limits
from clipmill.stages.models.generator import Decoding, Prompt, open_asker
from clipmill.stages.models.purse import Purse
from tests.text_server import TextServer


class Slow(Alone):
    """A budget that waits for storage."""

    def reserve(self, amounts) -> bool:
        time.sleep(0.01)
        return super().reserve(amounts)

    def settle(self, reserved, spent) -> None:
        time.sleep(0.01)
        super().settle(reserved, spent)


def worker(budget: Alone) -> Worker:
    return Worker(
        seed=0, stage="x", device="cpu", threads=1, scratch=Path(), budget=lambda caps: budget
    )


def test_a_request_that_was_given_up_counts_as_if_it_had_been_answered_in_full():
    budget = Alone({"tokens": 1000.0})
    with TextServer(script=lambda asked: None if asked.before else "hang").running() as server:
        asker = open_asker(
            f"openai:{server.url}#{server.model}",
            worker(budget),
            decoding=Decoding(max_tokens=20),
            limits=Limits(max_tokens_total=1000, timeout_s=0.3),
            form="chat",
        )
        answer = asyncio.run(asker.ask(Prompt(text="a black cat"), seed=7))
    assert answer.text
    given_up = len("a black cat") // 3 + 16 + 20
    used = answer.prompt_tokens + answer.completion_tokens
    assert budget.spent() == {"tokens": given_up + used}


def test_a_request_that_is_cancelled_while_it_reserves_takes_nothing():
    budget = Slow({"tokens": 100.0})

    async def cancelled() -> None:
        purse = Purse(worker(budget), Limits(max_tokens_total=100), "a test")
        task = asyncio.create_task(purse.reserve({"tokens": 100.0}))
        await asyncio.sleep(0.003)  # a thread is at it
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert await purse.reserve({"tokens": 100.0}) is None

    asyncio.run(cancelled())


def test_requests_that_are_cancelled_give_back_what_was_set_aside_for_them():
    budget = Slow({"tokens": 4000.0})
    purse = Purse(worker(budget), Limits(max_tokens_total=4000), "a test")

    async def request() -> None:
        await purse.reserve({"tokens": 100.0})
        try:
            await asyncio.sleep(60)
        finally:
            await purse.settle({"tokens": 100.0}, {"tokens": 0.0})

    async def cancelled() -> None:
        tasks = [asyncio.create_task(request()) for _ in range(40)]
        while purse.out < len(tasks):
            await asyncio.sleep(0.001)
        for _ in range(2):  # as batches and their rows are: the second cuts into what ends the row
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(cancelled())
    assert budget.spent() == {"tokens": 0.0}
    assert budget.reserve({"tokens": 4000.0})
