"""Evaluation tasks as the pools write them, to be spoilt."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np

from clipmill.pipeline.pools.evaluation import EvaluationSet, write_set
from clipmill.stages.ops.tasks.check import check

NAMES = ["red", "green", "blue", "grey", "white"]
COLOURS = [(0, 0, 255), (0, 255, 0), (255, 0, 0), (99, 99, 99), (255, 255, 255)]


def picture(number: int) -> bytes:
    return encoded(number, ".png")


def encoded(number: int, suffix: str, transposed: bool = False) -> bytes:
    image = np.full((9, 12, 3), COLOURS[number % 5], np.uint8)
    image[number % 9] = 0
    image = image.transpose(1, 0, 2) if transposed else image
    return cv2.imencode(suffix, np.ascontiguousarray(image))[1].tobytes()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def write_tasks(folder: Path) -> None:
    """Two good tasks: `colours`, 20 pictures of 5 classes, and `words`, 7 with two captions."""
    images = {f"{i:02d}": picture(i) for i in range(20)}
    classes = {key: int(key) % 5 for key in images}
    write_set(EvaluationSet("colours", images, classes, NAMES), folder)
    some = dict(list(images.items())[:7])
    captions = {key: [f"{NAMES[int(key) % 5]} {key}", f"thing {key}"] for key in some}
    write_set(EvaluationSet("words", some, captions=captions), folder)
    assert check(str(folder)) == []
