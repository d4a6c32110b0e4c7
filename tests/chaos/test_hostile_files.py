"""A hundred hostile files, read by workers under a memory limit: a reason, or a failed shard.

Each stands among good files of its kind, whose rows all come through. The workers' memory passes
the limit by what they take between two looks of their watch, and by no more.
"""

import gzip
import io
import json
import os
import random
import tarfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors import machine
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import RunState
from tests.hostile_pictures import apng, chunk, commented, png_with, saved, scanned, segmented, tiff
from tests.stages.download.site import RawSite

MB = 1 << 20
LIMIT_BYTES = 700 * MB  # of two workers, of which each has some 150 MB when it begins
GOOD = (3, 8, 99)  # places of good files in a pool
PICTURE = saved(Image.new("RGB", (40, 30), "teal"), "png")
DEEP = b"[" * 100_000

Make = Callable[[random.Random, Path], None]


def hole(path: Path, size: int, begin: bytes = b"", end: bytes = b"") -> None:
    """A file of so many bytes, of which the disk has only the first and the last."""
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(size)
        file.seek(size - len(end))
        file.write(end)


# Tars


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def good_tar(path: Path) -> None:
    tar_of(path, [("a.png", PICTURE), ("a.txt", b"a good one")])


def header_of(name: str, kind: bytes, size: int) -> bytearray:
    """A header that says so; more than 8 GB as GNU has it."""
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, size
    return bytearray(header.tobuf(tarfile.GNU_FORMAT))


def sparse(rng: random.Random, path: Path) -> None:
    """Samples of members that are holes."""
    with path.open("wb") as file:
        for number in range(rng.randint(5, 200)):
            header = header_of(f"{number % 7}.{number}", tarfile.GNUTYPE_SPARSE, 0)
            size = b"%011o\0" % (rng.randint(1, 100) * MB)
            header[386:398], header[398:410], header[483:495] = size, b"%011o\0" % 0, size
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            file.write(header)
        file.write(bytes(1024))


def with_holes(rng: random.Random, path: Path) -> None:
    """A sample of large members, which the disk need not hold."""
    with path.open("wb") as file:
        for number in range(rng.randint(2, 6)):
            size = rng.randint(50, 100) * MB
            file.write(header_of(f"a.{number}", tarfile.REGTYPE, size))
            file.truncate(file.seek(size, os.SEEK_CUR))
        file.write(bytes(1024))


def long_header(rng: random.Random, path: Path) -> None:
    """A PAX header, or a long name, of hundreds of megabytes."""
    kind = rng.choice((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME))
    size = rng.randint(200, 900) * MB
    begin = bytes(header_of("x", kind, size)) + b"%d path=" % size
    hole(path, size + 2048, begin)


def lying(rng: random.Random, path: Path) -> None:
    """A member that states more bytes than there are."""
    size = rng.choice((1 << 40, 9 * 2**30, 50 * MB))
    path.write_bytes(bytes(header_of("a.png", tarfile.REGTYPE, size)) + PICTURE)


def deep_sample(rng: random.Random, path: Path) -> None:
    tar_of(path, [("a.png", PICTURE), ("a.json", rng.choice((DEEP, b'{"a":' * 100_000)))])


def pictured(rng: random.Random, path: Path) -> None:
    tar_of(path, [("a.png", odd_picture(rng)), ("a.txt", b"a picture")])


# Lists of links


def good_list(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"url": "http://a.test/", "text": "a good one"}\n'))


def packed(path: Path, block: bytes, times: int, begin: bytes = b"", end: bytes = b"\n") -> None:
    """A block again and again: each is a gzip file, and so are they together."""
    again = gzip.compress(block, 1)
    path.write_bytes(gzip.compress(begin) + again * times + gzip.compress(end))


def long_line(rng: random.Random, path: Path) -> None:
    begin = rng.choice((b'{"url": "http://a.test/", "text": "', b"", b'{"url": ' + b"[" * 99_999))
    packed(path, b"a" * MB, rng.randint(300, 2000), begin)


def many_lines(rng: random.Random, path: Path) -> None:
    """Long lines that are just not too long, and all of one batch."""
    line = b'{"url": "http://a.test/", "text": "%b"}\n' % (b"a" * rng.randint(2 * MB, 15 * MB))
    packed(path, line, rng.randint(20, 60))


