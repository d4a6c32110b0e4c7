"""Streams batch n of an export too large to decode beforehand: reads, decodes and crops ahead.

A batch is a pure function of the seed, n and the export, as in cached.py: not of ranks, threads or
earlier reads. Memory is bounded by two row groups a stream and the batches ahead.
"""

import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import IMAGE, REPEATS
from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import mixed, uniform
from clipmill.pipeline.dataset import Task
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.batch import SHIFT, Batch, Reading, of_view, part_of, shift_by, text_by
from clipmill.stages.clip.cache import (
    ROW,
    columns_of,
    instead_of_single_words,
    left_out,
    prepared,
    texts_there,
    usable,
)
from clipmill.stages.ops.images.decode import SPARE, decode
from clipmill.stages.ops.images.encoded import probe
from clipmill.stages.ops.images.opened import RGB, ImageError
from clipmill.stages.ops.images.squares import square
from clipmill.stages.readers._draws import Draws, Group, Piece

# Shapes: B rows of a rank's part of a batch, M texts of these, S pixels a side, T tokens, R row
# groups of a shard, A attempts.

FAULTS = NO_IMAGE, UNDECODABLE = ("no_image", "undecodable")
AHEAD = 2  # batches prepared while one is trained on
GROUPS = 2  # row groups that a stream caches
# Bounds of a random crop: share of the picture's area, then width to height; bicubic.
# Source: open_clip's training transform, which DataComp uses unchanged.
CROP_AREA = (0.9, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10
Box = tuple[int, int, int, int]  # top, left, height, width


def prepare(reading: Reading, file: dict[str, Any], task: Task) -> dict[str, Any]:
    """Counts a file's samples by row group, its usable rows, and left-out rows by reason.

    Reads no picture: one that does not decode is found when its batch is made.
    """
    negatives = reading.negatives
    exported, name = Outputs(Storage(reading.data)), file["file"]
    chosen = reading.choose(name) if reading.choose else None
    counts: Counter[str] = Counter()
    rows, start, without, groups = 0, 0, 0, []
    with exported.parquet(name) as parquet:
        where = f"{exported.folder}/{exported.inside}{name}"
        columns = columns_of(parquet.schema_arrow, reading, where)
        names = [column for column in columns if column != IMAGE.name]
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, names, use_threads=False)
            there = prepared(table, reading, chosen, file["first"], start)
            left = usable(there, reading, counts)
            start, rows = start + len(table), rows + len(left)
            groups.append(int(left[REPEATS.name].fill_null(1).to_numpy().sum()))
            without += (
                sum(not texts_there(row) for row in left[negatives].to_pylist()) if negatives else 0
            )
    entry = {"file": name, "first": file["first"], "rows": rows, "groups": groups}
    entry |= {"no_negative": without} if negatives else {}
    return entry | left_out(counts, chosen, reading)


def picture_of(reading: Reading, body: bytes, coin: int) -> RGB:
    """Returns (S, S, 3), the picture shifted or cropped by the hash; raises ImageError."""
    if reading.augment == "crop":
        return crop(body, reading.size, coin)
    whole = np.pad(square(decode(body), reading.size), PAD, constant_values=255)
    down, right = shift_by(coin)
    return whole[down : down + reading.size, right : right + reading.size]


def taken(reading: Reading, texts: list[str], coin: int) -> list[list[str]]:
    """Returns the texts of a row that the step takes, by view."""
    fit, views = instead_of_single_words(texts), list[list[str]]()
    for view in range(reading.text_views):
        some = fit[:1] if reading.texts == "first" else fit
        if reading.texts == "uniform":
            some = [fit[text_by(coin, len(fit), view)]]
        if reading.edits and view + 1 == reading.text_views:
            coin = of_view(coin, view)
            some = [reading.edits(text, of_view(coin, k)) for k, text in enumerate(some)]
        views.append(some)
    return views


PAD = ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))


