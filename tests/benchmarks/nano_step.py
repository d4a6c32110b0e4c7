"""A nano step of each loss that keeps something, of two views, edited texts and batches by loss.

    python -m tests.benchmarks.nano_step [full | WAY ...]

256 pairs of an export of 1,280, one thread, CPU time; a step draws its batch and learns from it.
Each way against CLIP's loss in the same rounds.
"""

import tempfile
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch

from clipmill.pipeline import own_code
from clipmill.stages.clip.batch import Reading
from clipmill.stages.clip.distributed import ALONE
from clipmill.stages.clip.named import reads
from clipmill.stages.clip.training import trainer_of
from clipmill.stages.readers._edits import Edits
from clipmill.stages.train.clip import ClipTraining
from tests.benchmarks.side_by_side import begin, side_by_side
from tests.stages.clip.exported import row, write_export

PAIRS, ROWS, ROUNDS = 256, 1280, 7
SIGLIP = {"loss": "siglip"}
JEST = {**SIGLIP, "sampling": "jest", "reference_loss": "easy"}
WAYS: dict[str, dict[str, Any]] = {
    "clip": {},
    "image_views": {"loss": "intra_modal", "image_views": 2},
    "text_views": {"loss": "intra_modal", "text_views": 2},
    "synonyms": {"synonyms": "words.txt"},
    "tempnet": {"loss": "tempnet"},
    "mlcd": {"loss": "mlcd", "loss_settings": {"centres": 10_000}},
    "siglip": SIGLIP,
    "jest": JEST,
}


def main(*names: str) -> str:
    torch.set_num_threads(1)
    numbers = np.random.default_rng(0).integers(0, 10_000, (ROWS, 8)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(i, easy=0.5, nearest_clusters=numbers[i]) for i in range(ROWS)]
        data = write_export(Path(folder, "export"), rows)
        runs = {name: step(name, data, f"{folder}/{name}") for name in ("clip", *names)}
        ratios = side_by_side(PAIRS, rounds=ROUNDS, clock=process_time, **runs)
    return ", ".join(f"{name} {ratios[name]}" for name in names)


def step(name: str, data: str, folder: str) -> Any:
    """A step of a training, its cache below the folder."""
    way, model = WAYS[name], reads("nano")
    settings = ClipTraining(batch_size=PAIRS, **way)
    reading = Reading(
        data=data,
        folder=folder,
        size=model.image_size,
        tokenize=model.tokenize,
        teacher=settings.declared.teacher,
        super_batch=settings.super_batch,
        reference=settings.reference_loss,
        image_views=settings.image_views,
        text_views=settings.text_views,
        edits=Edits({"thing": ("matter", "object")}) if settings.synonyms else None,
    )
    reader = own_code.load("readers.jest" if name == "jest" else "readers.cached", name)
    said: Any = reader.prepare(reading, {"file": "00000.parquet", "first": 0}, None)
    trainer = trainer_of(settings, 0, "cpu", ALONE, samples=ROWS)
    source = reader.batches(reading, [said], size=PAIRS, seed=0, threads=1, trainer=trainer)

    def learn() -> None:
        trainer.learn(source.of_rank(trainer.step, 0, 1))

    learn()  # the first one allocates
    return learn


if __name__ == "__main__":
    begin(main, quick=("tempnet",), full=tuple(name for name in WAYS if name != "clip"))
