"""Batches of the nano scale against the step that eats them, and against decoding whole images.

    python -m tests.benchmarks.loader

Step: one training step in bf16. Loader: `Batches[n]` from the cache of resized pictures. Decode:
what the cache saves: the same 256 JPEGs of 256 pixels decoded and resized for every batch. One
thread; CPU time, for others share the cores. The cache's pictures are checked equal to decoding's.
"""

import tempfile
from itertools import count
from pathlib import Path
from time import process_time

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from metadata.schema import IMAGE, LOSS_WEIGHT, REPEATS, TEXTS, UID
from stages.clip.cache import cache_shard, read_cached, square
from stages.clip.loader import Batches
from stages.clip.nano import NANO, reads
from stages.ops.images import decode
from tests.benchmarks.nano_step import ROWS, trainer
from tests.benchmarks.side_by_side import side_by_side

IMAGES, SIDE = 2048, 256


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jpegs = [jpeg(number) for number in range(IMAGES)]
        write_shard(folder / "data" / "out", jpegs)
        data, model = str(folder / "data"), reads(NANO)
        wanted = (model.image_size, model.tokenize, None, ())
        file = {"file": "00000.parquet", "rows": IMAGES, "first": 0}
        cached = cache_shard(data, name, *wanted, file, None)
        [part] = read_cached(name, [cached])
        for number in range(20):
            np.testing.assert_array_equal(part.images[number], decoded(jpegs[number]))
        batches = Batches([part], size=ROWS, seed=0)
        learner, numbers = trainer("bf16"), count()
        side_by_side(
            ROWS,
            rounds=9,
            clock=process_time,
            step=lambda: learner.learn(batches[0]),
            loader=lambda: batches[next(numbers)],
            decode=lambda: [decoded(jpegs[row]) for row in batches[0].rows],
        )


def jpeg(number: int) -> bytes:
    """A photograph's worth of detail."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (16, 16, 3), np.uint8)
    image = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", image)[1].tobytes()


def decoded(body: bytes) -> np.ndarray:
    return square(decode(body), NANO.image_size)


def write_shard(out: Path, jpegs: list[bytes]) -> None:
    """One shard as export.parquet leaves it."""
    out.mkdir(parents=True)
    schema = pa.schema([(c.name, c.dtype) for c in (UID, IMAGE, TEXTS, REPEATS, LOSS_WEIGHT)])
    rows = [
        {
            "uid": number.to_bytes(16, "big"),
            "image": body,
            "texts": [{"text": f"a picture of thing number {number}", "source": "original"}],
            "repeats": 1,
            "loss_weight": 1.0,
        }
        for number, body in enumerate(jpegs)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema), out / "00000.parquet")


if __name__ == "__main__":
    main()