class Streamed:
    """Batches of `size` rows of an indexed Parquet export, as `batches[n]` for any n >= 0.

    `spent` has the seconds of reading, by exported file. A picture that does not decode is replaced
    by the next one of its row group that does; a batch's `replaced` counts these. Raises StageError
    once fewer rows than a batch are left with a picture.
    """

    def __init__(
        self,
        reading: Reading,
        indexed: Sequence[Mapping[str, Any]],
        *,
        size: int,
        seed: int,
        threads: int = 1,  # that decode pictures
        trainer: Any = None,  # unused: no row depends on the weights
    ) -> None:
        self.size, self.seed, self.reading = size, seed, reading
        self.exported = Outputs(Storage(reading.data))
        self.shards = [shard for shard in indexed if sum(shard["groups"])]
        self.first = np.array([shard["first"] for shard in self.shards])
        self.draws = Draws([shard["groups"] for shard in self.shards], size, seed, reading.sampling)
        self.choose = reading.choose and lru_cache(2 * self.draws.streams)(reading.choose)
        self.spent: Counter[str] = Counter()
        self._rows = sum(shard["rows"] for shard in self.shards)
        self._bad = [np.zeros(len(shard["groups"]), int) for shard in self.shards]
        self._bad_rows = 0  # sum of _bad
        self._cache: list[OrderedDict[tuple[int, int, str], Group]] = [
            OrderedDict() for _ in range(self.draws.streams)
        ]
        self._locks = [threading.Lock() for _ in self._cache]
        self._counting = threading.Lock()
        self._threads = ThreadPoolExecutor(max(1, threads), thread_name_prefix="pictures")
        self._begun: OrderedDict[tuple[int, int, int], list[Future[Part]]] = OrderedDict()

    def __getitem__(self, n: int) -> Batch:
        return self.of_rank(n, 0, 1)

    def of_rank(self, n: int, rank: int, ranks: int) -> Batch:
        """Returns a rank's rows of batch n, and begins the next batches; decodes no other row."""
        keys = [(n + ahead, rank, ranks) for ahead in range(AHEAD + 1)]
        for key in [key for key in self._begun if key not in keys]:
            for part in self._begun.pop(key):
                part.cancel()
        for key in keys:
            if key not in self._begun:
                self._begun[key] = self._begin(*key)
        return self._joined([part.result() for part in self._begun.pop(keys[0])])

    def files(self, row_B: NDArray[np.int64]) -> list[str]:
        """Returns the exported files that hold the rows, the slowest to read first."""
        numbers = np.unique(np.searchsorted(self.first, row_B, side="right") - 1)
        names = [str(self.shards[number]["file"]) for number in numbers]
        return sorted(names, key=lambda name: -self.spent[name])

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _begin(self, n: int, rank: int, ranks: int) -> "list[Future[Part]]":
        """Submits the parts of a batch, one a stream, to the threads."""
        here = part_of(self.size, rank, ranks)
        parts = []
        for stream in range(self.draws.streams):
            rows = self.draws.rows(stream)
            start, stop = max(here.start, rows.start), min(here.stop, rows.stop)
            if start < stop:
                first = n * (rows.stop - rows.start) + start - rows.start
                parts.append(self._threads.submit(self._part, n, stream, first, stop - start))
        return parts

    def _part(self, n: int, stream: int, first: int, count: int) -> "Part":
        """Returns `count` samples of a stream, from `first` on."""
        samples: list[Sample] = []
        for piece in self.draws.pieces(stream, first, count):
            group = self._group(stream, piece)
            numbers = range(piece.start, piece.stop)
            samples += [self._sample(group, number, n, piece) for number in numbers]
        views = zip(*(sample.texts for sample in samples), strict=True)
        kinds = [*views, [sample.negative for sample in samples]]
        flat = [[text for row in rows for text in row] for rows in kinds]
        return Part(samples, [self.reading.tokenize(texts) for texts in flat])

    def _sample(self, group: Group, number: int, n: int, piece: Piece) -> "Sample":
        """Returns a sample of a row group, or the next one if its picture does not decode."""
        fault, reading = "", self.reading
        for turn in range(len(group.order)):
            row = int(group.order[(number + turn) % len(group.order)])
            coin = int(group.coins(self.seed, n)[row])
            body = group.images[row]
            try:
                coins = [of_view(coin, view) for view in range(reading.image_views)]
                pixels = [picture_of(reading, body, coin) for coin in coins] if body else []
            except ImageError:
                pixels = []
            if pixels:
                false = group.negatives[row]
                negative = [false[text_by(coin, len(false))]] if false else []
                return Sample(
                    group, row, pixels, taken(reading, group.texts[row], coin), negative, fault
                )
            fault = fault or (UNDECODABLE if body is not None else NO_IMAGE)
            self._note_bad(group, row, piece)
        do = "look at the export: export.pixels counts its bad pictures"
        raise StageError("no picture of a row group decodes", group.where, do)

    def _note_bad(self, group: Group, row: int, piece: Piece) -> None:
        """Counts a row without a picture; raises StageError if fewer than a batch have one.

        Stores one count a row group: the most bad rows that any one reading of it has found.
        """
        bad_R = self._bad[piece.shard]
        with self._counting:
            group.bad.add(row)
            self._bad_rows += max(0, len(group.bad) - int(bad_R[piece.group]))
            bad_R[piece.group] = max(bad_R[piece.group], len(group.bad))
        if self._rows - self._bad_rows < self.size:
            found = f"pictures of {self._bad_rows:,} of {self._rows:,} rows do not decode"
            where = f"{group.where}, where the last of them was found"
            do = "export the pictures again, select more rows, or lower `batch_size`"
            raise StageError(f"{found}, and a batch has {self.size:,}", where, do)

    def _group(self, stream: int, piece: Piece) -> Group:
        """Returns a row group from the stream's cache, its samples in the order of the piece."""
        key = (piece.shard, piece.group, piece.purpose)
        with self._locks[stream]:
            cache = self._cache[stream]
            if key not in cache:
                cache[key] = self._read(piece)
                while len(cache) > GROUPS:
                    cache.popitem(last=False)
            cache.move_to_end(key)
            return cache[key]

    def _read(self, piece: Piece) -> Group:
        shard, began = self.shards[piece.shard], time.perf_counter()
        name, counted = shard["file"], shard["groups"]
        where = f"{self.exported.folder}/{self.exported.inside}{name}, row group {piece.group}"
        do = "run again; the export changed while it was read"
        changed = StageError("other samples than when they were counted", where, do)
        try:
            with self.exported.parquet(name) as parquet:
                sizes = [
                    parquet.metadata.row_group(group).num_rows
                    for group in range(parquet.num_row_groups)
                ]
                if len(sizes) != len(counted):
                    raise changed
                extra = self.reading.teacher, self.reading.negatives
                names = columns_of(parquet.schema_arrow, self.reading, where)
                table = parquet.read_row_group(piece.group, names, use_threads=False)
        except OSError as error:
            do = "put the file back, or run the export again: the training goes on where it was"
            raise StageError(f"a shard that cannot be read: {error}", where, do) from error
        start = sum(sizes[: piece.group])
        chosen = self.choose(name) if self.choose else None
        plain = table.drop_columns([IMAGE.name])
        plain = prepared(plain, self.reading, chosen, shard["first"], start)
        rows = usable(plain, self.reading, Counter())
        images = table[IMAGE.name].take(pa.array(rows[ROW].to_numpy() - start))
        group = Group(rows, images, shard["first"], *extra, where)
        if len(group.order) != counted[piece.group]:
            raise changed
        group.sort(self.seed, piece.purpose)
        self.spent[name] += time.perf_counter() - began  # type: ignore[assignment]  # seconds
        return group

    def _joined(self, parts: "list[Part]") -> Batch:
        samples = [sample for part in parts for sample in part.samples]
        views = range(self.reading.image_views)
        pixel_BSS3 = np.stack([sample.pixels[view] for view in views for sample in samples])
        kinds = range(self.reading.text_views + 1)
        runs = [part.texts[kind] for kind in kinds for part in parts]
        lengths = np.cumsum([0, *(len(token_T) for token_T, _ in runs)])
        starts = [start_M[:-1] + first for (_, start_M), first in zip(runs, lengths, strict=False)]
        negatives_B = [len(sample.negative) for sample in samples]
        count_B = [len(sample.texts[0]) for sample in samples]
        faults = Counter(sample.fault for sample in samples)
        return Batch(
            pixels=np.ascontiguousarray(pixel_BSS3.transpose(0, 3, 1, 2)),
            tokens=np.concatenate([token_T for token_T, _ in runs]),
            starts=np.concatenate(starts),
            image_of=np.repeat(np.arange(len(samples)), count_B),
            weights=np.array([sample.group.weights[sample.row] for sample in samples], np.float32),
            rows=np.array([sample.group.rows[sample.row] for sample in samples], np.int64),
            index=np.array([sample.group.index[sample.row] for sample in samples], np.int64),
            teacher={
                column: np.stack([sample.group.teacher[column][sample.row] for sample in samples])
                for column in self.reading.teacher
            },
            negative_of=np.flatnonzero(negatives_B) if self.reading.negatives else None,
            replaced={fault: faults[fault] for fault in FAULTS},
        )