def deep_line(rng: random.Random, path: Path) -> None:
    lines = [DEEP, b'{"a":' * 100_000, b'{"url": %b}' % (b"9" * 1_000_000), b'{"url": 1e999}']
    path.write_bytes(gzip.compress(b"\n".join([b"{}", *rng.choices(lines, k=9)])))


# Sheets


def good_sheet(path: Path) -> None:
    path.write_bytes(gzip.compress(b"url,text\nhttp://a.test/,a good one\n"))


def long_field(rng: random.Random, path: Path) -> None:
    """A field, a row, or a quote without an end."""
    begin = b"url,text\n" + rng.choice((b"", b"http://a.test/,", b'http://a.test/,"'))
    packed(path, rng.choice((b"a", b",", b"a,", b'""')) * (MB // 2), rng.randint(20, 1500), begin)


# Tables


def good_table(path: Path) -> None:
    rows = {"uid": ["0" * 32], "url": ["http://a.test/"], "text": ["a good one"]}
    pq.write_table(pa.table(rows), path)


def expanding(rng: random.Random, path: Path) -> None:
    """A value of a megabyte that stands in every row."""
    rows, value = rng.randint(500, 20_000), "a" * rng.randint(MB // 4, MB)
    index = pa.array(np.zeros(rows, np.int32))
    text = pa.DictionaryArray.from_arrays(index, pa.array([value]))
    url = pa.array([f"http://a.test/{number}" for number in range(rows)])
    table = pa.table({"uid": pa.nulls(rows, pa.string()), "url": url, "text": text})
    pq.write_table(table, path, dictionary_pagesize_limit=4 * MB, compression="zstd")


def large_values(rng: random.Random, path: Path) -> None:
    """Few rows of hundreds of megabytes, which pack well."""
    value = "a" * (rng.randint(60, 200) * MB)
    table = pa.table({"uid": ["1" * 32], "url": ["http://a.test/x"], "text": [value]})
    with pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(rng.randint(1, 3)):
            writer.write_table(table)


def changed_table(rng: random.Random, path: Path) -> None:
    """Bytes of a footer that say other things: sizes, counts, offsets."""
    good_table(path)
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 9)):
        data[-rng.randint(5, 400)] = rng.choice((0, 0x7F, 0xFF, rng.randrange(256)))
    path.write_bytes(data)


def nested_table(rng: random.Random, path: Path) -> None:
    """A column in hundreds of lists."""
    dtype: pa.DataType = pa.string()
    for _ in range(rng.randint(50, 400)):
        dtype = pa.list_(dtype)
    table = pa.table({"uid": ["2" * 32], "url": ["http://a.test/y"], "text": pa.nulls(1, dtype)})
    pq.write_table(table, path)


# Pictures


def odd_picture(rng: random.Random) -> bytes:
    side = rng.randint(9_000, 20_000)
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(MB)))
    kinds = (
        lambda: saved(Image.new("L", (side, side)), "png", compress_level=1),
        lambda: saved(Image.new("1", (2 * side, 2 * side)), "png", compress_level=1),
        lambda: scanned(1500, 900),
        lambda: segmented(1001),
        lambda: commented(100_001),
        lambda: apng(2**31),
        lambda: tiff(directories=100_001),
        lambda: png_with(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50 * MB)))),
        lambda: png_with(*[text] * rng.randint(10, 300)),
        lambda: DEEP,
    )
    return rng.choice(kinds)()


def good_picture(path: Path) -> None:
    path.write_bytes(PICTURE)
    path.with_suffix(".txt").write_bytes(b"a good one")


def odd_file(rng: random.Random, path: Path) -> None:
    path.write_bytes(odd_picture(rng))


def long_caption(rng: random.Random, path: Path) -> None:
    path.write_bytes(PICTURE)
    hole(path.with_suffix(".txt"), rng.randint(300, 3000) * MB, b"a")


def large_file(rng: random.Random, path: Path) -> None:
    hole(path, rng.choice((90, 101, 4000)) * MB, PICTURE)


# Vectors


def good_vectors(path: Path, rows: int = 1) -> None:
    good_table(path)
    vector = np.ones((rows, 768), np.float16)
    np.savez(path.with_suffix(".npz"), l14_img=vector, l14_txt=vector)


