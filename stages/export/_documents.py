"""Stores what stands beside the files of an export: its summary, its cards, and rows' places."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.datacard import documents
from clipmill.metadata.places import places_name
from clipmill.pipeline.dataset import Context, Task


def describe(
    ctx: Context,
    layout: str,
    counts: dict[str, int],
    columns: list[list[str]],
    files: list[dict[str, Any]],
    **about: Any,
) -> None:
    """Stores the documents of an export whose files are stored; `about` has optional entries."""
    made = {"name": ctx.worker.stage, "format": layout, "seed": ctx.worker.seed, "counts": counts}
    ctx.map(put_documents, [{**made, "columns": columns, "files": files, **about}])


def put_documents(summary: dict[str, Any], task: Task) -> dict[str, int]:
    """Stores data card, Croissant metadata, and last, when all its files exist, dataset.json."""
    for name, text in documents(summary).items():
        path = task.worker.scratch / name
        path.write_text(text, encoding="utf-8")
        task.put_file(path.name, path)
    return summary["counts"]


def put_places(file: str, places_N2: NDArray[np.int32], task: Task) -> None:
    """Stores shard and position of the file's rows beside it."""
    path = task.worker.scratch / "places.npy"
    np.save(path, places_N2)
    task.put_file(places_name(file), path)
