"""Exports the training set as tar files, for loaders that read img2dataset's output."""

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Meta

from clipmill.metadata.schema import CAPTION, CAPTIONS, IMAGE, REASON, SAMPLE_INDEX, TEXTS, UID
from clipmill.pipeline.dataset import Inputs, Task
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import NonEmpty
from clipmill.stages.export._columns import IF_PRESENT, as_json, finite
from clipmill.stages.export._groups import COPY
from clipmill.stages.export._leaving import repeats
from clipmill.stages.export._pictures import PictureExport
from clipmill.stages.export._texts import captions_of, lists_in

TEXT_KEY = re.compile(rf"{CAPTION.name}_\d+")  # of a row's texts after its first
PARALLEL = {"source": "caption_sources", "label": "caption_labels"}  # each text's field: its list
SAMPLES = 10_000  # as a key ends in four digits, after the number of its tar
SUFFIXES = {"jpeg": "jpg", "tiff": "tif"}  # else the format's own name


@dataclass(frozen=True, kw_only=True)
class WebDataset(PictureExport):
    """Tars of KEY.jpg, KEY.txt and KEY.json, each with a Parquet of the JSON and its counts.

    Takes the rows of `export.parquet`, in the same order. The suffix is the image's actual format,
    `bin` if unknown. The JSON has uid (32 hex digits), key, caption, sample_index, status, the
    pool's url, sizes, sha256 and loss_weight if present, and the chosen columns. After caption
    stages, each further text of a row has its own key in the JSON, from `caption_1` on;
    `caption_sources` and `caption_labels` are lists for all texts. The Parquet has the list
    `captions` instead. A row gives `repeats` samples, none for 0; copies have the keys UID-0, UID-1
    … and are adjacent; a second row of the same uid goes on from there, so no tar has a key twice.

    Source: img2dataset's webdataset output. Departs: no times, so that equal rows are equal bytes.
    Copies are named as by DataComp's resharder, which numbers single rows, too (UID-0). Each text
    has its own key, as open_clip's `--json-text-key "caption;caption_1"` skips lists.
    Error: open_clip 3.3 reads the tars with webdataset up to 0.2.86, and no later one.
    Example: {after: [ingest.webdataset]}
    """

    rows_per_shard: Annotated[int, Meta(ge=1, le=SAMPLES)] = SAMPLES  # cap on samples of a tar
    columns: tuple[NonEmpty, ...] = ()  # further columns of the JSON, as `name` or `stage.name`

    version = 6
    formats = ("webdataset",)
    always = (
        *(UID, CAPTION, CAPTIONS, TEXTS, SAMPLE_INDEX, REASON),
        *("key", "status", "error_message", *PARALLEL.values()),
    )

    def written(self, inputs: Inputs) -> dict[str, Any]:
        return {"layout": "webdataset", "write": partial(write_file, self), "times": repeats}


def write_file(
    stage: WebDataset, stem: str, tables: Iterator[pa.Table], empty: pa.Table, task: Task
) -> tuple[dict[str, Any], pa.Schema]:
    """Writes one tar and the two files beside it; returns the tar and the Parquet's schema."""
    path = task.worker.scratch / f"{stem}.tar"
    keys = Keys(stem)
    metas = [meta(stage, empty, keys)]
    with path.open("wb") as file:
        tar = TarWriter(file)
        for table in tables:
            metas.append(meta(stage, table, keys))
            tar.add(members(table[IMAGE.name], metas[-1]))
        sha256, size_bytes = tar.close()
    whole = pa.concat_tables(metas)
    beside = path.with_suffix(".parquet")
    pq.write_table(whole, beside)
    stats = path.with_name(f"{stem}_stats.json")
    stats.write_text(json.dumps(counts(whole["status"]), indent=4))
    for other in (beside, stats):
        task.put_file(other.name, other)
    task.put_file(path.name, path, sha256)
    return {"file": path.name, "bytes": size_bytes, "sha256": sha256}, whole.schema


class Keys:
    """The keys of a tar's samples: no two are equal, though two rows may share a uid."""

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self._samples = 0
        self._copies: set[str] = set()

    def of(self, table: pa.Table, uids: Sequence[str]) -> list[str]:
        """Returns the keys of the next samples, whose uids these are, in hex."""
        keys = []
        copies = zip(uids, repeats(table).tolist(), table[COPY].to_pylist(), strict=True)
        for number, (uid, times, copy) in enumerate(copies, start=self._samples):
            key = f"{uid}-{copy}" if times > 1 else f"{self._stem}{number:04d}"
            while key in self._copies:
                copy += 1
                key = f"{uid}-{copy}"
            if times > 1:
                self._copies.add(key)
            keys.append(key)
        self._samples += len(keys)
        return keys


