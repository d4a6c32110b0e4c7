"""Caches an exported shard for the trainer: images at one size in one array, captions as tokens.

Decoding costs more than a small training step, so it is done once: into a stage's own cache, or by
export.pixels for every stage that trains on the export.
"""

import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import (
    CONCEPT_IDS,
    CONCEPT_LIST,
    IMAGE,
    LOSS_WEIGHT,
    REPEATS,
    SAMPLE_INDEX,
    TEXTS,
    UID,
)
from clipmill.metadata.scratch import scratch_folder, shared_scratch
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Task
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.batch import Reading
from clipmill.stages.clip.subset import Chosen, text_lists
from clipmill.stages.ops.images.squares import decoded
from clipmill.stages.ops.vectors.matrices import as_matrix

# Shapes: N rows, S pixels a side, K captions, T tokens, D width of a stored vector.

BATCH_ROWS = 256  # encoded images in memory
ALWAYS = [column.name for column in (UID, TEXTS, REPEATS, LOSS_WEIGHT)]
LEFT_OUT = ("no_image", "undecodable", "no_text")
NOT_KEPT = "not_kept"
NO_TEACHER = "no_teacher"
NO_REFERENCE = "no_reference_loss"
CONCEPTS = (CONCEPT_IDS.name, CONCEPT_LIST.name)
ROW = "row"  # a row's number in the exported file
none = partial(np.empty, 0, np.int64)


@dataclass(frozen=True, kw_only=True)
class CachedShard:
    """The usable rows of one exported shard, in order."""

    file: str
    images: NDArray[np.uint8]  # (at least N, S, S, 3)
    at: NDArray[np.int64]  # (N,) index of each row's image
    uids: NDArray[np.uint8]  # (N, 16)
    index: NDArray[np.int64]  # (N,) sample_index
    repeats: NDArray[np.int32]  # (N,)
    weights: NDArray[np.float32]  # (N,)
    text_starts: NDArray[np.int64]  # (N + 1,) first caption of each row
    token_starts: NDArray[np.int64]  # (K + 1,) first token of each caption
    tokens: NDArray[np.int32]  # (T,)
    teacher: Mapping[str, NDArray[np.float32]]  # (N, D) stored vectors, by column
    # of trainings that ask: (N,) how many of a row's last texts are negatives; (C,) concepts of all
    # rows, and (N,) how many each has
    negatives: NDArray[Any] = field(default_factory=none)
    concepts: NDArray[Any] = field(default_factory=none)
    concepts_of: NDArray[Any] = field(default_factory=none)
    reference: NDArray[Any] = field(default_factory=none)  # (N,) nats
    # of trainings that edit texts: UTF-8 of all, and (K + 1,) the first byte of each
    text_bytes: NDArray[Any] = field(default_factory=none)
    byte_starts: NDArray[Any] = field(default_factory=none)


def cache_shard(reading: Reading, file: dict[str, Any], task: Task) -> dict[str, Any]:
    """Stores one shard of an export below `cache/`; returns its row count and left-out counts.

    `chosen` is the digest of a choice. Pictures that export.pixels has decoded stay where they are.
    Rows without negatives are counted.
    """
    exported, target, name = Outputs(Storage(reading.data)), Storage(reading.folder), file["file"]
    chosen = reading.choose(name) if reading.choose else None
    counts: Counter[str] = Counter()
    exported.check(name)
    with exported.parquet(name) as parquet:
        where = f"{exported.folder}/{exported.inside}{name}"
        names = columns_of(parquet.schema_arrow, reading, where)
        batches = (
            usable(prepared(batch, reading, chosen, file["first"], start), reading, counts)
            for batch, start in _batches(parquet, names)
        )
        if "pixels" in file:
            exported.check(file["pixels"]["file"])
            table = pa.concat_tables(batches)
        else:
            rows = parquet.metadata.num_rows
            if chosen is not None:
                rows = int(np.count_nonzero(chosen.times))
            table = _stored(target, name, (rows, reading.size), batches, counts)
    sink = BytesIO()
    arrays = _arrays(table, reading)
    np.savez(sink, **arrays)  # type: ignore[arg-type]  # as in numpy's docs
    target.put(f"cache/{name}.npz", sink.getvalue(), point="rename")
    for column in reading.teacher:
        with target.scratch(f"cache/{name}.{column}.npy") as path:
            with path.open("wb") as opened:
                np.save(opened, as_matrix(table[column]))
            target.commit(path, f"cache/{name}.{column}.npy")
    entry: dict[str, Any] = {"file": name, "rows": len(table)}
    entry |= {"teacher": list(reading.teacher)} if reading.teacher else {}
    entry |= {"pixels": file["pixels"]["file"]} if "pixels" in file else {}
    if reading.negatives:
        entry["no_negative"] = int((arrays["negatives"] == 0).sum())
    if reading.gain:
        entry["concept_lists"] = pc.unique(table[CONCEPT_LIST.name]).drop_null().to_pylist()
    return entry | left_out(counts, chosen, reading)


