"""Contrastive losses by tiles against the plain form: peak memory, and time forward and backward.

    python -m tests.benchmarks.tiled_loss [full | PAIRS ...]    2,048; full: 1,024 to 4,096

Pairs 512 wide in float32, tiles of 512. Values and gradients are held equal first. A peak is what a
process of its own grows by, from the vectors made to the gradients there.
"""

import sys
from functools import partial
from time import process_time

import torch
from torch import Tensor

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.clip.whole_batch import whole
from clipmill.stages.losses import clip, siglip
from tests.benchmarks.side_by_side import begin, side_by_side
from tests.benchmarks.toy import module, peak_mb

LOSSES = {"clip": clip.loss, "siglip": siglip.loss}
WIDTH, TILE = 512, 512
WAYS = {"plain": None, "tiled": TILE}


def main(*sizes: int) -> str:
    torch.set_num_threads(1)
    found = {}
    for name in LOSSES:
        for rows in sizes:
            peaks = {way: module("tests.benchmarks.tiled_loss", name, rows, way) for way in WAYS}
            said = ", ".join(f"{peak:.0f} MB {way}" for way, peak in peaks.items())
            print(f"{name}, {rows} pairs: {said}")
            batches = {way: drawn(rows, tile) for way, tile in WAYS.items()}
            plain, tiled = (learn(name, batch) for batch in batches.values())
            for one, other in zip(tiled, plain, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            runs = {way: partial(learn, name, batch) for way, batch in batches.items()}
            ratios = side_by_side(rows, rounds=5, clock=process_time, **runs)
            found[name] = (
                f"{name} {peaks['tiled']:.0f} MB of {peaks['plain']:.0f}, {ratios['tiled']}"
            )
    return "; ".join(found.values())


def drawn(rows: int, tile: int | None) -> Embedded:
    """Pairs half alike, as after some training."""
    generator = torch.Generator().manual_seed(0)
    image_ND = torch.randn(rows, WIDTH, generator=generator)
    text_ND = image_ND + torch.randn(rows, WIDTH, generator=generator)
    image_ND, text_ND = (
        torch.nn.functional.normalize(it, dim=1).requires_grad_() for it in (image_ND, text_ND)
    )
    scale = torch.tensor(1 / 0.07, requires_grad=True)
    return whole(image_ND, text_ND, scale, bias=torch.tensor(-10.0), tile=tile)


def learn(name: str, batch: Embedded) -> tuple[Tensor, ...]:
    """The loss of every pair, and the gradients of its mean."""
    loss_N = LOSSES[name](batch)
    inputs = (batch.image_ND, batch.text_MD, batch.scale)
    return loss_N.detach(), *torch.autograd.grad(loss_N.mean(), inputs)


def grown(name: str, rows: int, way: str) -> float:
    """MB that a process grows by."""
    torch.set_num_threads(1)
    learn(name, drawn(8, WAYS[way]))  # what torch loads for itself
    batch = drawn(rows, WAYS[way])
    before = peak_mb()
    learn(name, batch)
    return peak_mb() - before


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(grown(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
    else:
        begin(main, quick=(2048,), full=(1024, 2048, 4096))
