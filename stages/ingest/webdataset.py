"""Reads a pool that is already downloaded: the tar files that img2dataset writes."""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.globs import open_pool
from clipmill.metadata.schema import (
    CAPTIONS,
    HEIGHT,
    IMAGE,
    IMAGE_BYTES,
    ORIGINAL_HEIGHT,
    ORIGINAL_WIDTH,
    REASON,
    SHA256,
    TEXT,
    UID,
    URL,
    WIDTH,
    Column,
)
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.errors import ShardError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, later, location
from clipmill.stages.ingest._captions import captions_of
from clipmill.stages.ops.tables import tars
from clipmill.stages.ops.tables.dotted import value_at
from clipmill.stages.ops.tables.pools import (
    IMAGE_SUFFIXES,
    any_of,
    failing_its_shard,
    first_reason,
    first_rows,
    fit,
    in_batches,
    json_object,
    list_files,
    sizes_of,
    uid_column,
    uid_values,
)

IMAGES = (*IMAGE_SUFFIXES, ".bin")  # .bin: export.webdataset's name for unknown formats
TARS = (".tar", ".tar.gz", ".tgz")
UNPACKED = (gzip.BadGzipFile, zlib.error)  # raised by unpacking, with EOFError
FROM_JSON = (URL, ORIGINAL_WIDTH, ORIGINAL_HEIGHT, WIDTH, HEIGHT)
BLOCK = 512  # bytes of a tar's header, and of each of the two blocks of zeros that end it

MOST_PLACES = 1_000_000  # of a tar's files, that hard links may lead to

Data = bytes | str  # of a member, or the reason why there are none
Member = tuple[str, int, Callable[[], Data]]  # name, size, and a function that reads it
Members = Mapping[str, Data]  # by suffix


@dataclass(frozen=True, kw_only=True)
class WebDataset(DatasetStage):
    """Image and caption of every sample of a tar, one shard per tar; null, with a reason, if none.

    A sample is a run of members that share their path up to the first dot of the name; it also ends
    where a suffix repeats: tars may be joined, and the next one may begin with the same key. A hard
    link, as GNU tar writes for a file with two names, is the file that it leads to; another link,
    or a device, is `unreadable`. A name that begins with a dot, as a Mac's tar adds, is skipped.
    Packed tars are read if there are no others. Caption: the .json's at `caption_col`, a key or a
    dotted path; else the .txt, else `caption` of the .json. A byte-order mark is no letter. url and
    sizes: the .json. sha256 is of the stored bytes: the .json's may be of the file before
    img2dataset resized it, or the same for all rows. uid: 32 hex digits in the .json (else
    `bad_uid`), or the hash of url and caption; without a url, that of the place in the pool,
    `00000.tar/KEY`, and the caption. No member is written to disk.

    Source: img2dataset's output; WebDataset's naming. The Parquet beside a tar is not read: it
        repeats the .json and lists the downloads that failed, which are no rows here.
    Error: a file is known by name, size and time of change. A packed tar is unpacked twice, to
        see its end.
    Example: {path: tars}
    """

    version = 5
    determinism = "exact"
    takes = ()
    reasons = ("too_large", "unreadable", "no_image", "unparsable_json", "bad_uid", "bad_value")

    path: NonEmpty = location()  # folder or glob of tars, also .tar.gz, here or s3://…
    max_member_bytes: OneUp = 100 << 20  # a larger file of a tar is `too_large`
    max_sample_bytes: OneUp = later(256 << 20)  # most bytes of a sample's files together
    caption_col: NonEmpty | None = later(None)  # key of the caption in the .json, as `en.text`
    all_captions: bool = later(False)  # of a list also those after the first, as `captions`
    url_col: NonEmpty = later(URL.name)  # key of the link in the .json
    uid_col: NonEmpty = later(UID.name)  # key of an id of 32 hex digits
    width_col: NonEmpty = later(ORIGINAL_WIDTH.name)  # key of the image's width, in pixels
    height_col: NonEmpty = later(ORIGINAL_HEIGHT.name)  # key of its height

    @property
    def writes(self) -> tuple[Column, ...]:
        more = (CAPTIONS,) if self.all_captions else ()
        return IMAGE, IMAGE_BYTES, TEXT, *more, *FROM_JSON, SHA256

    def files(self) -> dict[str, int]:
        return sizes_of(self.listed("pool"))

    def listed(self, stage: str) -> list[dict[str, Any]]:
        """Returns its tars; packed ones if there are no others."""
        files = list_files(self.path, TARS, stage)
        return [file for file in files if file["path"].lower().endswith(TARS[0])] or files

    def head(self, rows: int) -> pa.Table:
        files = self.listed("pool")
        return first_rows((table for file in files for table in read(self, file, None, rows)), rows)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.create_shards(partial(read, self), self.listed(ctx.worker.stage))


def read(
    stage: WebDataset, source: Mapping[str, Any], task: Task | None, rows: int | None = None
) -> Iterator[pa.Table]:
    """Yields the tar's samples, or its first `rows`, streamed; one empty table if none."""
    storage, _ = open_pool(stage.path)
    where = f"{storage}/{source['path']}"
    with failing_its_shard(where, tarfile.TarError, *UNPACKED), opened(storage, source) as file:
        yield fitted(stage, source["path"], [])
        limits = stage.max_member_bytes, stage.max_sample_bytes
        tar_samples = islice(samples(members(file, where), *limits), rows)
        for batch in in_batches(tar_samples, lambda sample: sum(map(len, sample[1].values()))):
            yield fitted(stage, source["path"], batch)


