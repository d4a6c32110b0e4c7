"""export.parquet and export.webdataset against plain copies by pyarrow and tarfile: CPU an image.

    python -m tests.benchmarks.export_images [full | IMAGES ...]    2,000; full: to 18,000

The pool: JPEGs of 20 kB, each different, in tars of 1,000 with .txt and .json, ingested
beforehand. `parquet`: pyarrow copies uid, image and text of the stored shards by batches into
files of 10,000 rows, by its defaults; `checked` checks the pages that it reads, writes page
checksums and hashes each file, as whoever would know a changed byte must; `bare` is `copy` without
compression, dictionaries and statistics, which nobody writes unasked. `webdataset`: tarfile copies
the members of the pool's tars into tars of as many samples. No copy shuffles, counts causes, nor
writes a data card, places and a journal; clipmill does, as `clipmill run --workers 0`, a process of
its own. The same images are asserted of both. `start` of clipmill is the same command
once all is done, that of a copy its import; both are taken off. CPU seconds, the least of rounds.

Aim: at most 2 times the plain copy.
Measured (2026-11-28, EPYC with AVX2, idle), us an image at 18,000: copy 42, checked 84, clipmill
158 (3.77x and 1.90x). So 2x of a plain copy is what a checked one takes, and clipmill stays below
2x of that. The ratio moves with the memory of a machine that gives free pages back to its host: a
page costs up to ten times when it is used first, and a low ratio is a dear copy.
"""

import hashlib
import json
import shutil
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from tests.benchmarks.side_by_side import begin, rounds_of
from tests.benchmarks.toy import clipmill, scratch, spend

ROUNDS, TAR_IMAGES = 5, 1_000
KINDS, SIDE, QUALITY = 32, 146, 90  # JPEGs of noise, told apart by a comment: 20 kB each
RECIPE = """
stages:
  pool: {{uses: ingest.webdataset, path: {pool}}}
  parquet: {{uses: export.parquet, from: pool}}
  webdataset: {{uses: export.webdataset, from: pool}}
"""
COPIES = {
    "parquet": """
import glob, hashlib, sys
import pyarrow.parquet as pq
checked = HOW.get("write_page_checksum", False)
names, writer, rows, number = ["uid", "image", "text"], None, 0, 0
for path in sorted(glob.glob(sys.argv[1] + "/0*.parquet")):
    source = pq.ParquetFile(path, page_checksum_verification=checked)
    for batch in source.iter_batches(columns=names):
        if writer is None or rows + len(batch) > 10_000:
            if writer:
                writer.close()
            writer = pq.ParquetWriter(f"{sys.argv[3]}/{number:05d}.parquet", batch.schema, **HOW)
            rows, number = 0, number + 1
        writer.write_batch(batch)
        rows += len(batch)
writer.close()
for path in glob.glob(f"{sys.argv[3]}/*.parquet") if checked else ():
    with open(path, "rb") as made:
        hashlib.file_digest(made, "sha256")
""",
    "webdataset": """
import glob, sys
import tarfile
out, samples, number = None, 10_000, 0
for path in sorted(glob.glob(sys.argv[2] + "/*.tar")):
    with tarfile.open(path) as source:
        for member in source:
            if member.name.endswith(".jpg"):
                if samples == 10_000:
                    if out:
                        out.close()
                    out = tarfile.open(f"{sys.argv[3]}/{number:05d}.tar", "w")
                    samples, number = 0, number + 1
                samples += 1
            out.addfile(member, source.extractfile(member))
out.close()
""",
}
CHECKED = {"write_page_checksum": True}
BARE = {"compression": "none", "use_dictionary": False, "write_statistics": False}
IMPORTS = {"parquet": "import pyarrow.parquet", "webdataset": "import tarfile"}