def left_out(counts: Counter[str], chosen: Chosen | None, reading: Reading) -> dict[str, Any]:
    """Returns `left_out`, a file's rows by reason, and of a choice its digest, `chosen`.

    Rows that count no time are `not_kept`, named where there is a choice, or such a row.
    """
    reasons = [*LEFT_OUT, *([NO_TEACHER] if reading.teacher else [])]
    reasons += [NO_REFERENCE] if reading.reference else []
    left = {reason: counts[reason] for reason in reasons}
    not_kept = counts[NOT_KEPT] if chosen is None else int(np.count_nonzero(chosen.times == 0))
    left |= {NOT_KEPT: not_kept} if chosen or not_kept else {}
    return {"left_out": left} | ({} if chosen is None else {"chosen": chosen.digest})


def _batches(parquet: pq.ParquetFile, names: list[str]) -> Iterator[tuple[pa.Table, int]]:
    """Yields batches of a file and the rows before, an empty one last: there is at least one."""
    start = 0
    for batch in parquet.iter_batches(BATCH_ROWS, columns=names):
        yield pa.Table.from_batches([batch]), start
        start += len(batch)
    yield parquet.schema_arrow.empty_table().select(names), start


def columns_of(schema: pa.Schema, reading: Reading, where: str) -> list[str]:
    """Returns the columns that a training reads from a file; raises StageError if it lacks one."""
    negatives = reading.negatives
    of_loss = [*reading.teacher, *([negatives] if negatives else [])]
    of_sampling = [*(CONCEPTS if reading.gain else ())]
    of_sampling += [reading.reference] if reading.reference else []
    extra = [*of_loss, *of_sampling]
    for column in extra:
        if column not in schema.names:
            which = "the loss" if column in of_loss else "`sampling`"
            found = f"no column '{column}', which {which} asks for"
            raise StageError(found, where, f"add '{column}' to the export's `columns`")
    for column in reading.teacher:
        if not pa.types.is_nested(schema.field(column).type):
            found = f"'{column}' holds {schema.field(column).type}, not vectors"
            raise StageError(found, where, "name columns of vectors, as embed.clip writes them")
    if negatives and schema.field(negatives).type not in (TEXTS.dtype, pa.string()):
        found = f"'{negatives}' holds {schema.field(negatives).type}, not texts"
        raise StageError(found, where, "name a column of texts, as caption.swap writes `negatives`")
    if reading.reference:
        kind = schema.field(reading.reference).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            found = f"'{reading.reference}' holds {kind}, not numbers"
            raise StageError(found, where, "name a column of losses in nats as `reference_loss`")
    optional = [name for name in (IMAGE.name, SAMPLE_INDEX.name) if name in schema.names]
    return [*ALWAYS, *optional, *extra]


def prepared(
    rows: pa.Table, reading: Reading, chosen: Chosen | None, first: int, start: int
) -> pa.Table:
    """Returns rows with texts as lists of strings, and with their row number and sample_index.

    `start` rows of the file and `first` rows of the export come before. A choice is applied.
    """
    for name in (TEXTS.name, *([reading.negatives] if reading.negatives else [])):
        place = rows.column_names.index(name)
        texts = rows[name]
        if pa.types.is_string(texts.type):  # a false text a row, as HQ-CLIP's long_negative
            lists = [[text] if text else None for text in texts.to_pylist()]
            rows = rows.set_column(place, name, pa.array(lists, pa.list_(pa.string())))
        else:
            rows = rows.set_column(place, name, text_lists(texts))
    row_N = np.arange(start, start + len(rows))
    rows = rows.append_column(ROW, pa.array(row_N))
    if SAMPLE_INDEX.name not in rows.column_names:  # an export by an older version
        rows = rows.append_column(SAMPLE_INDEX.name, pa.array(first + row_N))
    return rows if chosen is None else chosen.of(rows, start)


def usable(batch: pa.Table, reading: Reading, counts: Counter[str]) -> pa.Table:
    """Returns the rows that count and have an image, a text, every stored vector and a reference's
    loss; counts the others."""
    left_N = np.zeros(len(batch), bool)

    def leave(reason: str, missing_N: NDArray[np.bool_]) -> None:
        counts[reason] += int(np.count_nonzero(missing_N & ~left_N))
        left_N[missing_N] = True

    leave(NOT_KEPT, pc.equal(batch[REPEATS.name], 0).fill_null(False).to_numpy())
    if IMAGE.name in batch.column_names:
        leave("no_image", batch[IMAGE.name].is_null().to_numpy())
    texts = batch[TEXTS.name].to_pylist()
    leave("no_text", np.array([not texts_there(row) for row in texts], bool))
    for column in reading.teacher:
        leave(NO_TEACHER, batch[column].is_null().to_numpy())  # alone they have no width
        leave(NO_TEACHER, ~np.isfinite(as_matrix(batch[column]).sum(axis=1)))
    if reading.reference:
        leave(NO_REFERENCE, ~np.isfinite(batch[reading.reference].cast(pa.float64()).to_numpy()))
    return batch.filter(pa.array(~left_N))


