"""Reads a pool from a folder of images, with captions beside them."""

import hashlib
import io
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import ceil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.globs import open_pool
from clipmill.metadata.schema import (
    CAPTIONS,
    IMAGE,
    IMAGE_BYTES,
    REASON,
    SHA256,
    TEXT,
    UID,
    URL,
    Column,
)
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.errors import ShardError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, later, location
from clipmill.stages.ingest._captions import captions_of
from clipmill.stages.ingest._columns import require
from clipmill.stages.ingest._text_rows import (
    BOM,
    MAX_LINE_BYTES,
    Dialect,
    Rows,
    csv_rows,
    json_rows,
    lines_of,
    read_header,
    unparsed_nowhere,
)
from clipmill.stages.ops.tables.dotted import flat, paths_in, paths_of, value_at
from clipmill.stages.ops.tables.parquet_rows import parquet_rows
from clipmill.stages.ops.tables.pools import (
    IMAGE_SUFFIXES,
    any_of,
    failing_its_shard,
    first_reason,
    first_rows,
    fit,
    in_batches,
    json_object,
    leads_out,
    list_files,
    read_if_allowed,
    sizes_of,
    uid_column,
)

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_NAME = "file_name"
UNREADABLE = (OSError, pa.ArrowException)  # reading it fails its shards
LOOKED_AT = 1000  # lines of JSON from which the keys are taken


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DatasetStage):
    """Every image below a folder, by name, and its caption; null if there is none.

    url is the path below the folder, and uid the hash of that and the caption. Caption:
    `caption_col` in the metadata.jsonl, .csv or .parquet nearest above the image, whose `file_name`
    is relative to it; else the file that `caption_files` names, by default the .txt of its stem,
    without white space at its ends, or what a .json has at `caption_key`; else `caption`, where
    {class} is the name of the image's folder, with spaces for its `_` and `-`. A byte-order mark is
    no letter. In a list of captions the first that is not empty counts; `all_captions` keeps the
    others. An image that is gone, may not be read (`unreadable`) or is above `max_image_bytes`
    (`too_large`) is null, and so is one whose symbolic link leads out of the folder (`outside`),
    unless `follow_links`; captions out there are not read.

    Source: the layout of Hugging Face's imagefolder, and the .txt files of caption tools.
    Error: a file is known by name, size and time of change. Each shard reads the metadata files
        above its images whole. Names that begin with a dot are skipped.
    Example: {path: pictures}
    """

    version = 5
    determinism = "exact"
    takes = ()
    reasons = ("too_large", "outside", "unreadable", "bad_caption")

    path: NonEmpty = location()  # the folder, here or s3://…
    max_image_bytes: OneUp = 100 << 20  # a larger file is `too_large`
    caption_col: NonEmpty | None = later("text")  # column of captions; null skips metadata files
    all_captions: bool = later(False)  # of a list also those after the first, as `captions`
    # from the image's folder on: {name} is the image's without its suffix, {file} with it, {folder}
    # its folder's; for images/cat.jpg and captions/cat.txt "../captions/{name}.txt"
    caption_files: NonEmpty = later("{name}.txt")
    caption_key: NonEmpty | None = later(None)  # of the caption, as `en.text`, where they are JSON
    caption: NonEmpty | None = later(None)  # of images without one: "a photo of a {class}"
    max_caption_bytes: OneUp = later(MAX_LINE_BYTES)  # a larger file is a `bad_caption`
    follow_links: bool = later(False)  # also out of the folder: for folders of your own
    shard_rows: OneUp = 10_000  # rows of one shard, the unit of work and of resuming

    @property
    def writes(self) -> tuple[Column, ...]:
        more = (CAPTIONS,) if self.all_captions else ()
        return URL, TEXT, *more, IMAGE, IMAGE_BYTES, SHA256

    def files(self) -> dict[str, int]:
        return sizes_of(list_files(self.path, IMAGE_SUFFIXES, "pool"))

    def counts(self) -> Iterator[tuple[int, int]]:
        images = len(self.files())
        yield images, ceil(images / self.shard_rows)

    def head(self, rows: int) -> pa.Table:
        images = list_files(self.path, IMAGE_SUFFIXES, "pool")[:rows]
        sources = self.sources(images, "pool")
        for path in sources[0]["metadata"]:
            check_metadata(self, path, None)
        return first_rows((table for source in sources for table in read(self, source, None)), rows)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        images = list_files(self.path, IMAGE_SUFFIXES, ctx.worker.stage)
        sources = self.sources(images, ctx.worker.stage)
        metadata = sorted({path for source in sources for path in source["metadata"]})
        ctx.map(partial(check_metadata, self), metadata)
        ctx.create_shards(partial(read, self), sources)

    def sources(self, images: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
        """Returns one source per shard of these images."""
        folder = open_pool(self.path)[0].uri  # captions need not match a glob of images
        suffix = posixpath.splitext(self.caption_files)[1].lower()
        beside = (*IMAGE_SUFFIXES, suffix, *(METADATA if self.caption_col else ()))
        files = {file["path"]: file for file in list_files(folder, beside, stage)}
        shards = range(0, len(images), self.shard_rows)
        return [self.source_of(images[i : i + self.shard_rows], files) for i in shards]

    def beside(self, name: str) -> str:
        """Returns the path of the file that may hold an image's caption."""
        suffix = self.caption_files.removeprefix("{name}.")
        if suffix != self.caption_files and not {"{", "/"} & {*suffix}:  # fast, for most
            return f"{stem_of(name)}.{suffix}"
        folder, _, file = name.rpartition("/")
        path = self.caption_files.replace("{folder}", posixpath.basename(folder))
        path = path.replace("{name}", stem_of(file)).replace("{file}", file)
        return posixpath.normpath(posixpath.join(folder, path))

    def source_of(self, images: list[dict[str, Any]], files: Mapping[str, Any]) -> dict[str, Any]:
        """Returns one shard's source: its images, and the files that hold their captions."""
        names = [image["path"] for image in images]
        texts = [text for text in map(self.beside, names) if text in files]
        folders = sorted({folder for name in names for folder in folders_above(name)})
        metadata = [
            path
            for folder in folders
            for path in (folder + name for name in METADATA)
            if path in files
        ]
        digests = [files[path]["digest"] for path in (*names, *texts, *metadata)]
        return {
            "digest": hashlib.sha256("\n".join(digests).encode()).hexdigest(),
            "images": [[image["path"], image["size"]] for image in images],
            "texts": texts,
            "metadata": metadata,  # sorted, so that a nearer one comes later
        }


def read(stage: ImageFolder, source: Mapping[str, Any], task: Task | None) -> Iterator[pa.Table]:
    """Yields the source's images and captions, streamed."""
    storage, _ = open_pool(stage.path)
    captions: dict[str, Any] = {}
    names = {name for name, _ in source["images"]}
    for path in source["metadata"]:
        if leads_out(storage, path) and not stage.follow_links:
            continue
        with failing_its_shard(f"{storage}/{path}"):
            captions |= {
                name: text
                for name, text in captions_in(storage, path, str(stage.caption_col))
                if name in names
            }
    texts = set(source["texts"])
    with failing_its_shard(str(storage)):
        rows = (
            row_of(stage, storage, (name, size), captions, texts) for name, size in source["images"]
        )
        for batch in in_batches(rows, lambda row: len(row[IMAGE.name] or b"")):
            yield fitted(stage, batch)


def check_metadata(stage: ImageFolder, path: str, task: Task | None) -> dict[str, Any]:
    """Raises StageError if a metadata file names no images, or lacks the captions."""
    storage, _ = open_pool(stage.path)
    if leads_out(storage, path) and not stage.follow_links:
        return {}  # `read` passes it over
    where = f"{storage}/{path}"
    names: list[str] = []
    with suppress(*UNREADABLE), io.BufferedReader(storage.open(path), 1 << 20) as file:
        if path.endswith(".parquet"):
            names = paths_of(pq.ParquetFile(file).schema_arrow)
        elif path.endswith(".csv"):
            names, _ = read_header(file, Dialect(delimiter=","))
        else:
            lines = islice(lines_of(file, MAX_LINE_BYTES), LOOKED_AT)
            objects = (json_object(line) or {} for line in lines)
            names = list(dict.fromkeys(path for record in objects for path in paths_in(record)))
    if names:
        do = f"give each row the path of its image as `{FILE_NAME}`"
        require({FILE_NAME: FILE_NAME}, names, where, do)
        require({"caption_col": str(stage.caption_col)}, names, where)
    return {}


def captions_in(storage: Storage, path: str, caption_col: str) -> Iterator[tuple[str, Any]]:
    """Yields each row's name below the pool's folder, and caption, from a metadata file."""
    folder = path[: path.rfind("/") + 1]
    for rows, unparsed in metadata_rows(storage, path, [FILE_NAME, caption_col]):
        if unparsed.null_count < len(unparsed):
            raise ShardError(
                found=f"a row that no parser reads: {unparsed.drop_null()[0]}",
                where=f"{storage}/{path}",
                do="mend the row: it is not known whose caption it holds",
            )
        names, _ = fit(rows[FILE_NAME], pa.string())
        texts = rows[caption_col]
        texts = texts if isinstance(texts, list) else texts.to_pylist()
        for name, text in zip(names.to_pylist(), texts, strict=True):
            is_empty = isinstance(text, list) and not any(text)
            place = f"{folder}{name}".replace("\\", "/")  # as imagefolder reads ./a.jpg and b\a.jpg
            yield posixpath.normpath(place), None if is_empty else text


def metadata_rows(storage: Storage, path: str, columns: list[str]) -> Iterator[Rows]:
    """Yields the rows of a metadata file, streamed."""
    if path.endswith(".parquet"):
        whole = {"path": path, "start": 0, "stop": None}
        for tables in parquet_rows(storage, [whole], columns, convert=partial(flat, columns)):
            yield from map(unparsed_nowhere, tables)
        return
    with io.BufferedReader(storage.open(path), 1 << 20) as file:
        is_json = path.endswith(".jsonl")
        yield from json_rows(file, columns) if is_json else csv_rows(file, [], columns, Dialect())


def row_of(
    stage: ImageFolder,
    storage: Storage,
    image: tuple[str, int],
    captions: Mapping[str, Any],
    texts: set[str],
) -> dict[str, Any]:
    """Returns path, caption, bytes and reason of one image, as plain values."""
    name, size = image
    is_small = size <= stage.max_image_bytes
    is_outside = not stage.follow_links and leads_out(storage, name)
    is_read = is_small and not is_outside
    body = read_if_allowed(storage, name, stage.max_image_bytes) if is_read else None
    text, most = captions.get(name), stage.max_caption_bytes
    beside = stage.beside(name)
    is_bad = False
    if text is None and beside in texts and (stage.follow_links or not leads_out(storage, beside)):
        read = read_if_allowed(storage, beside, most + 1)
        is_bad = read is None or len(read) > most
        text = (read or b"").removeprefix(BOM).strip()
        if stage.caption_key:
            known = json_object(text)
            is_bad |= known is None
            text = value_at(known or {}, stage.caption_key)
    if isinstance(text, list) and not (stage.all_captions and any(text)):
        text = next(filter(None, text), None)
    if text is None and stage.caption and "/" in name:
        kind = name.split("/")[-2].replace("_", " ").replace("-", " ")
        text = stage.caption.replace("{class}", kind)
    return {
        URL.name: name,
        TEXT.name: None if is_bad else text,
        IMAGE.name: body,
        IMAGE_BYTES.name: len(body) if body is not None else None,
        SHA256.name: hashlib.sha256(body).hexdigest() if body is not None else None,
        "too_large": not is_small,
        "outside": is_outside,
        "unreadable": body is None,
        "is_bad": is_bad,
    }


def fitted(stage: ImageFolder, rows: list[dict[str, Any]]) -> pa.Table:
    """Returns images in the columns that the stage writes."""
    plain = (URL, IMAGE, IMAGE_BYTES, SHA256)
    values = {c.name: fit([row[c.name] for row in rows], c.dtype)[0] for c in plain}
    texts, misfit = captions_of([row[TEXT.name] for row in rows], stage.all_captions)
    values |= texts
    masks = {
        code: pa.array([row[code] for row in rows], pa.bool_())
        for code in ("too_large", "outside", "unreadable")
    }
    is_bad = pa.array([row["is_bad"] for row in rows], pa.bool_())
    masks["bad_caption"] = any_of([misfit, is_bad], len(rows))
    known = uid_column(None, values[URL.name], values[TEXT.name])
    stored = {column.name: values[column.name] for column in stage.writes}
    return pa.table({UID.name: known, **stored, REASON.name: first_reason(masks)})


def stem_of(name: str) -> str:
    """Returns the name without its suffix."""
    return name[: name.rindex(".")]


def folders_above(name: str) -> list[str]:
    """Returns every folder above a file, from the pool's own, each with its slash."""
    parts = name.split("/")[:-1]
    return ["".join(f"{part}/" for part in parts[:depth]) for depth in range(len(parts) + 1)]