def opened(storage: Storage, source: Mapping[str, Any]) -> Any:
    """Opens a tar; one that is packed by gzip is unpacked as it is read."""
    file = storage.open(source["path"])
    return gzip.GzipFile(fileobj=file) if source["path"].lower().endswith(TARS[1:]) else file


def members(file: Any, where: str) -> Iterator[Member]:
    """Yields files, links and devices, but no hidden ones; read each before asking for the next."""
    places: dict[str, tuple[int, int]] = {}  # offset and size
    with tars.opened(file, "r|", 1 << 20) as tar:
        for member in tars.members(tar):
            place = places.get(member.linkname) if member.islnk() else None
            read: Callable[[], Data]
            if member.isfile():
                place = (member.offset_data, member.size)
                read = partial(_data, tar, member)
            elif place:
                read = partial(_read_at, file, *place)
            elif member.issym() or member.islnk() or member.isdev():
                read = partial(str, "unreadable")  # the reason, in place of bytes
            else:
                continue
            if place and not member.issparse() and len(places) < MOST_PLACES:
                places[member.name] = place
            if not member.name.rpartition("/")[2].startswith("."):
                yield member.name, place[1] if place else 0, read
        file.seek(tar.offset)
    # tarfile takes a broken header, and the end of a cut file, for the end of the archive.
    rest = file.read(1 << 20)
    if len(rest) < BLOCK or any(rest):
        raise ShardError(
            found="a tar that ends early, or goes on after its end",
            where=f"{where}, byte {tar.offset}",
            do="put the whole tar in its place, or unite tars with `tar --concatenate`, not `cat`",
        )


def _read_at(file: Any, offset: int, size: int) -> bytes:
    """Reads bytes at an earlier place; the file's position stays as it was."""
    before = file.tell()
    file.seek(offset)
    data = bytes(file.read(size))
    file.seek(before)
    return data


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def samples(
    members: Iterable[Member], max_member_bytes: int, max_sample_bytes: int
) -> Iterator[tuple[str, Members]]:
    """Yields key and members of each sample: a new one if the key changes or a suffix repeats.

    A member over its own limit, or over what its sample has left, is `too_large`, not read: a small
    tar may have thousands of sparse members.
    """
    key = ""
    parts: dict[str, Data] = {}
    remaining = max_sample_bytes
    for name, size, read in members:
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        suffix = suffix.lower()
        if parts and (folder + slash + stem != key or suffix in parts):
            yield key, parts
            parts, remaining = {}, max_sample_bytes
        key = folder + slash + stem
        fits = size <= min(max_member_bytes, remaining)
        parts[suffix] = read() if fits else "too_large"
        remaining -= size if fits else 0
    if parts:
        yield key, parts


def row_of(stage: WebDataset, place: str, parts: Members) -> dict[str, Any]:
    """Returns image, caption, fields of the .json and reason of a sample, as plain values."""
    files = {suffix: data for suffix, data in parts.items() if isinstance(data, bytes)}
    first = next((suffix for suffix in parts if f".{suffix}" in IMAGES), "")
    image = files.get(first)
    stated = json_object(files.get("json") or b"{}")
    info = stated or {}
    text = files.get("txt") if "txt" in parts else info.get("caption")
    named = value_at(info, stage.caption_col) if stage.caption_col else None
    paths = {
        URL: stage.url_col,
        UID: stage.uid_col,
        ORIGINAL_WIDTH: stage.width_col,
        ORIGINAL_HEIGHT: stage.height_col,
    }
    values = {c.name: value_at(info, paths.get(c, c.name)) for c in (*FROM_JSON, UID)}
    hashed = hashlib.sha256(image).hexdigest() if image is not None else None
    return {
        **values,
        IMAGE.name: image,
        IMAGE_BYTES.name: len(image) if image is not None else None,
        TEXT.name: text if named is None else named,
        SHA256.name: hashed,
        "place": place,
        "too_large": "too_large" in parts.values(),
        "unreadable": "unreadable" in parts.values(),
        "no_image": image is None,
        "unparsable_json": stated is None,
    }


def fitted(stage: WebDataset, tar: str, batch: list[tuple[str, Members]]) -> pa.Table:
    """Returns samples in the columns that the stage writes."""
    rows = [row_of(stage, f"{tar}/{key}", parts) for key, parts in batch]
    column = {name: [row[name] for row in rows] for name in row_of(stage, "", {})}
    plain = (IMAGE, IMAGE_BYTES, *FROM_JSON, SHA256)
    fits = {item.name: fit(column[item.name], item.dtype) for item in plain}
    texts, misfit = captions_of(column[TEXT.name], stage.all_captions)
    values = texts | {name: fitted for name, (fitted, _) in fits.items()}
    uid = uid_values(column[UID.name])
    pairs = zip(values[URL.name].to_pylist(), column["place"], strict=True)
    place = pa.array([url or place for url, place in pairs], pa.string())
    stated = pa.array([item is not None for item in column[UID.name]], pa.bool_())
    masks = {
        **{code: pa.array(column[code], pa.bool_()) for code in WebDataset.reasons[:4]},
        "bad_uid": pc.and_(stated, uid.is_null()),
        "bad_value": any_of([misfit, *(misfit for _, misfit in fits.values())], len(rows)),
    }
    known = uid_column(uid, place, values[TEXT.name])
    stored = {item.name: values[item.name] for item in stage.writes}
    return pa.table({UID.name: known, **stored, REASON.name: first_reason(masks)})
