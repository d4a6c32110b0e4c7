"""Every loss: processes, tiles, gradients by small differences, and what is kept for backward."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.losses import (
    clip,
    cloob,
    cwcl,
    distill,
    intra_modal,
    mod_x,
    multi_positive,
    multi_sigmoid,
    negatives,
    siglip,
)
from tests.stages.losses.batches import drawn, gradients, parameters, split, with_parameters

LOSSES = {
    "clip": clip.loss,
    "smoothed": partial(clip.loss, smoothing=0.1),
    "cwcl": cwcl.loss,
    "cloob": cloob.loss,
    "mod_x": partial(mod_x.loss, images="image_a", texts="text_a", alpha=0.5),
    "negatives": partial(negatives.loss, w_own=0.5, w_margin=2.0, margin=0.4),
    "intra_modal": partial(intra_modal.loss, w_image=0.5, w_text=2.0),
    "siglip": siglip.loss,
    "multi_positive": multi_positive.loss,
    "multi_sigmoid": multi_sigmoid.loss,
    "distill": partial(
        distill.loss,
        images=("image_a", "image_b"),
        texts=("text_a", "text_b"),
        scales=(7.0, 6.0),
        w_clip=0.25,
        w_distill=0.75,
        temperature=2.0,
    ),
}
BY_TILES = ("clip", "smoothed", "siglip")
same = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def batch_for(name: str, rows: int, **more) -> Embedded:
    return drawn(rows, several=name.startswith("multi"), **more)


@pytest.mark.parametrize(("tile", "sizes"), [(None, [4, 2, 5]), (4, [11]), (3, [4, 2, 5])])
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_and_processes_change_neither_value_nor_gradient(name, tile, sizes):
    plain = batch_for(name, 11)
    expected = LOSSES[name](plain)
    tiled = batch_for(name, 11, tile=tile)
    ours = torch.cat([LOSSES[name](part) for part in split(tiled, sizes)])
    same(ours, expected)
    slope_N = torch.linspace(0.5, 2, 11, dtype=torch.float64)  # as `loss_weight` would
    same(gradients(ours, tiled, slope_N), gradients(expected, plain, slope_N))


@pytest.mark.parametrize("tile", [1, 10, 11, 100])
@pytest.mark.parametrize("name", BY_TILES)
def test_any_tile_is_the_whole(name, tile):
    """In one process both directions of clip's loss come of one pass over the tiles."""
    plain, tiled = batch_for(name, 11), batch_for(name, 11, tile=tile)
    ours, expected = LOSSES[name](tiled), LOSSES[name](plain)
    same(ours, expected)
    same(gradients(ours, tiled), gradients(expected, plain))


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_small_differences(name, tile):
    batch = batch_for(name, 3, scale=2.0, tile=tile)

    def at(*these: Tensor) -> Tensor:
        return LOSSES[name](with_parameters(batch, *these))

    assert torch.autograd.gradcheck(at, parameters(batch), fast_mode=tile is not None)


@pytest.mark.parametrize("name", LOSSES)
def test_in_float32_at_scale_100_tiles_are_within_2e_5(name):
    plain, tiled = (
        LOSSES[name](batch_for(name, 64, scale=100.0, dtype=torch.float32, tile=tile))
        for tile in (None, 24)
    )
    torch.testing.assert_close(tiled, plain, rtol=2e-5, atol=2e-5)


class Largest(TorchDispatchMode):
    """The number of values of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.values = max(self.values, tensor.numel())
        return out


def memory(name: str, rows: int, ranks: int, tile: int | None) -> tuple[int, int]:
    """Of one of `ranks` processes: bytes kept for backward beside the batch, and the values of the
    largest tensor that stood at any time."""
    batch = batch_for(name, rows * ranks, tile=tile)
    part = split(batch, [rows] * ranks)[-1] if ranks > 1 else batch
    given = [*parameters(batch), batch.image_of_H, part.row_N]
    there = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with Largest() as largest, saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_N = LOSSES[name](part)
        loss_N.sum().backward()
    return sum(len(kept[at]) for at in kept.keys() - there), largest.values


@pytest.mark.parametrize("rows", [16, 32, 64])
@pytest.mark.parametrize("name", BY_TILES)
def test_memory_is_linear_in_rows_and_tile_and_flat_in_the_processes(name, rows):
    for ranks in (1, 2, 4):
        for tile in (16, 8):
            kept, largest = memory(name, rows, ranks, tile)
            assert kept <= 4 * 8 * rows  # at most four float64 a row, whatever tile and ranks
            assert largest == rows * max(tile, 6 * ranks)  # logits, or all vectors, 6 wide
    kept, largest = memory(name, rows, 4, None)
    assert kept >= 8 * rows * 4 * rows
    assert largest == rows * 4 * rows