def main(*sizes: int) -> str:
    for images in sizes:
        with scratch() as folder:
            recipe = folder / "export.yaml"
            recipe.write_text(RECIPE.format(pool=folder / "tars"), encoding="utf-8")
            write_pool(folder / "tars", images)
            run = ["run", str(recipe), "--out", str(folder / "run"), "--workers", "0"]
            ingest = clipmill(*run, "--until", "pool")
            print(f"{images:,} images; ingest {ingest.cpu_s:.2f} s", flush=True)
            found = {name: compare(name, images, folder, run) for name in COPIES}
    return ", ".join(f"{name} {ratio:.2f}x" for name, ratio in found.items()) + " a copy's CPU"


def compare(name: str, images: int, folder: Path, run: list[str]) -> float:
    """CPU seconds by those of a copy, beyond their starts; prints all, and an image's."""
    copied, until = folder / "copied", [*run, "--until", name]
    begun_s = min(spend(sys.executable, "-c", IMPORTS[name]).cpu_s for _ in "123")
    others = {"checked": CHECKED, "bare": BARE} if name == "parquet" else {}
    ways: dict[str, dict[str, Any]] = {"copy": {}, **others}
    spent: dict[str, list[float]] = {way: [] for way in (*ways, "clipmill", "start")}
    for _ in range(rounds_of(ROUNDS)):
        for path in (folder / "run" / "stages").glob(f"{name}-*"):
            shutil.rmtree(path)
        spent["clipmill"].append(clipmill(*until).cpu_s)
        spent["start"].append(clipmill(*until).cpu_s)
        for way, how in ways.items():
            shutil.rmtree(copied, ignore_errors=True)
            copied.mkdir()
            places = str(stage_folder(folder, "pool")), str(folder / "tars"), str(copied)
            copy = f"HOW = {how}\n{COPIES[name]}"
            spent[way].append(spend(sys.executable, "-c", copy, *places).cpu_s - begun_s)
    assert digests(stage_folder(folder, name) / "out") == digests(copied)  # no image is another
    least = {way: min(times) for way, times in spent.items()}
    start_s = least.pop("start")
    least["clipmill"] -= start_s
    said = "".join(
        f"   {way} {seconds:5.2f} s, {seconds / images * 1e6:4.0f} us an image"
        + (f" ({least['clipmill'] / seconds:.2f}x)" if way in ways else "")
        for way, seconds in least.items()
    )
    print(f"  {name:<11}{said}   starts {begun_s:.2f}, {start_s:.2f}", flush=True)
    return least["clipmill"] / least["copy"]


def digests(folder: Path) -> list[bytes]:
    """SHA-256 of every image in a folder's Parquet files or tars, in order of the digests."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            bodies = (tar.extractfile(it) for it in tar if it.name.endswith(".jpg"))
            found += [hashlib.sha256(body.read()).digest() for body in bodies if body]
    for path in [] if found else sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(1024, columns=["image"]):
            found += [hashlib.sha256(body.as_py()).digest() for body in batch["image"]]
    return sorted(found)


def stage_folder(folder: Path, stage: str) -> Path:
    (path,) = (folder / "run" / "stages").glob(f"{stage}-*")
    return path


def write_pool(folder: Path, images: int) -> None:
    """img2dataset's tars."""
    folder.mkdir()
    random = np.random.default_rng(0)
    jpegs = []
    for _ in range(KINDS):
        noise = random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        jpegs.append(cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
    for start in range(0, images, TAR_IMAGES):
        with tarfile.open(folder / f"{start // TAR_IMAGES:05d}.tar", "w") as tar:
            for number in range(start, min(start + TAR_IMAGES, images)):
                comment = b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big")
                body = jpegs[number % KINDS]
                text = f"a photo of number {number}, taken from afar"
                info = {"url": f"https://site-{number % 2000}.test/{number}.jpg", "caption": text}
                info |= {"width": SIDE, "height": SIDE, "uid": random.bytes(16).hex()}
                members = {"jpg": body[:2] + comment + body[2:], "txt": text.encode()}
                members["json"] = json.dumps(info, indent=4).encode()
                for suffix, data in members.items():
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))


if __name__ == "__main__":
    begin(main, quick=(2_000,), full=(2_000, 6_000, 18_000))
