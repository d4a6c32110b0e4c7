"""A small export and a small model, as export.parquet and train.clip leave them."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.schema import (
    CONCEPT_IDS,
    CONCEPT_LIST,
    IMAGE,
    LOSS_WEIGHT,
    REPEATS,
    TEXTS,
    UID,
)
from clipmill.stages.clip import open_clip_config
from clipmill.stages.clip.batch import Reading
from clipmill.stages.clip.cache import CachedShard
from clipmill.stages.clip.named import new_model, reads
from clipmill.stages.clip.saving import save
from clipmill.stages.readers.cached import Batches
from clipmill.stages.towers.nano import ARCHITECTURES, Architecture

COLOURS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0), "grey": (99, 99, 99)}
SCHEMA = pa.schema([(c.name, c.dtype) for c in (UID, IMAGE, TEXTS, REPEATS, LOSS_WEIGHT)])
MORE = {
    "vector": pa.list_(pa.float32()),
    "negatives": TEXTS.dtype,
    "long_negative": pa.string(),
    "easy": pa.float32(),
    "nearest_clusters": pa.list_(pa.int32()),
    **{column.name: column.dtype for column in (CONCEPT_IDS, CONCEPT_LIST)},
}
TINY = Architecture(
    image_size=16,
    channels=(8, 16),
    strides=(1, 2),
    buckets=512,
    tokens=12,
    bag_width=16,
    hidden=16,
    width=8,
)
ARCHITECTURES["tiny"] = TINY
TINY_READS = reads("tiny")
SMALL = {"batch_size": 8, "samples_seen": 100, "warmup_steps": 2, "checkpoint_steps": 5}
TINY_OPEN_CLIP = str(Path(__file__).with_name("tiny_open_clip.json"))


def small_reading(**changes: Any) -> Reading:
    """What a training of the tiny model reads."""
    way = {"data": "", "folder": "", "size": TINY.image_size, "tokenize": TINY_READS.tokenize}
    return Reading(**{**way, **changes})


def batches_of(
    shards: Sequence[CachedShard], size: int = 8, seed: int = 0, **changes: Any
) -> Batches:
    return Batches(shards, small_reading(**changes), size=size, seed=seed)


def row(number: int, **changes: Any) -> dict[str, Any]:
    """One row of an export."""
    name = list(COLOURS)[number % len(COLOURS)]
    image = np.full((8 + number % 5, 8 + number % 7, 3), COLOURS[name], np.uint8)
    return {
        "uid": hashlib.md5(str(number).encode()).digest(),
        "image": cv2.imencode(".png", image)[1].tobytes(),
        "texts": [caption(f"a {name} thing number {number}")],
        "repeats": 1,
        "loss_weight": 1.0,
        **changes,
    }


def caption(text: str | None) -> dict[str, Any]:
    return {"text": text, "source": "original"}


def write_export(folder: Path, *shards: Sequence[dict[str, Any]]) -> str:
    """FOLDER/out as the export stage leaves it; returns the folder."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    files = []
    for number, rows in enumerate(shards):
        name = f"{number:05d}.parquet"
        schema = SCHEMA
        for column, dtype in MORE.items():
            if any(column in one for one in rows):
                schema = schema.append(pa.field(column, dtype))
        pq.write_table(pa.Table.from_pylist(list(rows), schema), folder / "out" / name)
        data = (folder / "out" / name).read_bytes()
        held = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        files.append({"file": name, "rows": len(rows), **held})
    dataset = {"format": "parquet", "files": files}
    (folder / "out" / "dataset.json").write_text(json.dumps(dataset))
    return str(folder)


@contextmanager
def known_to_open_clip() -> Iterator[str]:
    """The tiny network's name, as if open_clip came with it."""
    import open_clip  # some seconds: not whenever tests are collected

    open_clip.add_model_config(TINY_OPEN_CLIP)
    with pytest.MonkeyPatch.context() as patch:
        here = Path(TINY_OPEN_CLIP).parent
        patch.setattr(open_clip_config, "installed", lambda where="": here)
        yield Path(TINY_OPEN_CLIP).stem


def weights(folder: Path, inside: str = "out") -> bytes:
    """The bytes of the weights that a training stored."""
    return (folder / inside / "model.safetensors").read_bytes()


def write_model(folder: Path, model: str, seed: int) -> Path:
    """FOLDER/out as a training stage leaves it, with the weights of the start."""
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()

    def put(name: str, path: Path) -> None:
        shutil.move(path, folder / "out" / name)

    save(new_model(model, seed), {"seed": seed}, put, folder / "scratch")
    return folder
