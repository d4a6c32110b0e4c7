"""A batch in pieces: the whole batch's loss and gradients, with less memory, and no batch norm."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.loop import Execution, Schedule, Trainer, text_pieces
from clipmill.stages.clip.losses import find_loss
from clipmill.stages.towers.nano import Nano
from tests.stages.clip import rank_of_training
from tests.stages.clip.exported import TINY
from tests.stages.clip.rank_of_training import trained
from tests.stages.clip.tiny_vit import TinyViT, drawn

pytestmark = pytest.mark.usefixtures("open_clip")
SCHEDULE = Schedule(
    steps=9, learning_rate=1e-3, warmup_steps=1, weight_decay=0.1, precision="float64"
)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        *(("vit", "negatives"), ("vit", "multi_positive")),
        *(("locked", "intra_modal"), ("patches", "a_clip")),
    ],
)
def test_pieces_give_what_the_whole_batch_gives(model, loss, monkeypatch):
    monkeypatch.setattr(rank_of_training, "STEPS", 5)
    whole, pieces = trained(model, loss), trained(model, loss, accumulate=5)  # of 12 rows: ragged
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-9, atol=1e-9, msg=name)


class Alive(TorchDispatchMode):
    """The most bytes of results that stand at a time."""

    held = most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.held += tensor.nbytes
                self.most = max(self.most, self.held)
                weakref.finalize(tensor, self.free, tensor.nbytes)
        return out

    def free(self, size: int) -> None:
        self.held -= size


def held_bytes(accumulate: int) -> int:
    trainer = Trainer(TinyViT(), SCHEDULE, find_loss("clip"), Execution(accumulate=accumulate))
    batch = drawn(0, rows=64)
    with Alive() as alive:
        image_ND, text_ND = trainer.embed(batch)
        (image_ND.sum() + text_ND.sum()).backward()
    return alive.most


def test_memory_is_that_of_a_piece():
    assert held_bytes(8) < held_bytes(1) / 5


def test_texts_are_cut_between_texts():
    tokens, starts = torch.arange(10), torch.tensor([0, 3, 3, 7])  # the second is empty
    cut = text_pieces(tokens, starts, 2)
    assert [(some.tolist(), begin.tolist()) for some, begin in cut] == [
        ([0, 1, 2], [0, 3]),
        ([3, 4, 5, 6, 7, 8, 9], [0, 4]),
    ]


def test_batch_norm_is_refused():
    with pytest.raises(StageError, match="batch norm") as error:
        Trainer(Nano(TINY), SCHEDULE, execution=Execution(accumulate=2))
    assert "accumulate: 1" in error.value.args[2]
