"""What trainings answer where nothing differs, and where a third of the captions are swapped.

    python -m tests.benchmarks.null_experiments [full]    a short training of each; full: twenty

For experiments in which nothing differs (tests/pipeline/ledger/test_null_experiments.py). Two
subsets of 2,000 drawings, alike but for a third of the captions, which are swapped in one; 20 seeds
of each, 80 steps of 64 pairs at the nano scale; top 5 of some 100 concepts, and retrieval, of 400
other drawings.

With `full` it writes tests/pipeline/ledger/null_seeds.json: of each model whether each item is a
hit, as bits in hex. Killed and run again it goes on where it was; about 8 CPU-minutes.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.proof.measured import terms
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.drawing import Drawing
from clipmill.pipeline.pools.evaluation import EvaluationSet, write_set
from clipmill.pipeline.pools.generated import generated_drawings
from clipmill.pipeline.pools.picture import encode, picture_of
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import RunState
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import scratch

FOLDER = Path(tempfile.gettempdir(), "clipmill-null-experiments")
STORED = Path(__file__).parents[1] / "pipeline" / "ledger" / "null_seeds.json"
ROWS, ITEMS, SEEDS, STEPS, BATCH, SWAPPED = 2000, 400, 20, 80, 64, 1 / 3
FEW_STEPS = 30
TELLING = {"concepts": "acc5", "drawings": "image_retrieval_recall@5"}


def main(seeds: int) -> str:
    if seeds == SEEDS:
        told = trained_both(FOLDER, seeds)
        STORED.write_text(json.dumps(told, indent=0))
        print(STORED)
    else:
        with scratch() as folder:
            told = trained_both(folder, seeds)
    assert all(len(models) == seeds for models in told.values())
    share = {
        arm: np.mean([int(bits, 16).bit_count() / ITEMS for of in models for bits in of.values()])
        for arm, models in told.items()
    }
    return f"{share['plain']:.0%} of items hit, {share['swapped']:.0%} of swapped captions"


def trained_both(folder: Path, seeds: int) -> dict[str, list[dict[str, str]]]:
    """The hits of each seed, of both subsets."""
    if not (folder / "tasks").exists():
        write_tasks(folder / "tasks")
    rows = generated_drawings(ROWS, seed=1)
    captions = [row.words["en"].label for row in rows]
    for arm, texts in (("plain", captions), ("swapped", swapped(captions))):
        if not (folder / arm / "metadata.jsonl").exists():
            write_rows(folder / arm, rows, texts)
    state = trained(folder, seeds)
    return {arm: hits(state, arm) for arm in ("plain", "swapped")}


def swapped(captions: list[str]) -> list[str]:
    """A third of the captions each in the place of the next one of that third."""
    chosen = [n for n in range(len(captions)) if Chance(1, "swapped", str(n)).u("coin") < SWAPPED]
    told = list(captions)
    for here, there in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        told[here] = captions[there]
    return told


def picture(drawing: Drawing) -> bytes:
    """A PNG of 64 pixels, on white."""
    return encode(picture_of(drawing, 64), "png", "", 0)


def write_rows(folder: Path, rows: list[Drawing], captions: list[str]) -> None:
    folder.mkdir(parents=True)
    for row in rows:
        (folder / f"{row.key}.png").write_bytes(picture(row))
    lines = [
        json.dumps({"file_name": f"{row.key}.png", "text": text})
        for row, text in zip(rows, captions, strict=True)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def write_tasks(folder: Path) -> None:
    every = generated_drawings(ITEMS, seed=2)
    images = {drawing.key: picture(drawing) for drawing in every}
    concepts = sorted({drawing.concept for drawing in every})
    labels = {drawing.key: concepts.index(drawing.concept) for drawing in every}
    captions = {drawing.key: (drawing.words["en"].label,) for drawing in every}
    write_set(EvaluationSet("drawings", images, captions=captions), folder)
    write_set(EvaluationSet("concepts", images, labels, concepts), folder)


def trained(folder: Path, seeds: int) -> RunState:
    stages = {}
    for arm in ("plain", "swapped"):
        stages |= {
            f"{arm}_pool": {"uses": "ingest.image_folder", "path": str(folder / arm)},
            arm: {"uses": "export.parquet", "from": f"{arm}_pool"},
            f"{arm}_models": {
                "uses": "train.clip",
                "data": arm,
                "samples_seen": (STEPS if seeds == SEEDS else FEW_STEPS) * BATCH,
                "batch_size": BATCH,
                "warmup_steps": 10,
                "seeds": list(range(seeds)),
            },
            f"{arm}_scores": {
                "uses": "evaluate.zero_shot",
                "model": f"stage:{arm}_models",
                "tasks": str(folder / "tasks"),
            },
        }
    recipe = Recipe(name="null", path="null.yaml", seed=0, stages=stages)
    executor = LocalExecutor(2)
    try:
        outcome = run_plan(make_plan(recipe), Storage(str(folder / "run")), executor, Lines())
    finally:
        executor.close()
    assert outcome.complete, outcome.stopped
    return outcome.state


def hits(state: RunState, arm: str) -> list[dict[str, str]]:
    """Of each seed and task, the items' bits in hex, the first item first."""
    held = Outputs(state.stages[f"{arm}_scores"].folder)
    models = json.loads(held.read("results.json"))["models"]
    found = []
    for seed, model in enumerate(models):
        told, file = {}, f"seed-{seed}." if len(models) > 1 else ""
        for task, metric in TELLING.items():
            ranks = pq.read_table(pa.BufferReader(held.read(f"{file}{task}.parquet")))
            of = terms(metric, model["tasks"][task]["metrics"][metric], ranks)
            assert of is not None
            told[task] = np.packbits(of.value_K > 0).tobytes().hex()
        found.append(told)
    return found


if __name__ == "__main__":
    begin(main, quick=(1,), full=(SEEDS,))
