"""The steps a second that a GPU could do, were all of its arithmetic used: MFU is a share of it."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from clipmill.stages.clip.loader import Batch
from clipmill.stages.clip.loop import Trainer

# Dense bfloat16 operations a second, by a part of the name that torch gives the device.
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


def steps_at_most(trainer: Trainer, batch: Batch) -> float | None:
    """Steps a second of this rank's device; None of a processor, of a device that is not in the
    table, and in float32, for which it holds no figures."""
    device = torch.device(trainer.means.device)
    if device.type != "cuda" or trainer.schedule.precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    return peak / flops_of_step(trainer, batch) if peak else None


def flops_of_step(trainer: Trainer, batch: Batch) -> int:
    """Operations of both towers, forward and backward, a multiplication and its sum being two.

    Nothing is learnt. What pieces and checkpoints compute a second time does not count, nor does
    the loss, whose share is small.
    """
    trainer.model.eval()  # a batch norm then notes nothing, and waits for no other rank
    with FlopCounterMode(display=False) as counted:
        image_ND, text_MD = trainer.embed(batch)
        (image_ND.sum() + text_MD.sum()).backward()
    trainer.optimiser.zero_grad()
    return counted.get_total_flops()
