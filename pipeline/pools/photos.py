"""Builds a pool of product photographs, a known share of captions swapped: what can a bench see?

DIR/metadata with pictures, DIR/eval, DIR/truth.parquet, DIR/lists; pool.json last.
"""

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.packages import cached_versions, debian_files
from clipmill.pipeline.pools.build import UNFINISHED, clear, stored_counts
from clipmill.pipeline.pools.chance import Chance, hex_id
from clipmill.pipeline.pools.evaluation import EvaluationSet, write_set
from clipmill.pipeline.pools.truth import write_metadata

LAYOUT = 1  # raise it when the same package would give other rows
PACKAGE = "dataset-fashion-mnist"
TASK = "fashion_mnist"
SIDE_PX, HEADS = 28, (16, 8)  # bytes before the pixels, and before the labels
SWAPPED = 0.2  # of all captions
LISTED = 0, 5, 10  # swapped captions in 100 of a list, in each as many rows
CLASSES = (  # synonyms by label; the first names the class
    ("t-shirt", "tee", "top"),
    ("trousers", "pants", "slacks"),
    ("pullover", "jumper", "sweater"),
    ("dress", "gown", "frock"),
    ("coat", "overcoat", "parka"),
    ("sandal", "flip-flop", "slipper"),
    ("shirt", "blouse", "button-up"),
    ("sneaker", "trainer", "running shoe"),
    ("bag", "handbag", "purse"),
    ("ankle boot", "boot", "bootie"),
)
TEMPLATES = "{c}", "a photo of a {c}", "{c}, front view", "new {c} for sale", "buy this {c} online"
ROWS = pa.schema([("uid", pa.string()), ("image", pa.binary()), ("text", pa.string())])
TRUTH = pa.schema(
    [(name, pa.string()) for name in ("uid", "concept", "text_true", "text_issue")]
    + [("is_good", pa.bool_())]
)


def build_photos(out: Path) -> dict[str, int]:
    """Builds the pool in `out`, unless it is there complete; returns its counts."""
    facts: dict[str, Any] = {"kind": "photos", "layout": LAYOUT}
    if stored := stored_counts(out, facts):
        return stored
    files = debian_files(PACKAGE, lambda path: path.endswith("-ubyte.gz"))
    try:
        photos, test = (list(_labelled(files, part)) for part in ("train", "t10k"))
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise StageError(
            found=f"no pictures with labels: {error}",
            where=f"package {PACKAGE}",
            do="look into it: its layout may have changed",
        ) from error
    clear(out)
    rows = sorted((_row(n, *photo) for n, photo in enumerate(photos)), key=lambda row: row["draw"])
    write_metadata(rows, out / "metadata", ROWS)
    rows_by_uid = sorted(rows, key=lambda row: row["uid"])
    pq.write_table(pa.Table.from_pylist(rows_by_uid, TRUTH), out / "truth.parquet")
    uids = [row["uid"] for row in rows]
    swapped = sum(not row["is_good"] for row in rows)
    (out / "lists").mkdir(exist_ok=True)
    for percent in LISTED:  # the last of the swapped rows, which come first, for others' first
        count = round((len(uids) - swapped) * percent / 100)
        listed = uids[swapped - count : swapped] + uids[swapped + count :]
        (out / "lists" / f"swapped_{percent}.txt").write_text("\n".join(listed) + "\n")
    images = {f"{number:05d}": png for number, (png, _) in enumerate(test)}
    labels = {f"{number:05d}": label for number, (_, label) in enumerate(test)}
    names = [synonyms[0] for synonyms in CLASSES]
    write_set(EvaluationSet(TASK, images, labels, names, templates=TEMPLATES), out / "eval")
    counts = {"rows": len(rows), "good": len(rows) - swapped, "tasks": len(test)}
    facts |= {"packages": cached_versions([PACKAGE]), "counts": counts}
    (out / "pool.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / UNFINISHED).unlink()
    return counts


def _labelled(files: Mapping[str, bytes], part: str) -> Iterator[tuple[bytes, int]]:
    """Yields pictures as PNG with their label, 0 to 9."""
    by_name = {path.rpartition("/")[2]: gzip.decompress(file) for path, file in files.items()}
    names = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
    pixels, labels = (by_name[name][head:] for name, head in zip(names, HEADS, strict=True))
    pictures = np.frombuffer(pixels, np.uint8).reshape(len(labels), SIDE_PX, SIDE_PX)
    for picture, label in zip(pictures, labels, strict=True):
        png = io.BytesIO()
        Image.fromarray(picture).save(png, "PNG")
        yield png.getvalue(), label


def _row(number: int, png: bytes, label: int) -> dict[str, Any]:
    chance = Chance(0, PACKAGE, str(number))
    draw = chance.u("swapped")
    shown = label
    if draw < SWAPPED:
        shown = (label + chance.between("other", 1, len(CLASSES) - 1)) % len(CLASSES)
    template = chance.pick("template", TEMPLATES)
    text, true = (
        template.format(c=chance.pick("synonym", CLASSES[which])) for which in (shown, label)
    )
    return {
        "uid": hex_id(PACKAGE, str(number)),
        "image": png,
        "text": text,
        "draw": draw,
        "concept": CLASSES[label][0],
        "text_true": true,
        "text_issue": "swapped" if shown != label else None,
        "is_good": shown == label,
    }
