"""An evaluation in name only: it stores the result that its settings say."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage


@dataclass(frozen=True, kw_only=True)
class Grade(DatasetStage):
    """results.json, in the form of evaluate.zero_shot, with one accuracy a model; and the ranks of
    so many pictures, of which the first ones are hits.

    Error: none.
    """

    model: str
    acc1: tuple[float, ...]
    pictures: int = 0
    chance: float = 0.05
    first: int = 0  # seed; the others follow
    seed: int | None = None  # of all, where nobody numbers them

    version = 1
    determinism = "exact"
    takes = ("rows", "model")
    gives = ("data",)
    artifacts = (("results", "results.json"),)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.map(partial(store, self), [0])


def graded(settings, seed, acc1):
    found = {"value": acc1, "low": acc1 - 0.1, "high": acc1 + 0.1, "chance": settings.chance}
    task = {"kind": "classification", "metrics": {"acc1": found, "acc5": None}}
    if settings.pictures:
        task |= {"classes": 20, "pictures": settings.pictures}
    told = seed if settings.seed is None else settings.seed
    card = f"out/seed-{seed}.model.json"
    return {"card": card, "model": f"of {seed}", "seed": told, "tasks": {"flags": task}}


def store(settings, item, task):
    seeds = dict(enumerate(settings.acc1, settings.first))
    models = [graded(settings, seed, value) for seed, value in seeds.items()]
    pictures = range(settings.pictures)
    with TemporaryDirectory(dir=task.worker.scratch) as folder:
        for seed, value in seeds.items() if pictures else ():
            path = Path(folder, f"seed-{seed}.flags.parquet")
            rank = [int(n >= value * len(pictures)) for n in pictures]
            pq.write_table(pa.table({"rank": rank, "label": [n % 20 for n in pictures]}), path)
            task.put_file(path.name, path)
        path = Path(folder, "results.json")
        path.write_text(json.dumps({"models": models}))
        task.put_file("results.json", path)
    return {}
