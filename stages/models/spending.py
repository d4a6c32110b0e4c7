"""The budget of a stage's answers, in tokens and dollars."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Budget, Worker
from clipmill.stages.models.endpoint import Limits

LOOK_AGAIN_S = 0.5  # between tries, while other workers hold reservations
UNITS = {"tokens": ("max_tokens_total", "tokens"), "usd": ("max_usd", "dollars")}


class Spending:
    """One worker's access to the budget that all workers of its stage share."""

    def __init__(self, worker: Worker, limits: Limits, where: str) -> None:
        self.where = where
        caps = {"tokens": limits.max_tokens_total, "usd": limits.max_usd}
        self.caps = {unit: float(cap) for unit, cap in caps.items() if cap is not None}
        self.limits = limits
        self.budget: Budget | None = worker.budget(self.caps) if self.caps else None
        self.unsettled = 0  # reservations of this worker
        self.settled = asyncio.Event()  # set by the next reservation that is settled, then replaced
        self.asking = asyncio.Lock()  # one try at a time: a refused one must know of those granted

    def amounts(self, prompt_tokens: int, completion_tokens: int) -> dict[str, float]:
        """Returns an answer's cost in each unit that has a cap."""
        usd = self.limits.usd(prompt_tokens, completion_tokens) or 0.0
        every = {"tokens": float(prompt_tokens + completion_tokens), "usd": usd}
        return {unit: every[unit] for unit in self.caps}

    async def reserve(self, amounts: Mapping[str, float]) -> Callable[[], Awaitable[object]] | None:
        """Reserves the amounts. Returns None, or if refused what to await before the next try.

        Raises StageError if the budget is spent and no worker has a reservation that may return.
        """
        budget, loop = self.budget, asyncio.get_running_loop()
        if budget is None:
            return None
        async with self.asking:
            # Read before the try, as a reservation may be settled during it.
            unsettled, settled = self.unsettled, self.settled
            granted = loop.run_in_executor(None, budget.reserve, amounts)
            try:
                is_granted = await asyncio.shield(granted)
            except asyncio.CancelledError:
                granted.add_done_callback(partial(_give_back, budget, amounts))
                raise
            if is_granted:
                self.unsettled += 1
                return None
            if unsettled:
                return settled.wait
            if await asyncio.to_thread(budget.may_return):
                return partial(asyncio.sleep, LOOK_AGAIN_S)
            spent = await asyncio.to_thread(budget.spent)
        unit = max(self.caps, key=lambda unit: spent[unit] + amounts[unit] - self.caps[unit])
        key, name = UNITS[unit]
        raise StageError(
            f"the budget is spent: {spent[unit]:,.10g} of {self.caps[unit]:,.10g} {name}; another"
            f" answer may take {amounts[unit]:,.4g}",
            self.where,
            f"raise limits.{key} and run again: what is stored stays, and is not asked for again",
        )

    async def settle(self, reserved: Mapping[str, float], spent: Mapping[str, float]) -> None:
        """Replaces a reservation by the actual cost."""
        if self.budget is None:
            return
        loop = asyncio.get_running_loop()
        settling = loop.run_in_executor(None, self.budget.settle, reserved, spent)
        try:
            await asyncio.shield(settling)  # a cancelled row settles, too
        finally:
            self.unsettled -= 1
            self.settled.set()
            self.settled = asyncio.Event()


def _give_back(
    budget: Budget, amounts: Mapping[str, float], granted: "asyncio.Future[bool]"
) -> None:
    """Returns a reservation to the budget, if it was granted though its request was cancelled."""
    if not granted.cancelled() and granted.exception() is None and granted.result():
        budget.settle(amounts, {})