def meta(stage: WebDataset, table: pa.Table, keys: Keys) -> pa.Table:
    """Returns the columns of the samples' JSON; NaN and infinity, which it lacks, become null."""
    uids = [uid.hex() for uid in table[UID.name].to_pylist()]
    texts = stage.texts(table)
    several = {}
    if lists_in(table.schema, stage.captions):
        if taken := [name for name in stage.columns if TEXT_KEY.fullmatch(name)]:
            found = f"'{taken[0]}', the key of a row's further text, is a column of the pool too"
            raise StageError(found, "key `columns`", "leave it out, or write uses: export.parquet")
        several = {CAPTIONS.name: fields_of(texts, "text")}
        several |= {name: fields_of(texts, field) for field, name in PARALLEL.items()}
    known = [c.name for c in IF_PRESENT if c.name in table.column_names]
    out = stage.dropped.columns_of(table) if stage.dropped else {}
    out |= {name: table[name] for name in (*known, *stage.columns)}
    for name, values in out.items():
        if pa.types.is_floating(values.type):
            out[name] = pc.if_else(pc.is_finite(values), values, None)
    return pa.table(
        {
            "key": pa.array(keys.of(table, uids), pa.string()),
            UID.name: pa.array(uids, pa.string()),
            CAPTION.name: captions_of(table, texts),
            **several,
            SAMPLE_INDEX.name: table[SAMPLE_INDEX.name],
            "status": pc.if_else(table[IMAGE.name].is_null(), "undecodable", "success"),
            "error_message": pa.nulls(len(table), pa.string()),
            **out,
        }
    )


def fields_of(texts: pa.Array, field: str) -> pa.Array:
    """Returns a field of each text, as a list a row."""
    return pa.ListArray.from_arrays(texts.offsets, pc.struct_field(texts.values, field))


def jsons_of(metas: pa.Table) -> Iterator[bytes]:
    """Yields the JSON of each sample, each text under its own key, as loaders skip lists."""
    columns = {name: metas[name].to_pylist() for name in metas.column_names}
    texts = {
        name: [indented(value) for value in values]
        for name, values in columns.items()
        if name != CAPTIONS.name
    }
    for i in range(len(metas)):
        fields: dict[str, str] = {}
        for name in columns:
            if name in texts:
                fields[name] = texts[name][i]
                continue
            for number, text in enumerate(columns[name][i][1:], 1):
                fields[f"{CAPTION.name}_{number}"] = indented(text)
        yield json_of(fields)


def members(images: pa.ChunkedArray, metas: pa.Table) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of each sample's files: image and text, if present, and JSON."""
    keys, captions = metas["key"].to_pylist(), metas[CAPTION.name].to_pylist()
    for body, key, caption, encoded in zip(
        images.to_pylist(), keys, captions, jsons_of(metas), strict=True
    ):
        if body is not None:
            yield f"{key}.{suffix_of(body)}", body
        yield f"{key}.json", encoded
        if caption is not None:
            yield f"{key}.txt", caption.encode()


def suffix_of(image: bytes) -> str:
    """Returns the suffix of the image's format; `bin` if no decoder knows it."""
    from clipmill.stages.ops.images.encoded import probe
    from clipmill.stages.ops.images.opened import ImageError

    try:
        name = probe(image).format
    except ImageError:
        return "bin"
    return SUFFIXES.get(name, name)


def counts(status: pa.ChunkedArray) -> dict[str, Any]:
    """Returns img2dataset's counts; a picture fails if it was to be blurred and did not decode."""
    by_status = {found["values"]: found["counts"] for found in status.value_counts().to_pylist()}
    fine = by_status.get("success", 0)
    failed = {"failed_to_download": 0, "failed_to_resize": len(status) - fine}
    return {"count": len(status), "successes": fine, **failed, "status_dict": by_status}


MODE = 0o644
NAME_BYTES, SIZE_DIGITS = 100, 11  # capacity of a header
BLANK = tarfile.TarInfo()
BLANK.mode = MODE
HEADER = BLANK.tobuf(tarfile.USTAR_FORMAT)  # of an empty file without a name
CHECKSUM = int(HEADER[148:154], 8)
text_of = json.JSONEncoder(default=as_json).encode


class TarWriter:
    """A writer of tar files that hashes its output."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size = 0

    def add(self, members: Iterable[tuple[str, bytes]]) -> None:
        """Appends files: name and bytes of each."""
        parts: list[bytes] = []
        for name, data in members:
            parts += header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE)
        self._write(b"".join(parts))

    def close(self) -> tuple[str, int]:
        """Ends the tar; returns the SHA-256 of its bytes, and their number."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self._size + end) % tarfile.RECORDSIZE))
        return self._sha256.hexdigest(), self._size

    def _write(self, data: bytes) -> None:
        self._sha256.update(data)
        self._file.write(data)
        self._size += len(data)


def header(name: str, size: int) -> bytes:
    """Returns a member's header: HEADER with name, size and checksum filled in."""
    encoded, digits = name.encode(), b"%011o" % size
    if len(encoded) > NAME_BYTES or len(digits) > SIZE_DIGITS:
        long = tarfile.TarInfo(name)
        long.size, long.mode = size, MODE
        return long.tobuf(tarfile.USTAR_FORMAT)
    checksum = b"%06o" % (CHECKSUM + sum(encoded) + sum(digits) - SIZE_DIGITS * ord("0"))
    named = encoded.ljust(NAME_BYTES, b"\0") + HEADER[NAME_BYTES:124]
    return named + digits + HEADER[135:148] + checksum + HEADER[154:]


def indented(value: Any) -> str:
    """Returns a value's JSON as json.dumps with indent 4 writes it inside an object."""
    if isinstance(value, list | dict):
        return json.dumps(finite(value), indent=4, default=as_json).replace("\n", "\n    ")
    return text_of(value)


def json_of(row: dict[str, str]) -> bytes:
    """Returns a JSON object; `row` maps names to values in JSON."""
    lines = [f"{text_of(name)}: {text}" for name, text in row.items()]
    return ("{\n    " + ",\n    ".join(lines) + "\n}").encode()
