"""The door to a budget: what is set aside comes back when its answer is seen, and is kept."""

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.budget import SharedBudget, spent_in
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.provided import LocalBudget as Alone
from clipmill.pipeline.stage import Budget, Worker
from clipmill.stages.models import client
from clipmill.stages.models.endpoint import Limits
from clipmill.stages.models.generator import Asker, Decoding, Prompt, open_asker
from clipmill.stages.models.spending import Spending
from tests.text_server import TextServer

CAT = Prompt(text="a black cat")
ASIDE = float(len("a black cat") + client.TEMPLATE_TOKENS + 20)  # for one answer


class Slow(Alone):
    """A budget that waits for storage."""

    def reserve(self, amounts) -> bool:
        time.sleep(0.01)
        return super().reserve(amounts)

    def settle(self, reserved, spent) -> None:
        time.sleep(0.01)
        super().settle(reserved, spent)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.05)
    with TextServer().running() as one:
        yield one


def asker(server: TextServer, budget: Budget, **limits: float) -> Asker:
    return open_asker(
        f"openai:{server.url}#{server.model}",
        worker(budget),
        decoding=Decoding(max_tokens=20),
        limits=Limits(max_tokens_total=1, **limits),
        form="chat",
    )


def worker(budget: Budget) -> Worker:
    return Worker(
        seed=0, stage="x", device="cpu", threads=1, scratch=Path(), budget=lambda caps: budget
    )


def test_a_request_that_was_given_up_counts_as_if_it_had_been_answered_in_full(server):
    server.script = lambda asked: None if asked.before else "hang"
    budget = Alone({"tokens": 1000.0})
    answer = asyncio.run(asker(server, budget, timeout_s=0.3).ask(CAT, seed=7))
    used = answer.prompt_tokens + answer.completion_tokens
    assert budget.spent() == {"tokens": ASIDE + used}


@pytest.mark.parametrize("fault", ["half", "drop", "malformed", "deep", "empty"])
def test_a_request_whose_answer_was_lost_counts_as_if_it_had_been_answered_in_full(server, fault):
    server.script = lambda asked: None if asked.before else fault
    budget = Alone({"tokens": 1000.0})
    answer = asyncio.run(asker(server, budget).ask(CAT, seed=7))
    used = answer.prompt_tokens + answer.completion_tokens
    assert budget.spent() == {"tokens": ASIDE + used}


def test_every_request_of_an_answer_sets_aside_what_it_may_take(server):
    """A server that never answers is asked again while there is budget for it, and no longer."""
    server.script = lambda asked: "hang"
    budget = Alone({"tokens": 2.5 * ASIDE})
    with pytest.raises(StageError, match="the budget is spent"):
        asyncio.run(asker(server, budget, timeout_s=0.2, retries=5).ask(CAT, seed=7))
    assert server.asked.total() == 2
    assert budget.spent() == {"tokens": 2 * ASIDE}


def test_an_answer_that_comes_to_a_cancelled_row_is_stored_and_counted(server):
    server.latency_s = 0.1
    budget = Alone({"tokens": 1000.0})

    async def cancelled():
        one = asker(server, budget)
        task = asyncio.create_task(one.ask(CAT, seed=7))
        while not server.asked:
            await asyncio.sleep(0.01)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        return await one.ask(CAT, seed=7)

    assert asyncio.run(cancelled()).text
    assert server.asked.total() == 1
    assert budget.spent() == {"tokens": float(server.tokens)}


def test_a_cancelled_row_waits_no_longer_than_it_says_and_counts_in_full(server, monkeypatch):
    monkeypatch.setattr(client, "LAST_S", 0.1)
    server.script = lambda asked: "hang"
    budget = Alone({"tokens": 1000.0})

    async def cancelled() -> None:
        task = asyncio.create_task(asker(server, budget).ask(CAT, seed=7))
        while not server.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert budget.spent() == {"tokens": ASIDE}


@pytest.mark.parametrize("fault", ["beyond_in", "beyond_out"])
def test_a_count_that_cannot_be_is_told_and_closes_no_budget(server, fault):
    server.script = lambda asked: fault
    budget = Alone({"tokens": 1000.0})
    one = asker(server, budget)
    with pytest.raises(
        StageError, match=r"1,000,000,000,000,000,000(.|\n)*no budget holds with it"
    ):
        asyncio.run(one.ask(CAT, seed=7))
    assert 0 < budget.spent()["tokens"] <= ASIDE
    assert asyncio.run(one.ask(CAT, seed=7)).text  # it is stored
    assert server.asked.total() == 1


def test_a_prompt_in_a_long_template_is_known_once_it_was_counted(server):
    server.template = 300
    budget = Alone({"tokens": 2000.0})

    async def asked() -> None:
        one = asker(server, budget)
        await one.ask(CAT, seed=0)
        await asyncio.gather(*(one.ask(CAT, seed=seed) for seed in range(1, 30)))

    with pytest.raises(StageError, match="the budget is spent"):
        asyncio.run(asked())
    assert 2000 - (300 + ASIDE) < server.tokens <= 2000
    assert budget.spent() == {"tokens": float(server.tokens)}


def test_who_finds_the_budget_claimed_by_another_waits_until_it_has_settled(server, tmp_path):
    """Each may have one request under way: the budget holds no two."""
    server.latency_s = 0.2
    folder = Storage(str(tmp_path))
    accounts = [SharedBudget(folder, name, {"tokens": 1.5 * ASIDE}) for name in ("one", "two")]

    async def both() -> None:
        await asyncio.gather(
            *(asker(server, it).ask(CAT, seed=seed) for seed, it in enumerate(accounts))
        )

    asyncio.run(both())
    assert server.asked.total() == 2
    assert server.most_at_once == 1
    for account in accounts:
        account.flush()
    assert spent_in(folder) == {"tokens": float(server.tokens)}


def test_a_request_that_is_cancelled_while_it_reserves_takes_nothing():
    budget = Slow({"tokens": 100.0})

    async def cancelled() -> None:
        spending = Spending(worker(budget), Limits(max_tokens_total=100), "a test")
        task = asyncio.create_task(spending.reserve({"tokens": 100.0}))
        await asyncio.sleep(0.003)  # a thread is at it
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert await spending.reserve({"tokens": 100.0}) is None

    asyncio.run(cancelled())


def test_of_two_requests_that_reserve_at_once_the_refused_one_waits_for_the_granted_one():
    budget = Slow({"tokens": 150.0})

    async def both() -> None:
        spending = Spending(worker(budget), Limits(max_tokens_total=150), "a test")
        amounts = {"tokens": 100.0}
        first, second = await asyncio.gather(*(spending.reserve(amounts) for _ in range(2)))
        assert first is None
        assert second is not None
        await spending.settle(amounts, {"tokens": 50.0})
        async with asyncio.timeout(5):
            await second()
        assert await spending.reserve(amounts) is None

    asyncio.run(both())


def test_requests_that_are_cancelled_give_back_what_was_set_aside_for_them():
    budget = Slow({"tokens": 4000.0})
    spending = Spending(worker(budget), Limits(max_tokens_total=4000), "a test")

    async def request() -> None:
        await spending.reserve({"tokens": 100.0})
        try:
            await asyncio.sleep(60)
        finally:
            await spending.settle({"tokens": 100.0}, {"tokens": 0.0})

    async def cancelled() -> None:
        tasks = [asyncio.create_task(request()) for _ in range(40)]
        while spending.unsettled < len(tasks):
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