def texts_there(texts: list[str | None] | None) -> list[str]:
    """Returns the texts of a row that are not null."""
    return [text for text in texts or () if text is not None]


def _stored(
    target: Storage,
    name: str,
    shape: tuple[int, int],
    batches: Iterator[pa.Table],
    counts: Counter[str],
) -> pa.Table:
    """Stores the rows' decoded pictures; returns the rows that decode, without the image column."""
    rows, size = shape
    with target.scratch(f"cache/{name}.npy") as path:
        # An empty file cannot be memory-mapped.
        image_NSS3 = open_memmap(path, "w+", np.uint8, (max(1, rows), size, size, 3))
        kept = [fine for fine, _ in decoded(batches, image_NSS3, counts)]
        image_NSS3.flush()
        del image_NSS3
        target.commit(path, f"cache/{name}.npy")
    table = pa.concat_tables(kept)
    return table.set_column(
        table.column_names.index(ROW), ROW, pa.array(np.arange(len(table), dtype=np.int64))
    )


def _arrays(rows: pa.Table, reading: Reading) -> dict[str, NDArray[Any]]:
    negatives = reading.negatives
    texts = [instead_of_single_words(texts_there(row)) for row in rows[TEXTS.name].to_pylist()]
    more = {}
    if CONCEPT_IDS.name in rows.column_names:
        ids = rows[CONCEPT_IDS.name].combine_chunks()
        more["concepts"] = ids.flatten().to_numpy()
        more["concepts_of"] = pc.list_value_length(ids).fill_null(0).to_numpy()
    if negatives:
        false = [texts_there(row) for row in rows[negatives].to_pylist()]
        more["negatives"] = np.array([*map(len, false)], np.int64)
        texts = [[*own, *others] for own, others in zip(texts, false, strict=True)]
    flat = [text for row in texts for text in row]
    if reading.reference:
        more["reference"] = rows[reading.reference].to_numpy().astype(np.float64)
    if reading.edits:
        encoded = [text.encode() for text in flat]
        more["text_bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
        more["byte_starts"] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    token_T, token_start_K = reading.tokenize(flat)
    uid = b"".join(rows[UID.name].to_pylist())
    return {
        "at": rows[ROW].to_numpy(),
        "uids": np.frombuffer(uid, np.uint8).reshape(-1, 16),
        "index": rows[SAMPLE_INDEX.name].to_numpy(),
        "repeats": rows[REPEATS.name].fill_null(1).to_numpy(),
        "weights": rows[LOSS_WEIGHT.name].fill_null(1).to_numpy(),
        "text_starts": np.cumsum([0, *map(len, texts)], dtype=np.int64),
        "token_starts": token_start_K,
        "tokens": token_T,
        **more,
    }


def instead_of_single_words(texts: list[str]) -> list[str]:
    """Returns the texts; the first one, the original, replaces each of fewer than two words.

    Source: LaCLIP (Fan et al. 2023), its loader.
    """
    return [text if len(text.split()) > 1 else texts[0] for text in texts]


def read_cached(
    folder: str, cached: Sequence[Mapping[str, Any]], data: str = ""
) -> Iterator[CachedShard]:
    """Yields the shards that `cache_shard` stored; images are memory-mapped.

    `data` is the export's folder, which holds the pictures of export.pixels.
    """
    storage = Storage(folder)
    for shard in cached:
        file, name = shard["file"], f"cache/{shard['file']}"
        try:
            if "pixels" in shard:
                outputs = Outputs(Storage(data))
                images = mapped(outputs.folder, outputs.inside + shard["pixels"])
            else:
                images = mapped(storage, f"{name}.npy")[: shard["rows"]]
            columns = shard.get("teacher", ())
            teacher = {column: mapped(storage, f"{name}.{column}.npy") for column in columns}
            with np.load(BytesIO(storage.read(f"{name}.npz")), allow_pickle=False) as arrays:
                yield CachedShard(file=file, images=images, teacher=teacher, **arrays)
        except (FileNotFoundError, ValueError, EOFError, BadZipFile) as error:
            found = f"a damaged cache of {file}: {error}"
            do = "delete that folder and the calls-* folder beside it, and run again"
            raise StageError(found, f"{storage}/cache", do) from error


def mapped(storage: Storage, name: str) -> NDArray[Any]:
    """Memory-maps the array of a .npy file; a remote one as a copy that processes here share."""
    if storage.is_local:
        array: NDArray[Any] = np.load(Path(storage.locate(name)), mmap_mode="r", allow_pickle=False)
        return array
    info = storage.fs.get_file_info(storage.locate(name))
    key = digest([storage.uri, name, info.size, info.mtime_ns])
    path = (shared_scratch("arrays") or scratch_folder()) / f"{key}.npy"
    if not path.exists():
        new = path.with_name(f"{key}-{uuid.uuid4().hex}")
        storage.download(name, new)
        os.replace(new, path)
    copy: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return copy
