"""Reads weights as their authors published them: .pth, .pt, .bin and .safetensors, never code."""

import hashlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.keys import redacted
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.extras import missing
from clipmill.stages.models.onnx_file import read

Layer = tuple[NDArray[np.float64], NDArray[np.float64]]  # weight, outputs by inputs, and bias


def named_weights(uri: str) -> tuple[dict[str, NDArray[Any]], str]:
    """Returns the tensors of a file by name, in its order, and the file's digest."""
    body = read(uri)
    try:
        if uri.endswith(".safetensors"):
            from safetensors.numpy import load

            weights = load(body)
        else:
            import torch

            found = torch.load(BytesIO(body), map_location="cpu", weights_only=True)
            weights = {name: tensor.float().numpy() for name, tensor in found.items()}
    except ModuleNotFoundError as error:
        raise missing(error.name, redacted(uri)) from None
    except Exception as error:  # on bytes of others, unpicklers raise anything
        words = str(error).partition("\n")[0] or type(error).__name__
        do = "give a .safetensors, or a .pth of weights alone: torch.save(model.state_dict(), FILE)"
        raise StageError(f"no file of weights: {words[:200]}", redacted(uri), do) from None
    return weights, hashlib.sha256(body).hexdigest()


def layers(weights: dict[str, NDArray[Any]], uri: str) -> list[Layer]:
    """Returns the linear layers, each after the one whose outputs it reads; a batch norm without
    eps before the first is folded into it. Raises StageError where there are none.
    """
    if lost := [name for name, value in weights.items() if not np.isfinite(value).all()]:
        raise StageError(f"{lost[0]!r} is not finite", redacted(uri), "copy the file again")
    wide = {name: value.astype(np.float64) for name, value in weights.items()}
    by_input = {
        value.shape[1]: (value, wide.get(name.removesuffix("weight") + "bias", np.empty(0)))
        for name, value in wide.items()
        if value.ndim == 2
    }
    stack: list[Layer] = []
    first = by_input.keys() - {len(weight_DD) for weight_DD, _ in by_input.values()}
    width = first.pop() if len(first) == 1 else 0
    while width in by_input:
        stack.append(by_input.pop(width))
        width = len(stack[-1][0])
    if by_input or not stack or any(len(w) != len(b) for w, b in stack):
        do = "give the file as it was published"
        raise StageError(f"no chain of linear layers: {', '.join(weights)}", redacted(uri), do)
    for norm in (name.removesuffix("running_mean") for name in wide if "running_mean" in name):
        gain_D = wide[f"{norm}weight"] / np.sqrt(wide[f"{norm}running_var"])
        shift_D = wide[f"{norm}bias"] - wide[f"{norm}running_mean"] * gain_D
        weight_DD, bias_D = stack[0]
        stack[0] = weight_DD * gain_D, bias_D + weight_DD @ shift_D
    return stack
