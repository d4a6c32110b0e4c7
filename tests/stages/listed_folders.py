"""Folders named and laid out as DataComp's own, with a few pictures each."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.stages.task_folders import NAMES, picture, write_tar

TEMPLATE = "zeroshot_classification_templates.txt"


def grouped(folder: Path, classes: int, columns: list[list[int]], labels: list[int]) -> None:
    """A classification task whose KEY.npy holds a row of numbers."""
    (folder / "test").mkdir(parents=True)
    names = [*NAMES, *(f"other {n}" for n in range(classes - len(NAMES)))]
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    (folder / TEMPLATE).write_text("{c}\n")
    (folder / "test" / "nshards.txt").write_text("1\n")
    members = {}
    for i, (row, label) in enumerate(zip(columns, labels, strict=True)):
        numbers = io.BytesIO()
        np.save(numbers, np.array(row))
        members |= {f"s{i:07d}.png": picture(i), f"s{i:07d}.cls": str(label).encode()}
        members[f"s{i:07d}.npy"] = numbers.getvalue()
    write_tar(folder / "test" / "0.tar", members)


def captioned(folder: Path, count: int) -> None:
    """A retrieval task as the `datasets` library writes it."""
    (folder / "test").mkdir(parents=True)
    rows = {
        "image": [{"bytes": picture(i), "path": None} for i in range(count)],
        "caption": [[NAMES[i % 5], f"a {NAMES[i % 5]}"] for i in range(count)],
    }
    pq.write_table(pa.table(rows), folder / "test" / "0.parquet")


def paired(folder: Path, rows: list[tuple[int, str, str]]) -> None:
    """A task of pairs: picture, caption and pattern of each row."""
    (folder / "test").mkdir(parents=True)
    pictures, captions, patterns = zip(*rows, strict=True)
    images = [{"bytes": picture(n), "path": None} for n in pictures]
    table = pa.table({"image": images, "caption": captions, "pattern": patterns})
    pq.write_table(table, folder / "test" / "0.parquet")


def associated(folder: Path, instances: list[tuple[str, list[int], list[int]]]) -> None:
    """WinoGAViL as the `datasets` library writes it: cue, candidates, those that belong to it."""
    (folder / "test").mkdir(parents=True)
    rows = {
        "cue": [cue for cue, _, _ in instances],
        "candidates": [[f"p{n}" for n in shown] for _, shown, _ in instances],
        "candidate_images": [
            [{"bytes": picture(n), "path": None} for n in shown] for _, shown, _ in instances
        ],
        "associations": [[f"p{n}" for n in right] for _, _, right in instances],
    }
    pq.write_table(pa.table(rows), folder / "test" / "0.parquet")
