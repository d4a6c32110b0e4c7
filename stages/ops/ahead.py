"""Runs batches side by side, for stages whose rows wait for a network."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pyarrow as pa


async def ahead(
    batches: AsyncIterator[pa.Table],
    start: Callable[[pa.Table], Coroutine[Any, Any, pa.Table]],
    rows_ahead: int,
) -> AsyncIterator[pa.Table]:
    """Yields what `start` makes of each batch, in the order of the batches.

    Several run at once: at most `rows_ahead` rows, and always one batch. A batch counts until its
    result is taken; one more has been read and waits. An error is raised in its batch's turn, after
    the results before it, and all other batches are cancelled.
    """
    begun: asyncio.Queue[tuple[int, asyncio.Task[pa.Table]] | None] = asyncio.Queue()
    tasks: set[asyncio.Task[Any]] = set()
    rows, freed = 0, asyncio.Event()

    async def begin() -> None:
        nonlocal rows
        async for batch in batches:
            while rows and rows + len(batch) > rows_ahead:
                freed.clear()
                await freed.wait()
            rows += len(batch)
            task = asyncio.create_task(start(batch))
            tasks.add(task)
            begun.put_nowait((len(batch), task))

    reader = asyncio.create_task(begin())
    tasks.add(reader)
    reader.add_done_callback(lambda _: begun.put_nowait(None))
    try:
        while (first := await begun.get()) is not None:
            table = await first[1]
            tasks.discard(first[1])
            rows -= first[0]
            freed.set()
            yield table
        await reader  # raises what reading raised
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