def vectors_of(path: Path, shape: str, blocks: int, kind: str = "<f2") -> None:
    """Arrays that say a shape, and are so many megabytes of zeros, packed."""
    good_table(path)
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    head = head.ljust(117) + "\n"
    with zipfile.ZipFile(
        path.with_suffix(".npz"), "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as it:
        for name in ("l14_img", "l14_txt"):
            with it.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(b"\x93NUMPY\x01\x00v\x00" + head.encode())
                for _ in range(blocks):
                    member.write(bytes(MB))


def lying_vectors(rng: random.Random, path: Path) -> None:
    shapes = ("(1, 768)", "(10**12,)", "(1000000000000, 768)", "(-1, 768)", "()", "(1,)" * 999)
    vectors_of(path, rng.choice(shapes), 0, rng.choice(("<f2", "<f8", "|O", "<U999999999")))


def many_vectors(rng: random.Random, path: Path) -> None:
    blocks = rng.randint(200, 900)
    vectors_of(path, f"({blocks * MB // 1536}, 768)", blocks)


# Links, each in a list of its own, and what a server answers


def link(path: Path, answer: bytes) -> None:
    path.with_suffix(".answer").write_bytes(answer)


def good_link(path: Path) -> None:
    link(path, RawSite.good)


def odd_link(rng: random.Random, path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
    kinds = (
        lambda: b"\r\n" + odd_picture(rng),
        lambda: b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(MB)) * 1500,
        lambda: b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(bytes(300 * MB), 1),
        lambda: b"Content-Length: 99999999999\r\n\r\n" + PICTURE,
        lambda: b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n" + bytes(9 * MB),
    )
    link(path, head + rng.choice(kinds)())


@dataclass(frozen=True)
class Pool:
    """A kind of pool: the stages that read it, and how its files are made."""

    stages: dict[str, str]
    suffix: str
    good: Callable[[Path], None]
    makes: tuple[Make, ...]
    hostile: int


LOOK = "{uses: annotate.image, from: pool}"
POOLS = {
    "tars": Pool(
        {"pool": "{uses: ingest.webdataset, path: IT}", "look": LOOK},
        ".tar",
        good_tar,
        (sparse, with_holes, long_header, lying, deep_sample, pictured),
        24,
    ),
    "lists": Pool(
        {"pool": "{uses: ingest.url_list, path: IT}"},
        ".jsonl.gz",
        good_list,
        (long_line, many_lines, deep_line),
        15,
    ),
    "sheets": Pool(
        {"pool": "{uses: ingest.url_list, path: IT}"}, ".csv.gz", good_sheet, (long_field,), 9
    ),
    "tables": Pool(
        {"pool": "{uses: ingest.datacomp, path: IT}"},
        ".parquet",
        good_table,
        (expanding, large_values, changed_table, nested_table),
        16,
    ),
    "pictures": Pool(
        {"pool": "{uses: ingest.image_folder, path: IT, shard_rows: 1}", "look": LOOK},
        ".png",
        good_picture,
        (odd_file, odd_file, long_caption, large_file),
        16,
    ),
    "vectors": Pool(
        {
            "pool": "{uses: ingest.datacomp, path: IT}",
            "score": "{uses: score.clip_score, from: pool,"
            " read: {image_embedding: pool.l14_img, text_embedding: pool.l14_txt}}",
        },
        ".parquet",
        good_vectors,
        (lying_vectors, many_vectors),
        10,
    ),
    "links": Pool(
        {
            "pool": "{uses: ingest.url_list, path: IT, caption_col: null}",
            "images": "{uses: download.images, from: pool, allow_private_addresses: true,"
            " timeout_s: 60, retries: 0}",
            "look": LOOK.replace("pool", "images"),
        },
        ".jsonl",
        good_link,
        (odd_link,),
        10,
    ),
}


class Watched:
    """The memory of an executor's workers while they work, looked at all the time."""

    def __init__(self, executor: LocalExecutor) -> None:
        self.executor, self.taken, self.looks = executor, [], []
        whole = executor._end_one_too_large

        def look() -> None:
            self.looks.append(time.monotonic())
            whole()

        executor._end_one_too_large = look  # type: ignore[method-assign]
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.is_over.wait(0.02):
            living = list(self.executor._living)
            bytes_ = sum(machine.resident_bytes(it.process.pid) for it in living)
            self.taken.append((time.monotonic(), bytes_))

    def close(self) -> None:
        self.is_over.set()
        self.thread.join()

    @property
    def most(self) -> int:
        return max(taken for _, taken in self.taken)

    @property
    def slack(self) -> int:
        """The most that they took between two looks of their watch, and until one has died."""
        within_s = max(np.diff(self.looks), default=0) + 0.2
        at, taken = map(np.array, zip(*self.taken, strict=True))
        before = taken[np.searchsorted(at, at - within_s)]
        return int((taken - before).max())


@pytest.fixture
def served(monkeypatch) -> Iterator[Callable[[Path], None]]:
    """Has the answers in a folder served, and writes the lists that link to them."""
    with RawSite() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,))
        thread.start()

        def serve(folder: Path) -> None:
            for file in folder.glob("*.answer"):
                url = site.url(f"/{file.stem}", file.read_bytes())
                file.with_suffix(".jsonl").write_text(json.dumps({"url": url}))

        yield serve
        site.shutdown()
        thread.join()


