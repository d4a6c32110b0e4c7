"""A GPU's samples a second, MFU and loader headroom, beside open_clip on the same card.

    python -m tests.benchmarks.gpu

ViT-B-32 in bfloat16, 256 pairs a step. Never run by us: no GPU was at hand. Its parts have tests on
a processor: the step in tests/stages/clip/test_loop.py, operations in test_flops.py, open_clip's
loop in tests/benchmarks/train_step.py.
"""

from time import perf_counter

import torch

from clipmill.stages.clip.loop import Execution, Schedule, Trainer
from clipmill.stages.clip.losses import find_loss
from clipmill.stages.clip.named import new_model
from clipmill.stages.clip.training import steps_at_most
from tests.benchmarks.side_by_side import NeedError, begin

NETWORK, ROWS, STEPS, ROUNDS = "ViT-B-32", 256, 10, 5


def main() -> str:
    if not torch.cuda.is_available():
        raise NeedError("a GPU")
    from tests.benchmarks import train_step

    device = "cuda:0"
    print(torch.cuda.get_device_name(device))
    model = new_model(NETWORK, 0).to(device)
    began = perf_counter()
    batches = [train_step.drawn(n, model, ROWS) for n in range(STEPS)]
    drawn_s = (perf_counter() - began) / STEPS
    schedule = Schedule(
        steps=1000,
        learning_rate=5e-4,
        warmup_steps=10,
        weight_decay=0.2,
        precision="bf16",
        max_norm=None,
    )
    trainer = Trainer(model, schedule, find_loss("clip"), Execution(device=device))
    theirs = train_step.Theirs(model, "amp_bf16", device)
    most, steps = steps_at_most(trainer, batches[0]), {}
    for name, learn in (("open_clip", theirs.learn), ("ours", lambda some: each(trainer, some))):
        learn(batches)
        seconds: list[float] = []
        for _ in range(ROUNDS):
            torch.cuda.synchronize()
            began = perf_counter()
            learn(batches)
            torch.cuda.synchronize()
            seconds.append((perf_counter() - began) / STEPS)
        step_s = steps[name] = sorted(seconds)[ROUNDS // 2]
        mfu = f", MFU {1 / step_s / most:.1%}" if most else ""
        print(
            f"{name:<10}{ROWS / step_s:>10,.0f} samples/s{mfu}; a batch is drawn in {drawn_s:.3f} s"
        )
        print(f"{'':<10}the loader is {step_s / drawn_s:.1f} times as fast as the step")
    return f"{steps['open_clip'] / steps['ours']:.2f}x open_clip"


def each(trainer: Trainer, batches: list) -> None:
    for batch in batches:
        trainer.learn(batch)


if __name__ == "__main__":
    begin(main)
