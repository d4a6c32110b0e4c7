"""Pictures of every format with bytes flipped, cut, repeated and exchanged, and lengths that lie.

    python -m tests.mutated_pictures 200000 [SEED]

puts so many through the stages, and tells what they got and which took longest.
"""

import resource
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from time import process_time

import numpy as np
import pyarrow as pa
from PIL import Image

from clipmill.metadata.schema import REASON
from clipmill.pipeline.stage import RowFunction, RowStage, Worker
from clipmill.stages.annotate.image import AnnotateImage
from clipmill.stages.annotate.phash import PHash
from clipmill.stages.dedup.exact import pixel_digests
from clipmill.stages.download.images import DownloadImages, kept
from clipmill.stages.embed.clip import ClipEmbedding
from clipmill.stages.export.webdataset import suffix_of
from clipmill.stages.ops.images.pixels import PIXELS, decoded
from clipmill.stages.ops.tables.blocklists import Blocked
from tests.hostile_pictures import noise, saved

STAGES = (AnnotateImage(), PHash(dhash=True), ClipEmbedding(model="reference"))
EXTREMES = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def originals() -> list[bytes]:
    """Small pictures, each format in what it can do."""
    image, other = noise(29, 23), noise(29, 23).convert("L")
    film = {"save_all": True, "append_images": [other, image]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    told = {"exif": exif, "icc_profile": bytes(300), "dpi": (72, 72)}
    ways: list[tuple[str, Image.Image, dict]] = [
        ("jpeg", image, told),
        *(("jpeg", image.convert(mode), {"progressive": True}) for mode in ("RGB", "L", "CMYK")),
        ("jpeg", image, {"subsampling": 2, "restart_marker_blocks": 2}),
        ("png", image, told),
        *(("png", image.convert(mode), {}) for mode in ("1", "P", "LA", "RGBA", "I;16")),
        ("png", image, film),
        ("png", image, film | {"default_image": True}),
        ("gif", image, {"comment": b"a comment", "interlace": 1}),
        ("gif", image, film),
        *(("webp", image, options) for options in (told, film, {"lossless": True})),
        *(
            ("tiff", image, {"compression": f"tiff_{way}"})
            for way in ("lzw", "adobe_deflate", "jpeg")
        ),
        *(("tiff", image.convert(mode), told) for mode in ("RGB", "1", "CMYK", "F")),
        ("tiff", image, film),
        *(("bmp", image.convert(mode), {}) for mode in ("RGB", "P", "1")),
        ("avif", image, told),
    ]
    return [saved(image, name, **options) for name, image, options in ways]


def mutants(seed: int) -> Iterator[bytes]:
    """Without end; the same for a seed."""
    rng, whole = np.random.default_rng(seed), originals()
    while True:
        body = bytearray(whole[rng.integers(len(whole))])
        for _ in range(rng.integers(1, 4)):
            mutate(body, whole, rng)
        yield bytes(body)


def mutate(body: bytearray, whole: list[bytes], rng: np.random.Generator) -> None:
    """One thing done to it, more often near the head, where it tells most of itself."""
    at = int(len(body) * rng.random() ** rng.integers(1, 4))
    size = int(rng.integers(1, 64))
    match rng.integers(6):
        case 0:
            body[at : at + 1] = rng.bytes(1)
        case 1:
            del body[max(at, 12) :]
        case 2:
            width, order = int(rng.choice([1, 2, 3, 4])), rng.choice(["little", "big"])
            number = int(rng.choice(EXTREMES)) % 256**width
            body[at : at + width] = number.to_bytes(width, order)
        case 3:
            body[at:at] = body[at : at + size] * int(rng.integers(1, 40))
        case 4:
            del body[at : at + size]
        case 5:
            other = whole[rng.integers(len(whole))]
            start = int(rng.integers(len(other)))
            body[at : at + size] = other[start : start + size]


def opened(stage: RowStage, scratch) -> RowFunction:
    return stage.open(Worker(seed=0, stage="it", device="cpu", threads=1, scratch=scratch))


def through(bodies: list[bytes], functions: list[RowFunction]) -> list[list[dict]]:
    """What each stage says of each picture."""
    image = pa.array(bodies, pa.binary())
    batch = pa.table(
        {
            "uid": pa.array([bytes(16)] * len(bodies), pa.binary(16)),
            "image": image,
            "text": pa.array([""] * len(bodies)),
            PIXELS.name: decoded(image),
        }
    )
    download = DownloadImages(image_size=16, resize="border")
    return [
        *(function(batch).to_pylist() for function in functions),
        [vars(kept(body, settings=download, blocked=Blocked({}))) for body in bodies],
        [{"pixels": digest} for digest in pixel_digests(pa.chunked_array([image])).to_pylist()],
        [{"suffix": suffix_of(body)} for body in bodies],
    ]


def main(count: int, seed: int = 1) -> None:
    functions = [opened(stage, None) for stage in STAGES]
    reasons: Counter[str] = Counter()
    slowest: list[tuple[float, bytes]] = []
    for number, body in enumerate(islice(mutants(seed), count)):
        start = process_time()
        said = through([body], functions)
        slowest = sorted([*slowest, (process_time() - start, body)], key=lambda it: -it[0])[:5]
        reasons[said[len(STAGES)][0][REASON.name] or "decoded"] += 1
        if number % 1000 == 999:
            print(f"\r{number + 1:,}", end="", file=sys.stderr)
    print(f"\n{dict(reasons)}; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB")
    for spent, body in slowest:
        print(f"{spent:.2f} s: {len(body):,} bytes, {body[:12]!r}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