batches = Streamed


@dataclass(frozen=True)
class Sample:
    """A decoded sample of a batch."""

    group: Group
    row: int  # of the group
    pixels: list[RGB]  # of each view
    texts: list[list[str]]  # of each view
    negative: list[str]  # one, or none
    fault: str  # reason that the drawn row was replaced; empty if it was not


@dataclass(frozen=True)
class Part:
    """A stream's samples of a batch, and as tokens their captions by view and their negatives."""

    samples: list[Sample]
    texts: list[tuple[NDArray[np.int32], NDArray[np.int64]]]  # as its towers' `tokenize` has them


def crop(body: bytes, size: int, coin: int) -> RGB:
    """Returns (S, S, 3), a crop of 0.9 to 1.0 of the picture's area; raises ImageError.

    `coin` is the random hash that chooses it. A JPEG whose crop is much larger than `size` is
    decoded at a half, a quarter or an eighth of its sides.

    Source: torchvision's RandomResizedCrop with bicubic interpolation, as open_clip trains.
    Error: none against it on a picture decoded in full (a test compares); decoded smaller, the mean
    difference is below 1.5 of 255 on photographs.
    """
    header = probe(body)
    box = box_of(header.height, header.width, coin)
    least = min(box[2:])
    by = max((by for by in (2, 4, 8) if by * SPARE * size <= least), default=1)
    rgb = decode(body, shrink=by)
    if rgb.shape[:2] != (header.height, header.width):
        down, right = rgb.shape[0] / header.height, rgb.shape[1] / header.width
        top, left = round(box[0] * down), round(box[1] * right)
        bottom, end = round((box[0] + box[2]) * down), round((box[1] + box[3]) * right)
        box = top, left, bottom - top, end - left
    top, left, height, width = box
    part = Image.fromarray(rgb[top : top + height, left : left + width])
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


