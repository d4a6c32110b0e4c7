"""Images made ready for a server, a second of one core, beside asking the server about them.

    python -m tests.benchmarks.caption_images

`ready` decodes, shrinks and encodes, as caption.synthesize does before it asks; `ask` sends what is
ready to a server on loopback that answers at once, and reads the answer: the client alone.

Measured (2026-11-26, 2 shared cores, busy): ready 452 images/s of 512 x 384, as download.images
stores them, 137 of 1600 x 1200, 39 of 4000 x 3000; ask 1,240. A server that answers
faster than a core makes ready waits for it: give its worker more `cpus`, or store small pictures.
"""

import asyncio
import time
from pathlib import Path

from pipeline.stage import Worker
from stages.caption._pictures import jpeg_of
from stages.models.generator import Decoding, Limits, Prompt, open_asker
from tests.benchmarks.img2dataset import KINDS, photo
from tests.benchmarks.side_by_side import side_by_side
from tests.text_server import TextServer

IMAGES, SIDE = 12, 448
STORED = {"as download.images stores": (512, 384, 95, ())}


def main() -> None:
    with TextServer().running() as server:
        for kind, (width, height, quality, _) in {**STORED, **KINDS}.items():
            bodies = [photo(width, height, quality, number) for number in range(IMAGES)]
            sent = [jpeg_of(body, SIDE) for body in bodies]
            size = sum(map(len, sent)) // IMAGES
            print(f"{kind}: {width} x {height}, to {SIDE} pixels and {size:,} bytes")
            side_by_side(
                rows=IMAGES,
                clock=time.thread_time,  # the server is a thread beside this one
                ask=lambda sent=sent: ask(sent, f"openai:{server.url}#{server.model}"),
                ready=lambda bodies=bodies: [jpeg_of(body, SIDE) for body in bodies],
            )


def ask(sent: list[bytes], model: str) -> None:
    at = Worker(seed=0, stage="bench", device="cpu", threads=1, scratch=Path())

    async def all_of_them() -> None:
        asker = open_asker(model, at, decoding=Decoding(), limits=Limits(), form="chat")
        prompts = (Prompt(text="What is it?", image=image) for image in sent)
        answers = await asyncio.gather(*(asker.ask(prompt, seed=0) for prompt in prompts))
        assert all(answer.text for answer in answers)

    asyncio.run(all_of_them())


if __name__ == "__main__":
    main()
