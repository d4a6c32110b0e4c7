"""A model server asked as caption stages ask it, against a stand-in in another process.

    python -m tests.benchmarks.asking

Overlap: a server that takes 200 ms for each answer, 32 requests at once. Ideal: no slot is ever
empty, and nothing but those 200 ms takes time. `at_once` asks all rows side by side, `ahead` has
batches under way side by side, `barrier` one after the other.
Cost: CPU of this process for an answer; `bare` posts the same bodies and reads the answers' text.
Stored: the same questions again, from answers in memory.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time

import aiohttp
import msgspec
import pyarrow as pa

from pipeline.stage import Worker
from stages.models.generator import Asker, Decoding, Limits, Prompt, open_asker
from stages.ops.ahead import ahead
from tests.benchmarks.side_by_side import side_by_side

AT_ONCE, LATENCY_S = 32, 0.2
ROWS, BATCH, AHEAD = 1600, 50, 200  # batches that do not fill the slots evenly
ANSWERS = 400  # of a round, where CPU is measured


def main() -> None:
    with server(LATENCY_S) as model:
        ideal_s = ROWS / AT_ONCE * LATENCY_S
        ways = {"at_once": all_rows, "ahead": in_batches, "barrier": one_after_another}
        for name, way in ways.items():
            start = perf_counter()
            assert asyncio.run(way(asker(model))) == ROWS
            seconds = perf_counter() - start
            print(
                f"{name:<8}{seconds:>8.2f} s for {ROWS} answers, {ideal_s / seconds:.1%} of ideal"
            )
    with server(0) as model:
        stored = asker(model)
        rivals = {
            "bare": lambda: asyncio.run(bare(model)),
            "ask": lambda: asyncio.run(all_of(asker(model))),
            "stored": lambda: asyncio.run(all_of(stored)),
        }
        assert rivals["ask"]() == rivals["stored"]() == rivals["bare"]()  # and it is stored now
        side_by_side(ANSWERS, clock=process_time, **rivals)


@contextmanager
def server(latency_s: float, *more: str) -> Iterator[str]:
    """The model string of a stand-in in a process of its own."""
    command = [sys.executable, "-m", "tests.text_server", "--latency", str(latency_s), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[0]
    finally:
        process.terminate()
        process.wait()


def asker(model: str) -> Asker:
    worker = Worker(seed=0, stage="bench", device="cpu", threads=1, scratch=Path())
    given = {"decoding": Decoding(max_tokens=77), "limits": Limits(concurrency=AT_ONCE)}
    return open_asker(model, worker, form="completion", **given)


def prompt(number: int) -> Prompt:
    return Prompt(text=f"Write it anew.\n\na small black cat on a mat number {number} =>")


async def all_of(one: Asker, first: int = 0, rows: int = ANSWERS) -> list[str | None]:
    asked = (one.ask(prompt(i), seed=i) for i in range(first, first + rows))
    return [answer.text for answer in await asyncio.gather(*asked)]


async def bare(model: str) -> list[str | None]:
    """The same requests, without retries, budgets, keys and stored answers."""
    url, _, name = model.removeprefix("openai:").partition("#")
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(i: int) -> str:
        body = {"model": name, "prompt": prompt(i).text, "max_tokens": 77, "temperature": 1.0}
        data = msgspec.json.encode({**body, "seed": i})
        async with slots, session.post(f"{url}/completions", data=data) as response:
            return msgspec.json.decode(await response.read())["choices"][0]["text"]

    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
        return list(await asyncio.gather(*map(one, range(ANSWERS))))


async def batches() -> AsyncIterator[pa.Table]:
    for first in range(0, ROWS, BATCH):
        yield pa.table({"number": range(first, first + BATCH)})


def starter(one: Asker) -> Callable:
    async def start(batch: pa.Table) -> pa.Table:
        texts = await all_of(one, batch["number"][0].as_py(), len(batch))
        return pa.table({"text": texts})

    return start


async def all_rows(one: Asker) -> int:
    return len(await all_of(one, rows=ROWS))


async def in_batches(one: Asker) -> int:
    return sum([len(table) async for table in ahead(batches(), starter(one), AHEAD)])


async def one_after_another(one: Asker) -> int:
    start = starter(one)
    return sum([len(await start(batch)) async for batch in batches()])


if __name__ == "__main__":
    main()
