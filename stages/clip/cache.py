"""An exported shard as the trainer reads it: images at one size in one array, captions hashed.

Decoding costs more than a small training step, so it is done once; see tests/benchmarks/loader.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from metadata.outputs import Outputs
from metadata.schema import IMAGE, LOSS_WEIGHT, REPEATS, TEXTS, UID
from metadata.storage import Storage
from pipeline.dataset import Task
from pipeline.errors import StageError
from stages.clip.subset import Chooser, Chosen, text_lists
from stages.ops.images import RGB, ImageError, decode
from stages.ops.resize import resize

# Shapes: N rows, S pixels a side, K captions, T tokens.

BATCH_ROWS = 256  # encoded images held at a time
COLUMNS = [column.name for column in (UID, IMAGE, TEXTS, REPEATS, LOSS_WEIGHT)]
LEFT_OUT = ("no_image", "undecodable", "no_text")
# (T,) tokens of some texts one after the other, and (K + 1,) where each text begins
Tokenize = Callable[[Sequence[str]], tuple[NDArray[np.int32], NDArray[np.int64]]]


@dataclass(frozen=True, kw_only=True)
class CachedShard:
    """One exported shard: its usable rows in their order."""

    file: str
    images: NDArray[np.uint8]  # (N, S, S, 3)
    uids: NDArray[np.uint8]  # (N, 16)
    repeats: NDArray[np.int32]  # (N,)
    weights: NDArray[np.float32]  # (N,)
    text_starts: NDArray[np.int64]  # (N + 1,) first caption of each row
    token_starts: NDArray[np.int64]  # (K + 1,) first token of each caption
    tokens: NDArray[np.int32]  # (T,)


def square(rgb: RGB, size: int) -> RGB:
    """(size, size, 3) the whole picture, its longer side at `size`, centred on white."""
    return resize(rgb, "border", size, upscale="cubic")


def cache_shard(
    data: str,
    folder: str,
    size: int,
    tokenize: Tokenize,
    choose: Chooser | None,
    file: str,
    task: Task,
) -> dict[str, Any]:
    """Stores one shard of an export below `cache/`; its rows, and those left out by reason.

    With a chooser only the rows that it takes, as it says; `chosen` is a digest of that.
    """
    exported, target = Outputs(Storage(data)), Storage(folder)
    counts: Counter[str] = Counter()
    exported.check(file)
    chosen = choose(file) if choose else None
    with target.scratch(f"cache/{file}.npy") as path, exported.parquet(file) as parquet:
        rows = parquet.metadata.num_rows
        if chosen is not None:
            rows = int(np.count_nonzero(chosen.times))
        shape = (max(1, rows), size, size, 3)  # no file can map no byte
        image_NSS3 = open_memmap(path, "w+", np.uint8, shape)
        kept: list[pa.Table] = []
        for batch in _batches(parquet, chosen):
            start = sum(map(len, kept))
            kept.append(_store_images(batch, image_NSS3[start:], counts))
        image_NSS3.flush()
        del image_NSS3
        target.commit(path, f"cache/{file}.npy")
    table = pa.concat_tables(kept) if kept else _plain(parquet.schema_arrow.empty_table())
    sink = BytesIO()
    arrays = _arrays(table, tokenize)
    np.savez(sink, **arrays)  # type: ignore[arg-type]  # as in numpy's docs
    target.put(f"cache/{file}.npz", sink.getvalue(), point="rename")
    left_out = {reason: counts[reason] for reason in LEFT_OUT}
    made: dict[str, Any] = {"file": file, "rows": len(table), "left_out": left_out}
    if chosen is not None:
        left_out["not_kept"] = int(np.count_nonzero(chosen.times == 0))
        made["chosen"] = chosen.digest
    return made


def _batches(parquet: pq.ParquetFile, chosen: Chosen | None) -> Iterator[pa.Table]:
    """The rows of a file, texts as lists of strings; of a choice the rows that it takes."""
    start = 0
    for batch in parquet.iter_batches(BATCH_ROWS, columns=COLUMNS):
        table = _plain(pa.Table.from_batches([batch]))
        yield table if chosen is None else chosen.of(table, start)
        start += len(batch)


def _plain(rows: pa.Table) -> pa.Table:
    """The rows with their texts as lists of strings."""
    at = rows.column_names.index(TEXTS.name)
    return rows.set_column(at, TEXTS.name, text_lists(rows[TEXTS.name]))


def _store_images(batch: pa.Table, image_NSS3: NDArray[np.uint8], counts: Counter[str]) -> pa.Table:
    """Writes the images of usable rows into the array; gives these rows without images."""
    size = image_NSS3.shape[1]
    usable, done = [], 0
    texts = batch[TEXTS.name].to_pylist()
    for body, captions in zip(batch[IMAGE.name].to_pylist(), texts, strict=True):
        reason = None
        if body is None:
            reason = "no_image"
        elif not any(caption is not None for caption in captions or ()):
            reason = "no_text"
        else:
            try:  # a decoder takes one at a time
                image_NSS3[done] = square(decode(body), size)
            except ImageError:
                reason = "undecodable"
        usable.append(reason is None)
        done += reason is None
        if reason is not None:
            counts[reason] += 1
    return batch.drop_columns([IMAGE.name]).filter(pa.array(usable, pa.bool_()))


def _arrays(rows: pa.Table, tokenize: Tokenize) -> dict[str, NDArray[Any]]:
    captions = [
        instead_of_single_words([text for text in texts if text is not None])
        for texts in rows[TEXTS.name].to_pylist()
    ]
    flat = [text for texts in captions for text in texts]
    token_T, token_start_K = tokenize(flat)
    uid = b"".join(rows[UID.name].to_pylist())
    return {
        "uids": np.frombuffer(uid, np.uint8).reshape(-1, 16),
        "repeats": rows[REPEATS.name].fill_null(1).to_numpy(),
        "weights": rows[LOSS_WEIGHT.name].fill_null(1).to_numpy(),
        "text_starts": np.cumsum([0, *map(len, captions)], dtype=np.int64),
        "token_starts": token_start_K,
        "tokens": token_T,
    }


def instead_of_single_words(texts: list[str]) -> list[str]:
    """The first text, which is the original, in the place of each of fewer than two words.

    Source: LaCLIP (Fan et al. 2023), its loader.
    """
    return [text if len(text.split()) > 1 else texts[0] for text in texts]


def read_cached(folder: str, cached: Sequence[Mapping[str, Any]]) -> Iterator[CachedShard]:
    """The shards that `cache_shard` stored; images stay on disk where the disk is this one."""
    storage = Storage(folder)
    for shard in cached:
        try:
            yield _read_shard(storage, shard["file"], shard["rows"])
        except (FileNotFoundError, ValueError, EOFError, BadZipFile) as error:
            raise StageError(
                found=f"a damaged cache of {shard['file']}: {error}",
                where=f"{storage}/cache",
                do="delete that folder and the calls-* folder beside it, and run again",
            ) from error


def _read_shard(storage: Storage, file: str, rows: int) -> CachedShard:
    name = f"cache/{file}"
    if storage.is_local:
        image_NSS3 = np.load(Path(storage.locate(f"{name}.npy")), mmap_mode="r")
    else:
        image_NSS3 = np.load(BytesIO(storage.read(f"{name}.npy")))
    with np.load(BytesIO(storage.read(f"{name}.npz"))) as arrays:
        return CachedShard(file=file, images=image_NSS3[:rows], **arrays)
