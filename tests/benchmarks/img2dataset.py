"""Images downloaded, resized to 256 and stored: against img2dataset, from one server in one run.

    python -m tests.benchmarks.img2dataset [full | KIND ...]    few; full: 500 kB and 12 MP

URLs in a Parquet file; JPEGs of soft colours with grain, the same for all, from a loopback server
whose CPU is not counted. img2dataset without what costs it more: one process, 16 threads, no EXIF;
SHA-256 as we take it, Parquet as we store it. Ours: ingest.url_list and download.images through the
engine, one worker. CPU seconds, user and system, of all of a run's processes, and the peak of its
greatest. Three sizes: the slope is what a picture costs, the
intercept what a start does. Outputs must be equal byte for byte; those of `decode: reduced` are
held to them by PSNR.

Aim: 1.4x from 500 kB in full, 2x reduced; 3x from 12 megapixels reduced. All met.
Measured (2026-11-26, EPYC, 2 cores, idle, three rounds): from 461 kB 59.3 images a CPU second
theirs, 87.3 in full (1.47x), 146.2 reduced (2.46x), which is 39.8 dB off; from 12 megapixels 10.1,
12.8 (1.26x) and 39.1 (3.86x), 41.3 dB. Starts: theirs 9.5 s, ours 2.2. Peaks: theirs 485 and
611 MB, ours 393 and 435, reduced 379 and 365. Theirs with 4 threads 59.5, with 32 54.4 (one round
each). Under load 1.30x to 1.96x in full. One process that only decodes, resizes, encodes and hashes
takes 17.8 ms a picture by its code, 10.0 by ours (1.8x), 5.5 reduced; from 12 megapixels 99, 51
and 22 ms.
"""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipmill.pipeline.pools.server import BEHAVIOUR
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import plan_of, run_toy, scratch, spend

SIZE = 256
FILES = 12  # of each kind, which the URLs repeat
KINDS = {  # width, height, quality, and how many in each run
    "few": (1600, 1200, 91, (30, 300)),
    "500 kB": (1600, 1200, 91, (150, 300, 600) * 3),
    "12 MP": (4000, 3000, 85, (40, 80, 160) * 3),
}
WAYS = ("img2dataset", "full", "reduced")


def main(*kinds: str) -> str:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # theirs would ask the network for a newer one
    for kind in kinds:
        width, height, quality, counts = KINDS[kind]
        with scratch() as folder, served(folder, width, height, quality, {*counts}):
            spent = {way: [] for way in WAYS}
            for count in counts:
                for way in WAYS:  # interleaved: a busy machine slows all alike
                    out = folder / f"{way}-{len(spent[way])}"
                    arguments = ("download", way, str(folder / f"{count}.parquet"), str(out))
                    name = "tests.benchmarks.img2dataset"
                    spent[way].append(spend(sys.executable, "-m", name, *arguments))
            slope = {}
            print(f"{kind}: {width} x {height}, {size_of(folder):.0f} kB")
            for way, runs in spent.items():
                slope[way], start = np.polyfit(counts, [run.cpu_s for run in runs], 1)
                print(
                    f"{way:<12}{1 / slope[way]:>8.1f} images/CPU-s"
                    f"{slope['img2dataset'] / slope[way]:>8.2f}x   start {start:.1f} s"
                    f"   peak {max(run.peak_mb for run in runs):.0f} MB"
                )
            theirs, full, reduced = (stored(folder / f"{way}-0") for way in WAYS)
            assert theirs == full
            assert full.keys() == reduced.keys()
            print(f"reduced: {min(psnr(full[it], reduced[it]) for it in full):.1f} dB at the least")
    ratios = (f"{way} {slope['img2dataset'] / slope[way]:.2f}x" for way in WAYS[1:])
    return f"{', '.join(ratios)} img2dataset"


def download(way: str, urls: str, out: str) -> None:
    """One run."""
    if way == "img2dataset":
        from img2dataset import download as theirs

        theirs(
            urls,
            image_size=SIZE,
            output_folder=out,
            processes_count=1,
            thread_count=16,
            resize_mode="keep_ratio_largest",
            resize_only_if_bigger=True,
            input_format="parquet",
            caption_col="text",
            output_format="parquet",
            extract_exif=False,
        )
        return
    images = {
        "uses": "download.images",
        "from": "pool",
        "image_size": SIZE,
        "decode": way,
        "allow_private_addresses": True,
        "max_per_host": 16,
    }
    plan = plan_of({"pool": {"uses": "ingest.url_list", "path": urls}, "images": images})
    run_toy(plan, Path(out), workers=1)


@contextmanager
def served(folder: Path, width: int, height: int, quality: int, counts: set[int]) -> Iterator[None]:
    """FOLDER's pictures on loopback, and lists of their URLs."""
    (folder / "www").mkdir()
    (folder / "www" / BEHAVIOUR).write_text("{}")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # its peak is inherited by none
        for number in range(FILES):
            body = pool.submit(photo, width, height, quality, number).result()
            (folder / "www" / f"{number}.jpg").write_bytes(body)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for count in counts:
        urls = [f"http://127.0.0.1:{port}/{n % FILES}.jpg?{n}" for n in range(count)]
        pq.write_table(pa.table({"url": urls, "text": urls}), folder / f"{count}.parquet")
    command = (
        "-u",
        "-m",
        "clipmill.pipeline.cli",
        "pool",
        "serve",
        str(folder),
        "--port",
        str(port),
    )
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        server.stdout.readline()  # it serves
        yield
    finally:
        server.kill()
        server.wait()


def photo(width: int, height: int, quality: int, seed: int) -> bytes:
    """A JPEG of soft shapes, textures and grain, as many bytes a pixel as a photo has."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(0, 256, (height // 64, width // 64, 3), np.uint8)
    texture = rng.normal(0, 10, (height // 4, width // 4, 3)).astype(np.float32)
    layers = [
        cv2.resize(it, (width, height), interpolation=cv2.INTER_CUBIC) for it in (shapes, texture)
    ]
    grain = rng.normal(0, 3, (height, width, 3))
    out = io.BytesIO()
    rgb = np.clip(layers[0] + layers[1] + grain, 0, 255).astype(np.uint8)
    Image.fromarray(rgb).save(out, "jpeg", quality=quality)
    return out.getvalue()


def size_of(folder: Path) -> float:
    """Mean of the pictures' kB."""
    return float(np.mean([file.stat().st_size for file in folder.glob("www/*.jpg")])) / 1000


def stored(out: Path) -> dict[str, bytes]:
    """The image of each original, by SHA-256, as either wrote it into its shards."""
    found = {}
    for file in [*out.glob("0*.parquet"), *out.glob("stages/images-*/0*.parquet")]:
        rows = pq.read_table(file)
        image = rows["image" if "image" in rows.column_names else "jpg"].to_pylist()
        found |= dict(zip(rows["sha256"].to_pylist(), image, strict=True))
    assert len(found) == FILES
    assert None not in found.values()
    return found


def psnr(one: bytes, other: bytes) -> float:
    pixels = [cv2.imdecode(np.frombuffer(it, np.uint8), cv2.IMREAD_COLOR) for it in (one, other)]
    return float(cv2.PSNR(*pixels))


if __name__ == "__main__":
    if sys.argv[1:2] == ["download"]:
        download(*sys.argv[2:])
    else:
        begin(main, quick=("few",), full=("500 kB", "12 MP"))
