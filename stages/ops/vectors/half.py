"""Chooses the arithmetic that stands for bfloat16 on a device."""

import torch


def half(device: str) -> torch.dtype:
    """Returns the type that stands for bfloat16: float32 on a processor that has none.

    There bfloat16 takes 10 to 20 times as long.

    Source: oneDNN's own answer: x86 has it from AVX-512 on, Arm from its BF16 extension on.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bf16 else torch.float32
