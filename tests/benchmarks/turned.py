"""Evaluation pictures behind a turn and a border, found by codes, and by features cut out or not.

    python -m tests.benchmarks.turned RUN POOL

RUN is a finished run of `quickstart` on POOL, the demo's. Evaluation pictures are drawn, turned by
up to 12 degrees, put on a border of 3 to 15 % in one of four colours, and scaled; other rows of the
pool that are no copies show what is found falsely. By the codes of `evaluate.leaks`, and by the
features of `embed.image` with `mask: background` and without.
"""

from pathlib import Path

import cv2
import numpy as np
import polars as pl
from numpy.typing import NDArray

import clipmill
from clipmill.metadata.storage import Storage
from clipmill.stages.models.features import ImageFeatures
from clipmill.stages.models.images import views
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.mask import cut_out
from clipmill.stages.ops.images.turned import apart, codes
from clipmill.stages.ops.tasks import folders
from clipmill.stages.ops.vectors.matrices import unit_rows
from tests.benchmarks.side_by_side import NeedError, begin

TASK_PICTURES, TURNED, OTHERS = 1_500, 300, 1_500
COLOURS = ((255, 255, 255), (0, 0, 0), (200, 40, 40), (120, 180, 240))
BITS = 12, 14, 16, 18, 20
FALSE = (0.005, 0.01, 0.02)  # shares of the other rows that are called copies


def turned(rgb: NDArray[np.uint8], number: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture, turned, with a border, and scaled."""
    colour, (height, width) = COLOURS[number % len(COLOURS)], rgb.shape[:2]
    margin = int((0.15 + rng.uniform(0.03, 0.15)) * max(height, width))
    sides = [margin] * 4
    framed = cv2.copyMakeBorder(rgb, *sides, cv2.BORDER_CONSTANT, value=colour)
    centre = framed.shape[1] / 2, framed.shape[0] / 2
    turn_23 = cv2.getRotationMatrix2D(centre, rng.uniform(-12, 12), 1)
    framed = cv2.warpAffine(framed, turn_23, framed.shape[1::-1], borderValue=colour)
    scale = rng.uniform(0.5, 1.2)
    return cv2.resize(framed, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def main(run: str, pool: str) -> str:
    if not Path(run).is_dir():
        raise NeedError("RUN and POOL of the demo: make demo")
    headlines = []
    rng, tasks = np.random.default_rng(0), Storage(f"{pool}/eval")
    pictures = [
        sample.rgb
        for name in folders.names(tasks)
        for sample in folders.samples(tasks, folders.describe(tasks, name)[0])
    ]
    pictures = [pictures[i] for i in rng.choice(len(pictures), TASK_PICTURES, replace=False)]
    copies = [turned(rgb, number, rng) for number, rgb in enumerate(pictures[:TURNED])]
    rows = clipmill.open(run).table("images", ["image"]).collect().drop_nulls("image")
    truth = pl.read_parquet(Path(pool) / "truth.parquet").filter(~pl.col("eval_near"))
    rows = rows.join(truth, on="uid", how="semi").sample(OTHERS, seed=0)
    others = [decode(body) for body in rows["image"]]
    task_code, *row_codes = codes(pictures), *(codes(part, [0])[:, 0] for part in (copies, others))
    bits_2 = [apart(code, task_code).min(1) for code in row_codes]
    for bits in BITS:
        found, false = ((part <= bits).mean() for part in bits_2)
        headlines.append(f"codes at {bits} bits {found:.2f} ({false:.1%} falsely)")
        print(f"codes, {bits} bits of 192: {found:.3f} found, {false:.1%} falsely", flush=True)
    embed = ImageFeatures("bfloat16")
    for name, of_rows, of_tasks in (
        ("plain", lambda rgb: rgb, lambda rgb: [rgb]),
        ("mask: background", cut_out, views),
    ):
        task_SD = unit_rows(embed([view for rgb in pictures for view in of_tasks(rgb)]))
        near_2 = [
            (unit_rows(embed([of_rows(rgb) for rgb in part])) @ task_SD.T).max(1)
            for part in (copies, others)
        ]
        for false in FALSE:
            cosine = np.quantile(near_2[1], 1 - false)
            found = (near_2[0] >= cosine).mean()
            headlines.append(f"{name} {found:.2f}")
            print(f"{name:18} eval_cosine >= {cosine:.3f}: {found:.3f} found, {false:.1%} falsely")
    return f"found: {headlines[0]}; at 1 % falsely: {headlines[-5]}, {headlines[-2]}"


if __name__ == "__main__":
    begin(main, ("demo/run", "demo/pool"))
