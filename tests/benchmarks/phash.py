"""pHash of decoded images: the stage against imagehash, and against its steps without numba.

    python -m tests.benchmarks.phash [full | PIXELS ...]    256; full: 64, 256 and 512

From decoded pixels, a batch as the stage gets it, to integers that can be stored, equal bit for
bit; decoding is outside, the same for all. imagehash spends its time in Pillow's grey and Lanczos
filter; both are integer arithmetic, done here by compiled loops that the processor runs many values
at a time. Its hex string, the form in which it stores a hash, is 20 us an image, a sixth of its
time at 64. Without the loops ("Pillow, batched") little is won: that is why numba is a dependency
(208 MB installed, 0.3 s to import in a worker, kernels cached on disk).

Aim: 6x imagehash.
Measured (2026-11-25, EPYC, 2 shared cores, load 3, CPU time, three runs of 25 rounds): 8.2x at a
longer side of 512 (6.4 to 13.0), 7.8x at 256 (6.2 to 10.4); 5.8x, 5.9x and 6.2x at 64 (4.9 to 7.2),
where calls, and code that another's has pushed out of the cache, weigh more than pixels: there the
aim is reached, and no more. Pillow, batched: 1.1x, 1.2x, 1.7x.
"""

from time import process_time

import cv2
import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.fft import dct

from clipmill.stages.annotate.phash import PHASH, PHash, hashed
from clipmill.stages.ops.images.pixels import PIXELS
from tests.benchmarks.side_by_side import begin, side_by_side

LANCZOS = Image.Resampling.LANCZOS


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Soft blobs with noise."""
    small = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    soft = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(soft) ^ rng.integers(0, 4, (height, width, 3), dtype=np.uint8)


def theirs(pictures: list[np.ndarray]) -> list[int]:
    return [int(str(imagehash.phash(Image.fromarray(rgb))), 16) for rgb in pictures]


def by_pillow(pictures: list[np.ndarray]) -> list[int]:
    """Their steps, with the transforms of a batch in one call."""
    greys = [Image.fromarray(rgb).convert("L").resize((32, 32), LANCZOS) for rgb in pictures]
    small = np.stack([np.asarray(grey) for grey in greys]).astype(np.float64)
    low = dct(dct(small, axis=1)[:, :8], axis=2)[:, :, :8].reshape(len(pictures), 64)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].tolist()


def main(*sides: int) -> str:
    rng = np.random.default_rng(0)
    for longer in sides:
        sizes = rng.integers(longer // 2, longer + 1, PHash.batch_rows)
        shapes = [(longer, s) if s % 2 else (s, longer) for s in sizes.tolist()]
        pictures = [picture(rng, *shape) for shape in shapes]
        pixels = [
            {"height": h, "width": w, "rgb": rgb.tobytes()}
            for (h, w), rgb in zip(shapes, pictures, strict=True)
        ]
        bodies = pa.array([b""] * len(pictures), pa.binary())  # of which only nulls are looked at
        batch = pa.table({"image": bodies, PIXELS.name: pa.array(pixels, PIXELS.dtype)})
        rivals = {
            "imagehash": lambda pictures=pictures: theirs(pictures),
            "Pillow, batched": lambda pictures=pictures: by_pillow(pictures),
            "stage": lambda batch=batch: hashed(batch, (PHASH,))["phash"].to_pylist(),
        }
        assert rivals["imagehash"]() == rivals["Pillow, batched"]() == rivals["stage"]()
        print(f"longer side {longer}")
        ratios = side_by_side(rows=len(pictures), rounds=25, clock=process_time, **rivals)
    return f"{ratios['stage']} imagehash"


if __name__ == "__main__":
    begin(main, quick=(256,), full=(64, 256, 512))
