"""Batches of the trainer against decoding whole images, and against webdataset's.

    python -m tests.benchmarks.loader

Cached: 256 JPEGs of 256 pixels decoded and resized for each batch (decode), `Batches[n]` from the
cache of resized pictures (loader), and a training step of nano in bf16, which eats them (step).
Streamed: 128 JPEGs of 512 pixels, cropped at random to 224: webdataset with Pillow and torchvision
as open_clip reads tars, and `Streamed[n]` from Parquet; texts as tokens of nano in both. One
thread; CPU time, for others share the cores. Ratios are to the first. Pictures are checked first:
the cache's equal decoding's, a crop equals torchvision's of the same box.
"""

import tarfile
import tempfile
from concurrent.futures import wait
from io import BytesIO
from itertools import count
from pathlib import Path
from time import process_time

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset as wds
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from clipmill.metadata.schema import IMAGE, LOSS_WEIGHT, REPEATS, TEXTS, UID
from clipmill.stages.clip.cache import cache_shard, read_cached
from clipmill.stages.clip.crop import box_of, crop
from clipmill.stages.clip.loader import Batches
from clipmill.stages.clip.loop import Schedule, Trainer
from clipmill.stages.clip.named import new_model
from clipmill.stages.clip.nano import NANO, reads
from clipmill.stages.clip.scales import CROP_AREA, CROP_ASPECT
from clipmill.stages.clip.stream import Streamed, View, index_shard
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.resize import square
from tests.benchmarks.side_by_side import begin, side_by_side

IMAGES, SIDE, ROWS = 2048, 256, 256
SCHEDULE = Schedule(
    steps=118, learning_rate=2e-3, warmup_steps=10, weight_decay=0.1, precision="bf16"
)
STREAMED, CROP = 128, 224  # rows of a streamed batch, and pixels a side


def main() -> str:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jpegs = [jpeg(number) for number in range(IMAGES)]
        write_shard(folder / "data" / "out", jpegs)
        data, model = str(folder / "data"), reads(NANO)
        wanted = (model.image_size, model.tokenize, None, ())
        file = {"file": "00000.parquet", "rows": IMAGES, "first": 0}
        shard = cache_shard(data, name, *wanted, file, None)
        [part] = read_cached(name, [shard])
        for number in range(20):
            np.testing.assert_array_equal(part.images[number], decoded(jpegs[number]))
        batches = Batches([part], size=ROWS, seed=0)
        learner, numbers = Trainer(new_model("nano", 0), SCHEDULE), count()
        cached = side_by_side(
            ROWS,
            rounds=9,
            clock=process_time,
            decode=lambda: [decoded(jpegs[row]) for row in batches[0].rows],
            loader=lambda: batches[next(numbers)],
            step=lambda: learner.learn(batches[0]),
        )
    with tempfile.TemporaryDirectory() as name:
        streamed = against_webdataset(Path(name))
    return f"cached {cached['loader']} decoding, streamed {streamed} webdataset"


def against_webdataset(folder: Path) -> str:
    jpegs = [jpeg(number, 512) for number in range(4 * STREAMED)]
    write_shard(folder / "out", jpegs)
    write_tar(folder / "00000.tar", jpegs)
    tokenize = reads(NANO).tokenize
    file = {"file": "00000.parquet", "rows": len(jpegs), "first": 0}
    indexed = index_shard(str(folder), None, (), file, None)
    view = View(size=CROP, augment="crop", tokenize=tokenize, texts="first")
    made = {"size": STREAMED, "seed": 0, "sampling": "epochs"}
    streamed, numbers = Streamed(str(folder), [indexed], view, **made), count()
    for coin in range(1, 6):
        top, left, height, width = box_of(512, 512, coin)
        box = (left, top, left + width, top + height)
        theirs = Image.open(BytesIO(jpegs[coin])).crop(box).resize((CROP, CROP), Image.BICUBIC)
        np.testing.assert_array_equal(crop(jpegs[coin], CROP, coin), np.asarray(theirs))
    change = RandomResizedCrop(CROP, CROP_AREA, CROP_ASPECT, InterpolationMode.BICUBIC)
    tars = (
        wds.WebDataset(str(folder / "00000.tar"), shardshuffle=False)
        .repeat()
        .shuffle(STREAMED)
        .decode("pilrgb")
        .to_tuple("jpg", "txt")
        .map_tuple(lambda picture: np.asarray(change(picture)).transpose(2, 0, 1))
        .batched(STREAMED)
    )
    batches = iter(tars)

    def rival() -> int:
        pixels, texts = next(batches)
        tokenize(texts)
        return np.stack(pixels).nbytes

    def ours() -> int:
        batch = streamed[next(numbers)]
        for parts in streamed._begun.values():  # made ahead: all of it is this round's work
            wait(parts)
        return batch.pixels.nbytes

    assert rival() == ours() == STREAMED * 3 * CROP**2
    ratios = side_by_side(STREAMED, rounds=9, clock=process_time, webdataset=rival, streamed=ours)
    streamed.close()
    return ratios["streamed"]


def write_tar(path: Path, jpegs: list[bytes]) -> None:
    """The same pictures and texts as img2dataset writes them."""
    with tarfile.open(path, "w") as tar:
        for number, body in enumerate(jpegs):
            for suffix, data in (("jpg", body), ("txt", text_of(number).encode())):
                header = tarfile.TarInfo(f"{number:09d}.{suffix}")
                header.size = len(data)
                tar.addfile(header, BytesIO(data))


def text_of(number: int) -> str:
    return f"a picture of thing number {number}"


def jpeg(number: int, side: int = SIDE) -> bytes:
    """A photograph's worth of detail."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (16, 16, 3), np.uint8)
    image = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
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
            "texts": [{"text": text_of(number), "source": "original"}],
            "repeats": 1,
            "loss_weight": 1.0,
        }
        for number, body in enumerate(jpegs)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema), out / "00000.parquet")


if __name__ == "__main__":
    begin(main)
