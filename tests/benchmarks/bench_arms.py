"""A bench of n arms against n times one training and one evaluation of the same sizes.

    python -m tests.benchmarks.bench_arms [SAMPLES]

The one is the stages' own code without an engine, on the pictures that the bench has decoded; it
runs twice. The bench is `clipmill bench` whole, in this process: rows exported, decoded and
compared with the tasks, arms written, the estimate's few steps, trainings, evaluations and the
leaderboard. Three arms are the fewest: raw and chance beside the one that is asked for. Start-up is
apart: that of a bench that finds all done. Both train one seed in one worker, and must end at the
same bytes and scores. SAMPLES are seen by each training: 19,200 where nothing is said.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from time import perf_counter

from pipeline.cli import main as clipmill
from pipeline.dataset import Inputs
from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import load_recipe
from pipeline.pools.generated import generated_drawings
from tests.benchmarks.null_experiments import write_rows, write_tasks
from tests.memory import MemoryContext
from tests.pipeline.bench.conftest import run_over

SIZES, ROWS, BATCH = (3, 4, 8), 2000, 64
STAGES = """
pool: {uses: ingest.image_folder, path: none}
look: {uses: annotate.image, from: pool}
some: {uses: select.where, from: look, top: {column: sharpness, fraction: 0.5}}
"""
Spent = tuple[float, float]  # seconds of processor, and of the clock


def spent(work: Callable[[], object]) -> Spent:
    """Of this process and of those that it has ended."""
    before = sum(os.times()[:4]), perf_counter()
    work()
    return sum(os.times()[:4]) - before[0], perf_counter() - before[1]


def benched(place: Path, out: Path, arms: int, samples: int) -> None:
    """Raw, as many rows by chance, and one select, trained at so many rates that all are `arms`."""
    again = [("--arm", f"at_{n}=some,learning_rate={1e-3 + n * 1e-4:.4f}") for n in range(arms - 3)]
    settings = (f"samples_seen={samples}", f"batch_size={BATCH}", "warmup_steps=10")
    sets = [("--set", one) for one in settings]
    more = [word for pair in (*again, *sets) for word in pair]
    asked = (f"some={place}/run:some", "--tasks", f"{place}/tasks", "--seeds", "1", *more)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        assert clipmill(["bench", *asked, "--out", str(out), "--workers", "0"]) == 0


def alone(out: Path, folder: Path) -> None:
    """The bench's training and evaluation of `some`, by the stages alone."""
    stages = make_plan(load_recipe(str(out / "bench.yaml"))).stages
    (pixels,) = out.glob("stages/pixels-*")
    trained = MemoryContext(folder / "some")
    stages["some"].stage.run(Inputs(rows=[], data=str(pixels)), trained)
    scored = MemoryContext(folder / "scores")
    stages["some_scores"].stage.run(Inputs(rows=[], model=trained.folder), scored)


def result(trained: Path, scored: Path) -> tuple[bytes, object]:
    """Weights and metrics."""
    models = json.loads((scored / "out" / "results.json").read_text())["models"]
    return (trained / "out" / "model.safetensors").read_bytes(), models[0]["tasks"]


def line(place: Path, arms: int, samples: int) -> None:
    """Seconds of a bench, and their ratio to those of one, which is taken twice."""
    out, folders = place / f"bench-{arms}", [place / f"alone-{arms}-{n}" for n in range(2)]
    for export in place.glob("run/stages/export_*"):
        export.rename(place / f"export-{arms}")  # so that this bench makes its own
    whole = spent(lambda: benched(place, out, arms, samples))
    ones = [spent(lambda to=folder: alone(out, to)) for folder in folders]
    (trained,), (scored,) = out.glob("stages/some-*"), out.glob("stages/some_scores-*")
    for folder in folders:
        found = result(folder / "some", folder / "scores")
        assert found == result(trained, scored), "a fast wrong answer is no result"
    words = [f"{arms} arms"]
    for name, of, each in zip(("processor", "clock"), whole, zip(*ones, strict=True), strict=True):
        low, high = (of / (arms * one) for one in (max(each), min(each)))
        words.append(f"{name} {of:.1f} s, {arms * sum(each) / 2:.1f} s, {low:.2f} to {high:.2f}x")
    again = [sys.executable, "-m", "pipeline.cli", "bench", "--out", str(out), "--workers", "0"]
    start, _ = spent(lambda: subprocess.run(again, check=True, capture_output=True))
    print("; ".join([*words, f"start-up and a bench that is done {start:.1f} s"]), flush=True)


def main() -> None:
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 19_200
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        drawings = generated_drawings(ROWS, seed=1)
        write_rows(place / "pool", drawings, [row.words["en"].label for row in drawings])
        write_tasks(place / "tasks")
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            run_over(place / "pool", place / "run", STAGES)
        benched(place, place / "first", SIZES[0], BATCH * 20)  # imports all
        print(f"{samples:,} samples a training, {ROWS:,} rows, two tasks of 400 pictures")
        print("a bench, n of a training and its evaluation alone, ratio:")
        for arms in SIZES:
            line(place, arms, samples)


if __name__ == "__main__":
    main()
