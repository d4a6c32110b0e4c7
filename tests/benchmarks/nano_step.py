"""A nano step of losses, two views, edited texts and batches by loss; and of A-CLIP beside CLIP.

    python -m tests.benchmarks.nano_step [full | WAY ...]

256 pairs of an export of 1,280, one thread, CPU time; a step draws its batch and learns from it.
Each way against CLIP's loss in the same rounds, and milliseconds of the loss alone, forward and
backward. `multi_` losses have five texts a row. A-CLIP is beside `vit`, on train_step's ViT.
"""

import json
import tempfile
from pathlib import Path
from statistics import median
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
from tests.benchmarks.train_step import NETWORKS, TEXT
from tests.stages.clip.exported import caption, row, write_export

PAIRS, ROWS, ROUNDS = 256, 1280, 7
SIGLIP = {"loss": "siglip"}
JEST = {**SIGLIP, "sampling": "jest", "reference_loss": "easy"}
VIT = {"model": "vit.json"}
WAYS: dict[str, dict[str, Any]] = {
    "clip": {},
    "image_views": {"loss": "intra_modal", "image_views": 2},
    "text_views": {"loss": "intra_modal", "text_views": 2},
    "synonyms": {"synonyms": "words.txt"},
    "tempnet": {"loss": "tempnet"},
    "mlcd": {"loss": "mlcd", "loss_settings": {"centres": 10_000}},
    "siglip": SIGLIP,
    "jest": JEST,
    "multi_positive": {"loss": "multi_positive"},
    "multi_sigmoid": {"loss": "multi_sigmoid"},
    "average": {"average": 0.999},
    "distill": {"loss": "distill", "loss_settings": {"images": ["vector"], "texts": ["vector"]}},
    "vit": VIT,
    "a_clip": {
        **VIT,
        "loss": "a_clip",
        "image_views": 2,
        "average": 0.996,
        "patch_dropout": 0.5,
    },
}


def main(*names: str) -> str:
    torch.set_num_threads(1)
    numbers = np.random.default_rng(0).integers(0, 10_000, (ROWS, 8)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        vectors = np.random.default_rng(1).normal(size=(ROWS, 512)).tolist()
        rows = [
            row(i, easy=0.5, nearest_clusters=numbers[i], vector=vectors[i]) for i in range(ROWS)
        ]
        one = write_export(Path(folder, "export"), rows)
        texts = [caption(f"a thing of {n} sides, and {n} more") for n in range(5)]
        five = write_export(Path(folder, "five"), [{**plain, "texts": texts} for plain in rows])
        network = {"embed_dim": 128, "vision_cfg": NETWORKS["ViT"], "text_cfg": TEXT}
        Path(folder, VIT["model"]).write_text(json.dumps(network))
        runs = {
            name: step(name, five if name.startswith("multi") else one, Path(folder))
            for name in ("clip", *names)
        }
        ratios = side_by_side(PAIRS, rounds=ROUNDS, clock=process_time, **runs)
    return ", ".join(f"{name} {ratios[name]}" for name in names)


def step(name: str, data: str, folder: Path) -> Any:
    """A step of a training, its cache below the folder; prints the cost of its loss."""
    way = {**WAYS[name]}
    if "model" in way:
        way["model"] = str(folder / way["model"])
    settings = ClipTraining(batch_size=PAIRS, **way)
    model, declared = reads(settings.fixed.model), settings.declared
    reading = Reading(
        data=data,
        folder=str(folder / name),
        size=model.image_size,
        tokenize=model.tokenize,
        texts=declared.texts if declared.texts != "one" else "uniform",
        teacher=declared.teacher,
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
    batch = source.of_rank(trainer.step, 0, 1)
    image_ND, text_MD = (part.detach().requires_grad_() for part in trainer.embed(batch))
    spent = []
    for _ in range(ROUNDS):
        start = process_time()
        trainer.loss_of(trainer.embedded(image_ND, text_MD, batch)).sum().backward()
        spent.append(process_time() - start)
    print(f"{name:<18}{1000 * median(spent):>12.1f} ms of loss", flush=True)
    return learn


if __name__ == "__main__":
    begin(main, quick=("tempnet",), full=tuple(name for name in WAYS if name != "clip"))
