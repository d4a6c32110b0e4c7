"""Tokens a second through the caption stages' client against a bare client of the same server.

    python -m tests.benchmarks.served_tokens

The server is smollm2's, which answers 8 requests side by side. Both keep 8 under way and ask the
same: `bare` is a closed loop of 8 threads with a connection each, as servers' own benchmarks are.
Answers are of 32 tokens at most.

Aim: at least 0.9 of `bare`.
"""

import asyncio
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipeline.engine.environments import python_of
from pipeline.engine.helpers import HelperProcess
from pipeline.stage import Worker
from stages.models import smollm2
from stages.models.endpoint import Endpoint
from stages.models.generator import Asker, Decoding, Limits, Prompt
from stages.models.served import OverSocket
from tests.benchmarks.side_by_side import side_by_side

ANSWERS, AT_ONCE, TOKENS, ROUNDS = 32, 8, 32, 3
DECODING = Decoding(max_tokens=TOKENS, temperature=0.7)
LIMITS = Limits(concurrency=AT_ONCE, timeout_s=600)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        start = partial(HelperProcess, "bench", Path(scratch))
        here = {"seed": 0, "stage": "bench", "device": "cpu", "threads": 2}
        worker = Worker(scratch=Path(scratch), environment=python_of, start_helper=start, **here)
        endpoint = smollm2.endpoint("", worker, LIMITS)
        tokens = {"bare": 0, "ask": 0}
        rivals = {
            "bare": lambda: tokens.update(bare=bare(endpoint)),
            "ask": lambda: tokens.update(ask=asyncio.run(through_asker(endpoint))),
        }
        side_by_side(ANSWERS, rounds=ROUNDS, **rivals)
        print(f"tokens of a round: {tokens}")


def text(number: int) -> str:
    return f"Tell a long story of what this picture may show: a small black cat, number {number}."


def bare(endpoint: Endpoint) -> int:
    """The tokens that the server wrote."""

    def loop(first: int) -> int:
        path, written = Path(endpoint.url.removeprefix("unix:")), 0
        connection = OverSocket(path, LIMITS.timeout_s)
        headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json"}
        for number in range(first, ANSWERS, AT_ONCE):
            body = {
                "model": endpoint.model,
                "messages": [{"role": "user", "content": text(number)}],
                "max_tokens": TOKENS,
                "temperature": DECODING.temperature,
                "seed": number,
            }
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            reply = json.loads(connection.getresponse().read())
            written += reply["usage"]["completion_tokens"]
        return written

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(loop, range(AT_ONCE)))


async def through_asker(endpoint: Endpoint) -> int:
    """The same through an Asker that has nothing stored yet."""
    worker = Worker(seed=0, stage="bench", device="cpu", threads=1, scratch=Path())
    given = {"decoding": DECODING, "limits": LIMITS, "form": "chat", "where": "smollm2"}
    asker = Asker(endpoint, worker, **given)
    asked = (asker.ask(Prompt(text=text(number)), seed=number) for number in range(ANSWERS))
    return sum([answer.completion_tokens for answer in await asyncio.gather(*asked)])


if __name__ == "__main__":
    main()