def box_of(height: int, width: int, coin: int) -> Box:
    """Returns the crop's box: the first of ten random draws that fits, else a central one."""
    draw_A4 = uniform(mixed(np.uint64(coin) ^ mixed(np.arange(4 * ATTEMPTS, dtype=np.uint64) + 1)))
    area_A, aspect_A, down_A, right_A = draw_A4.reshape(ATTEMPTS, 4).T
    area_A = height * width * (CROP_AREA[0] + area_A * (CROP_AREA[1] - CROP_AREA[0]))
    low, high = map(math.log, CROP_ASPECT)
    ratio_A = np.exp(low + aspect_A * (high - low))
    wide_A = np.rint(np.sqrt(area_A * ratio_A)).astype(int)
    tall_A = np.rint(np.sqrt(area_A / ratio_A)).astype(int)
    fits = np.flatnonzero((wide_A > 0) & (wide_A <= width) & (tall_A > 0) & (tall_A <= height))
    if len(fits):
        first = fits[0]
        tall, wide = int(tall_A[first]), int(wide_A[first])
        top = int(down_A[first] * (height - tall + 1))
        return top, int(right_A[first] * (width - wide + 1)), tall, wide
    ratio = width / height
    if ratio < CROP_ASPECT[0]:
        tall, wide = round(width / CROP_ASPECT[0]), width
    elif ratio > CROP_ASPECT[1]:
        tall, wide = height, round(height * CROP_ASPECT[1])
    else:
        tall, wide = height, width
    return (height - tall) // 2, (width - wide) // 2, tall, wide
