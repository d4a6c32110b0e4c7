"""caption.rewrite in a run, against a server in another process that takes 200 ms an answer.

    python -m tests.benchmarks.asked_stage [full | ANSWERS ...]    800; full: 800 and 3,200

Ideal: the server's slots are never empty, and nothing but those 200 ms takes time. `run` is a run
of one shard without workers, `bare` a loop of 30 lines that posts bodies of that size and reads the
answers: what the machine allows at its load. Both from the first request to the last answer, as
the server saw it; `start-up` is the rest of the run: plan, pool, what is stored.
`slow` is a run in which one request in a hundred is refused for 6 s, answers take 1 s and 128 are
asked for at once: those that wait hold up no others, but for 6 s at the end.
"""

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import aiohttp
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.cli import main as clipmill
from tests.benchmarks.side_by_side import begin

AT_ONCE, LATENCY_S = (32, 64), 0.2
SLOW_AT_ONCE, SLOW_S, FAULTS = 128, 1.0, ("--faults", "503:6", "--every", "100")
RECIPE = """
stages:
  pool: {uses: ingest.datacomp, path: POOL}
  made: {uses: caption.rewrite, from: pool, model: "MODEL", styles: [human],
         limits: {concurrency: AT_ONCE}}
"""


def main(*sizes: int) -> str:
    for rows in sizes:
        for at_once in AT_ONCE:
            mine = measure("run", at_once, rows, LATENCY_S)
            bare = measure("bare", at_once, rows, LATENCY_S)
    measure("slow", SLOW_AT_ONCE, sizes[-1], SLOW_S, *FAULTS)
    return f"{mine:.0%} of the slots at work, a bare loop {bare:.0%}"


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


def measure(name: str, at_once: int, rows: int, latency_s: float, *faults: str) -> float:
    """The share of the ideal that the server's slots were at work."""
    with tempfile.TemporaryDirectory() as folder, server(latency_s, *faults) as model:
        start = perf_counter()
        if name == "bare":
            assert asyncio.run(bare(model, at_once, rows)) == rows
        else:
            run(Path(folder), model, at_once, rows)
        seconds, busy_s = perf_counter() - start, seen(model)["busy_s"]
    ideal_s = rows / at_once * latency_s
    start_up = f", start-up {seconds - busy_s:.1f} s" if name != "bare" else ""
    print(
        f"{at_once:>3} at once, {rows:>5} answers: {name:<5}{busy_s:>7.2f} s,"
        f" {ideal_s / busy_s:.1%} of ideal{start_up}, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return ideal_s / busy_s


def run(folder: Path, model: str, at_once: int, rows: int) -> None:
    columns = {
        "uid": [f"{row:032x}" for row in range(rows)],
        "url": ["http://127.0.0.1/"] * rows,
        "text": [f"a small black cat on a mat number {row}" for row in range(rows)],
    }
    pq.write_table(pa.table(columns), folder / "pool.parquet")
    recipe = folder / "it.yaml"
    given = {"POOL": str(folder / "pool.parquet"), "MODEL": model, "AT_ONCE": str(at_once)}
    text = RECIPE
    for name, value in given.items():
        text = text.replace(name, value)
    recipe.write_text(text)
    arguments = ["run", str(recipe), "--out", str(folder / "run"), "--workers", "0"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert clipmill(arguments) == 0
    assert seen(model)["good"] == rows


def seen(model: str) -> dict[str, float]:
    """What the server saw: for how long it was at work, and how many good answers it sent."""
    base = model.removeprefix("openai:").partition("/v1#")[0]
    with urllib.request.urlopen(f"{base}/counts", timeout=30) as answer:
        counts = json.load(answer)
    return {"busy_s": counts["busy_s"], "good": sum(counts["answered"].values())}


async def bare(model: str, at_once: int, rows: int) -> int:
    url, _, name = model.removeprefix("openai:").partition("#")
    slots = asyncio.Semaphore(at_once)
    shown = "a small black cat on a mat => a cat that lies on a mat\n\n" * 8

    async def one(row: int) -> str:
        body = {"model": name, "prompt": f"{shown}number {row} =>", "max_tokens": 77, "seed": row}
        data = msgspec.json.encode(body)
        async with slots, session.post(f"{url}/completions", data=data) as response:
            return msgspec.json.decode(await response.read())["choices"][0]["text"]

    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        return len(await asyncio.gather(*map(one, range(rows))))


if __name__ == "__main__":
    begin(main, quick=(800,), full=(800, 3200))
