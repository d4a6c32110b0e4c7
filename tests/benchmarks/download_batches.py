"""Downloads with one slow host in each batch: batches side by side, and one after another.

    python -m tests.benchmarks.download_batches [full | BATCHES]        3; full: 6

A loopback server in a process of its own answers with one small JPEG, at once; the first URL of
each batch of 256 takes 1 s. Both rivals are download.images with one function each: `barrier`
gets a batch when the one before it is done, as it was before batches were side by side. Values are
equal.

Measured (2026-11-26, EPYC, 2 cores under load): side by side 2.0x (1.6 to 3.7).
"""

import tempfile
from pathlib import Path
from subprocess import PIPE, Popen
from sys import executable

import pyarrow as pa

from clipmill.pipeline.contract import OneByOne
from clipmill.pipeline.stage import Worker
from clipmill.stages.download.images import DownloadImages
from tests.benchmarks.side_by_side import begin, side_by_side

ROWS = 256
SLOW_S = 1.0
SERVER = """
import asyncio
from aiohttp import web
from tests.stages.download.site import FILES

async def answer(request):
    await asyncio.sleep(float(request.query.get("s", 0)))
    return web.Response(body=FILES["ok.jpg"])

async def main():
    app = web.Application()
    app.router.add_get("/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def main(count: int) -> str:
    with Popen([executable, "-c", SERVER], stdout=PIPE, text=True) as server:
        try:
            assert server.stdout
            return compare(int(server.stdout.readline()), count)
        finally:
            server.kill()


def compare(port: int, count: int) -> str:
    def urls(batch: int) -> pa.Table:
        first = f"http://localhost:{port}/{batch}?s={SLOW_S}"  # another host than the others'
        others = [f"http://127.0.0.1:{port}/{batch}/{row}" for row in range(1, ROWS)]
        return pa.table({"url": [first, *others]})

    batches = [urls(number) for number in range(count)]
    stage = DownloadImages(allow_private_addresses=True, max_per_host=32)
    worker = Worker(
        seed=0, stage="images", device="cpu", threads=1, scratch=Path(tempfile.gettempdir())
    )
    function = OneByOne(stage.open(worker))
    rivals = {
        "barrier": lambda: [function(batch) for batch in batches],
        "side by side": lambda: function.all(batches),
    }
    one, other = (pa.concat_tables(run()) for run in rivals.values())
    assert one.to_pydict() == other.to_pydict()  # a fast wrong answer is no result
    assert one["reason"].null_count == len(one)
    ratios = side_by_side(rows=count * ROWS, rounds=3, **rivals)
    return f"{ratios['side by side']} a batch at a time"


if __name__ == "__main__":
    begin(main, quick=(3,), full=(6,))
