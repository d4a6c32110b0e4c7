"""Trains one seed from data to files, in one process or as a rank of several."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.fingerprint import digest, settings_of
from clipmill.pipeline import own_code
from clipmill.pipeline.dataset import Put, Rank, Task
from clipmill.pipeline.errors import StageError

if TYPE_CHECKING:
    from clipmill.stages.clip.batch import Batch, Source
    from clipmill.stages.clip.distributed import Ranks
    from clipmill.stages.clip.loop import Trainer
    from clipmill.stages.clip.start import Start

CURVE = "loss.parquet"


@dataclass(frozen=True, kw_only=True)
class Work:
    """The input that all trainings of a stage share; sent to the workers."""

    settings: Any  # ClipTraining: no stage is imported here
    reader: str  # `readers.` and the name of its file
    reading: Any  # a Reading
    prepared: list[dict[str, Any]]  # exported files, as the reader's `prepare` returns them
    facts: dict[str, Any]  # of the rows, for the card
    samples: int = 0  # of the export: all of its sample_index are below
    start: Any = None  # a Start; None for weights by chance

    def prefix(self, seed: int) -> str:
        """Returns the prefix of a seed's file names; empty if there is one seed."""
        return f"seed-{seed}." if len(self.settings.seeds) > 1 else ""

    def key(self, seed: int, device: str) -> str:
        """Returns a digest of all that decides the weights: rows, settings, seed, versions, device.

        CPUs are left out, and nano has no versions: it keeps the keys of the first stored runs.
        """
        import torch

        from clipmill.stages.clip.named import versions_of

        # Other seeds and snapshots change no weight of this seed. The facts have the digests of a
        # subset's rows and of a start: which file or stage they come from does not matter.
        start = self.start and "stage:any"
        alone = replace(self.settings, seeds=(seed,), subset=None, snapshots=1, start=start)
        kind = torch.device(device).type
        versions = [self.settings.version, torch.__version__, *versions_of(alone.fixed.model)]
        versions += [kind] if kind != "cpu" else []
        return digest([self.facts, settings_of(alone) | dict(alone.digests), versions])

    def snapshots(self, seed: int, task: Task) -> list[tuple[str, str, int]]:
        """Returns key, prefix and steps of each model of a seed; the whole training's is last."""
        count, steps, name = self.settings.snapshots, self.settings.fixed.steps, self.prefix(seed)
        key = self.key(task.worker.seed + seed, task.worker.device)
        early = [(100 * n // count, steps * n // count) for n in range(1, count)]
        marks = [(digest([key, percent]), f"{name}at-{percent}.", step) for percent, step in early]
        return [*marks, (key, name, steps)]


def train_alone(work: Work, seed: int, task: Task) -> dict[str, Any]:
    """Trains a seed unless the run has it already; returns its steps and last loss."""
    from clipmill.stages.clip.distributed import ALONE

    return _trained(work, seed, task, ALONE)


def train_rank(work: Work, seed: int, rank: Rank, task: Task) -> dict[str, Any]:
    """Trains a seed as one of several ranks; rank 0 decides if the others train, and stores."""
    from clipmill.stages.clip.distributed import together

    with together(rank, task.worker.device) as ranks:
        return _trained(work, seed, task, ranks)


def _trained(work: Work, seed: int, task: Task, ranks: "Ranks") -> dict[str, Any]:
    # By `any` rank 0 tells the others: true where it makes a model, false where that is stored.
    result: dict[str, Any] = {}
    has_begun = False

    def make(steps: int, put: Put) -> Mapping[str, Any]:
        nonlocal has_begun
        has_begun = ranks.any(True)
        return _train(work, seed, steps, task, ranks, put)

    for key, prefix, steps in work.snapshots(seed, task):
        if ranks.rank:
            begins = ranks.any(False)
            result = dict(_train(work, seed, steps, task, ranks)) if begins else {}
            continue
        has_begun = False
        result = task.once(key, partial(make, steps), prefix)
        if not has_begun:
            ranks.any(False)
    return result


def _train(
    work: Work, seed: int, until: int, task: Task, ranks: "Ranks", put: Put | None = None
) -> Mapping[str, Any]:
    """Trains `until` a step, from the newest checkpoint on; with a `put`, stores model, card and,
    of a whole training, the loss curve."""
    import torch

    from clipmill.stages.clip.loop import train
    from clipmill.stages.clip.saving import restore, save, store
    from clipmill.stages.clip.telemetry import Log, read_lines, store_events, store_lines

    settings, worker, name = work.settings, task.worker, work.prefix(seed)
    seed += worker.seed
    torch.set_num_threads(1)  # for equal bits; readers decode on the other cores
    new = partial(trainer_of, settings, seed, worker.device, ranks, work.start, work.samples)
    trainer = new()
    checkpoints = task.checkpoints(work.key(seed, worker.device)[:16])
    restore(trainer, checkpoints)
    if trainer.step > until:  # a later snapshot's: its files are there, and this one's are lost
        trainer = new()
    fixed = settings.fixed
    reader: Any = own_code.load(work.reader, "key `data`")
    way = {"seed": seed, "threads": settings.readers, "trainer": trainer}
    batches: Source = reader.batches(work.reading, work.prepared, size=fixed.batch_size, **way)
    log = Log(
        steps=fixed.steps,
        batch_size=fixed.batch_size,
        tell=worker.tell,
        lines=read_lines(work.reading.folder, name),
        step=trainer.step,
    )
    if torch.device(worker.device).type == "cuda" and trainer.step < fixed.steps:
        first = batches.of_rank(trainer.step, ranks.rank, ranks.of)
        log.at_most_per_s = steps_at_most(trainer, first)

    def keep_log() -> None:
        store_lines(log.lines, work.reading.folder, name)
        if settings.tensorboard:
            store_events(log.lines, work.reading.folder, name, worker.scratch)

    def keep(trainer: "Trainer") -> None:
        if ranks.rank == 0:
            store(trainer, checkpoints, worker.scratch)
            keep_log()

    with closing(batches):
        train(trainer, batches, worker.stage, settings.checkpoint_steps, keep, log, until)
    refuse_broken(trainer, worker.stage)
    is_whole = until == fixed.steps
    if not is_whole:
        keep(trainer)
    if put is not None:
        keep_log()
        path = worker.scratch / CURVE
        pq.write_table(curve(trainer, fixed.batch_size), path)
        if is_whole:
            put(CURVE, path)
        card = {"scale": settings.scale, "seed": seed, "batch_size": fixed.batch_size}
        card |= {} if settings.loss == "clip" else {"loss": settings.loss}
        card |= {} if trainer.replaced is None else {"replaced": trainer.replaced}
        card |= {} if is_whole else {"samples_seen": until * fixed.batch_size}
        plan = {"plan": asdict(trainer.schedule)}
        save(trainer.model, card | plan | work.facts, put, worker.scratch)
        if trainer.average is not None:
            card["average"] = settings.average
            averaged: Any = trainer.average.module
            below = lambda name, path: put(f"average/{name}", path)  # noqa: E731
            save(averaged, card | plan | work.facts, below, worker.scratch)
    return {"steps": trainer.step, "loss": trainer.losses[-1] if trainer.step else None}


def refuse_broken(trainer: "Trainer", stage: str) -> None:
    """Checks that all weights are finite, as no loss follows the last step; raises StageError."""
    import torch

    for name, tensor in trainer.model.network.state_dict().items():
        if not torch.isfinite(tensor).all():
            found = f"'{name}' holds NaN or infinite values after step {trainer.step}, the last"
            do = "lower `learning_rate`, or raise `warmup_steps`"
            raise StageError(found, f"stage '{stage}'", do)


def trainer_of(
    settings: Any,
    seed: int,
    device: str,
    ranks: "Ranks",
    start: "Start | None" = None,
    samples: int = 0,  # of the export
) -> "Trainer":
    """Builds the trainer of a stage's settings, before its first step."""
    from clipmill.stages.clip.loop import Execution, Schedule, Trainer
    from clipmill.stages.clip.losses import find_loss, state_of
    from clipmill.stages.clip.named import new_model
    from clipmill.stages.clip.patches import drop_patches
    from clipmill.stages.clip.start import load_start, lock, shares_of

    fixed, declared = settings.fixed, settings.declared
    names = [field.name for field in fields(Schedule) if field.name != "precision"]
    constants = {name: getattr(fixed, name) for name in names}
    schedule = Schedule(precision=settings.precision, **constants)
    own = ("accumulate", "compile", "tile", "checkpoint_activations")
    ways = {name: getattr(settings, name) for name in own}
    execution = Execution(ranks=ranks, device=device, **ways)
    initial = {"scale": declared.scale, "bias": declared.bias}
    model = new_model(fixed.model, seed, settings.context_length, **initial)
    if start is not None:
        load_start(model, start)
    shares = None if settings.layer_decay is None else shares_of(model, settings.layer_decay)
    if settings.lock != "none":
        lock(model, settings.lock, settings.unlock_groups)
    if settings.patch_dropout is not None:
        steps = round(fixed.steps * settings.patch_dropout_until)
        drop_patches(model.network, settings.patch_dropout, steps, seed)
    model = model.to(device)
    loss = find_loss(settings.loss, settings.loss_settings)
    sizes = {"samples": samples, "width": model.width}
    state = state_of(settings.loss, declared.settings, **sizes, seed=seed)
    if state is not None:
        state.to(device)
    return Trainer(model, schedule, loss, execution, settings.average, shares, state)


def curve(trainer: "Trainer", batch_size: int) -> pa.Table:
    """Returns a row a step: samples seen before it, its loss, learning rate, and scale after it."""
    steps = range(trainer.step)
    return pa.table(
        {
            "step": pa.array(steps, pa.int32()),
            "samples_seen": pa.array([step * batch_size for step in steps], pa.int64()),
            "loss": pa.array(trainer.losses, pa.float64()),
            "learning_rate": pa.array([trainer.rate(step) for step in steps], pa.float64()),
            "scale": pa.array(trainer.scales, pa.float64()),
        }
    )


# Dense bfloat16 operations a second, by how words of torch's name of the device end: L4, not L40.
# Source: NVIDIA's data sheets, without sparsity; the first that fits counts.
PEAKS = {
    "B200": 2.25e15,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


def steps_at_most(trainer: "Trainer", batch: "Batch") -> float | None:
    """Returns steps a second at the device's peak; None in float32 and on devices not in PEAKS."""
    import torch

    device = torch.device(trainer.execution.device)
    if device.type != "cuda" or trainer.schedule.precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device).replace("-", " ") + " "
    peak = next((peak for part, peak in PEAKS.items() if f"{part} " in name), None)
    return peak / flops_of_step(trainer, batch) if peak else None


def flops_of_step(trainer: "Trainer", batch: "Batch") -> int:
    """Counts the operations of both towers, forward and backward; a multiply-add counts two.

    Changes no weight. Recomputation by pieces and checkpoints does not count, nor does the loss,
    whose share is small.
    """
    from torch.utils.flop_counter import FlopCounterMode

    trainer.model.eval()  # batch norms then update no statistics and wait for no other rank
    with FlopCounterMode(display=False) as counted:
        image_ND, text_MD = trainer.embed(batch)
        (image_ND.sum() + text_MD.sum()).backward()
    trainer.optimiser.zero_grad()
    return counted.get_total_flops()


TEXT = "a drawing of a small red house beside a tree"
MOST_PIXELS = 400_000  # of a probe's batch: 64 rows of nano's, 7 of 224 pixels a side
PLAIN: dict[str, Any] = {"sampling": None, "super_batch": 5, "reference_loss": None}
PLAIN |= {"concept_gain": "diversity", "loss": "clip", "loss_settings": None, "compile": False}
STEPS = 5  # the first one, which allocates memory, does not count


def probed(settings: Any) -> tuple[float, float]:
    """Returns seconds per row of a training step, and seconds of embedding one picture.

    Error: on one core and noise, no decoding, no loader, no other process; assumes that all steps
    cost the same, CLIP's loss, one view, and no super-batch.
    """
    import torch

    from clipmill.stages.clip.batch import Batch
    from clipmill.stages.clip.distributed import ALONE

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = trainer_of(replace(settings, **PLAIN), 0, "cpu", ALONE)
        model, side = trainer.model, trainer.model.image_size
        rows = max(2, min(64, settings.batch_size, MOST_PIXELS // side**2))
        noise = np.random.default_rng(0).integers(0, 256, (rows, 3, side, side), np.uint8)
        tokens, starts = model.tokenize([TEXT] * rows)
        each, ones = np.arange(rows), np.ones(rows, np.float32)
        texts: dict[str, Any] = {"tokens": tokens, "starts": starts[:-1], "image_of": each}
        batch = Batch(pixels=noise, weights=ones, rows=each, index=each, **texts)
        steps = [_seconds(partial(trainer.learn, batch)) for _ in range(STEPS)]
        model.eval()
        with torch.inference_mode():  # as evaluation does, in float32
            embedding = _seconds(partial(model.embed_images, torch.from_numpy(noise)))
        return median(steps[1:]) / rows, embedding / rows
    finally:
        torch.set_num_threads(before)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
