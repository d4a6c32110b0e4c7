"""A small pool to export: every third row dropped, some without image or caption."""

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, KEEP, TEXT, UID, URL
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Inputs
from clipmill.stages.export.webdataset import WebDataset


def images(rows: int) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3), np.uint8)
    return [
        cv2.imencode((".jpg", ".png", ".webp")[i % 3], image)[1].tobytes()
        for i, image in enumerate(pixels)
    ]


@pytest.fixture(scope="session")
def datasets():
    """The package. Its import takes seconds: those of no test."""
    return pytest.importorskip("datasets")


@pytest.fixture(scope="session")
def pool() -> pa.Table:
    """240 rows; 160 are kept, of which 8 have no image and 7 no caption."""
    number = range(240)
    uids = [np.random.default_rng(i).bytes(16) for i in number]
    bodies = [None if i % 20 == 1 else body for i, body in enumerate(images(240))]
    return pa.table(
        {
            "uid": pa.array(uids, UID.dtype),
            "image": pa.array(bodies, IMAGE.dtype),
            "image_bytes": pa.array([body and len(body) for body in bodies], IMAGE_BYTES.dtype),
            "text": pa.array([None if i % 20 == 7 else f"caption {i}" for i in number], TEXT.dtype),
            "keep": pa.array([i % 3 > 0 if i % 6 else None for i in number], KEEP.dtype),
            "url": pa.array([f"http://a.test/{i}" for i in number], URL.dtype),
            "language": pa.array(["en", "de"] * 120).dictionary_encode(),
            "score": pa.array([float("nan") if i == 2 else i / 240 for i in number], pa.float32()),
        }
    )


@pytest.fixture(scope="session")
def leaving(pool) -> pa.Table:
    """Those of its rows that an export of images takes, in the pool's order."""
    rows = pool.filter(pool["keep"].fill_null(False))
    rows = rows.filter(rows["image"].is_valid())
    return rows.filter(rows["text"].is_valid())


@pytest.fixture
def made(pool, memory_shards, memory_context):
    """The folder of an export of the pool in three shards, of another where `data` says so."""

    def make(stage, data="", pool=pool) -> Path:
        rows = memory_shards(pool[:70], pool[70:75], pool[75:])
        repeats = pa.array(np.arange(240) % 3, pa.int32())
        if isinstance(stage, WebDataset):
            whole = pool.append_column("repeats", repeats)
            rows = memory_shards(whole[:70], whole[70:])
        ctx = memory_context()
        stage.run(Inputs(rows=[] if data else rows, data=str(data)), ctx)
        names = [path.name for path in ctx.out.rglob("*") if path.is_file()]
        manifest = {"shards": 0, "rows": 0, "inputs": "", "outputs": [[name, 0] for name in names]}
        Storage(ctx.folder).put("manifest.json", json.dumps(manifest).encode(), "manifest")
        return Path(ctx.folder)

    return make