@pytest.fixture
def ran(kind, tmp_path, seed, served, monkeypatch):
    """A pool of good and hostile files, and how a run over it ended."""
    pool, rng = POOLS[kind], random.Random(f"{seed} {kind}")
    folder, made = tmp_path / "pool", {}
    folder.mkdir()
    for number in range(pool.hostile):
        make = pool.makes[number % len(pool.makes)]
        made[f"{number:02d}-hostile"] = make.__name__
        make(rng, folder / f"{number:02d}-hostile{pool.suffix}")
    for number in GOOD:
        pool.good(folder / f"{number:02d}-good{pool.suffix}")
    served(folder)
    lines = "".join(f"{name}: {it}\n" for name, it in pool.stages.items())
    stages = yaml.safe_load(lines.replace("IT", str(folder)))
    plan = make_plan(Recipe(name="hostile", path="hostile.yaml", seed=0, stages=stages))
    percent = -(-LIMIT_BYTES * 100 // int(machine.memory_gb() * 2**30))
    monkeypatch.setenv("CLIPMILL_MAX_MEMORY_PERCENT", str(percent))
    with (
        closing(LocalExecutor(2, with_main=False)) as executor,
        closing(Watched(executor)) as watch,
    ):
        run = Storage(str(tmp_path / "run"))
        outcome = run_plan(plan, run, executor, Lines(), (), True)  # goes on past verdicts
    return SimpleNamespace(state=outcome.state, made=made, watch=watch, most=executor._most_bytes)


def ends_of(state: RunState, name: str) -> set[str]:
    """What came of a file: reasons of its rows, "" for a fine one, and shards that failed."""
    ends, shards = set(), set()
    root = state.stages["pool"]
    for shard in root.shards:
        source = root.shards[shard].source
        shards |= {shard} if name in source.get("path", str(source.get("images"))) else set()
    for stage in state.stages.values():
        for shard, failure in stage.failures.items():
            if failure and (shard in shards or name in failure.found + failure.where):
                is_named = name in failure.found + failure.where
                how = "took too much memory" if "it took" in failure.found else "failed"
                ends.add(f"shard {how}" + ("" if is_named else ", not named"))
        for shard in shards & {*stage.shards}:
            ends |= set(stage.recorded(shard))
    return ends


@pytest.mark.soak(cpu_s=30)
@pytest.mark.parametrize("kind", POOLS)
def test_hostile_files_are_told_of_and_their_neighbours_live(kind, ran, seed, record_property):
    told = {name: ends_of(ran.state, name) for name in ran.made}
    table = Counter((kind, ran.made[name], *sorted(ends)) for name, ends in told.items())
    mb = {"limit": ran.most, "most": ran.watch.most, "between looks": ran.watch.slack}
    lines = [*map(repr, sorted(table.items())), repr({it: n // MB for it, n in mb.items()})]
    path = Path(".soak") / f"{seed[:7]}-hostile-{kind}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines))
    assert all(told.values()), f"nothing is said of {[it for it, ends in told.items() if not ends]}"
    assert not [name for name, ends in told.items() if any("not named" in it for it in ends)]
    assert [ends_of(ran.state, f"{number:02d}-good") for number in GOOD] == [{""}] * len(GOOD)
    assert ran.watch.most <= ran.most + ran.watch.slack
    record_property("tries", len(ran.made))
