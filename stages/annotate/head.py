"""Scores stored embeddings by a published head: aesthetics, or how unsafe a picture is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import IMAGE_EMBEDDING, PUNSAFE, REASON, REASON_TYPE, Column
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import NonEmpty, RowFunction, RowStage, Worker
from clipmill.stages.models.network_file import (
    TO_ONNX,
    from_bytes,
    look_at,
    named_weights,
    open_network,
)
from clipmill.stages.ops.vectors.matrices import as_matrix, blocks, unit_rows

# Shapes: N rows of a batch, D width of an embedding.

AESTHETIC = Column("aesthetic", pa.float32(), "about 1 to 10", "Predicted rating.", better="high")
ROWS = 256  # of a call of layers
OPSET, IR = 13, 8  # versions of ONNX that each onnxruntime of ours reads
NO_VECTOR = "zero_or_nan_embedding"
Preset = Literal["aesthetic-v1", "aesthetic-v2", "laion-nsfw", "datacomp-nsfw"]
Layer = tuple[NDArray[np.float64], NDArray[np.float64]]  # weight, outputs by inputs, and bias
Score = Callable[[NDArray[np.float32]], NDArray[np.floating]]  # (N, D) unit rows to (N,)


@dataclass(frozen=True)
class Published:
    """A published head: its column, the embeddings it reads, and its layers, if they are known."""

    column: Column
    reads: Mapping[int, str]  # width of the embedding to the model that gives it
    widths: tuple[int, ...] = ()  # of what follows the embedding; empty: only its file says them
    is_affine: bool = False  # no activation between layers: one product with one vector


L14, B32 = {768: "CLIP ViT-L/14"}, {512: "CLIP ViT-B/32"}
PRESETS: dict[Preset, Published] = {
    "aesthetic-v1": Published(AESTHETIC, L14 | B32, (1,), is_affine=True),
    "aesthetic-v2": Published(AESTHETIC, L14, (1024, 128, 64, 16, 1), is_affine=True),
    "laion-nsfw": Published(PUNSAFE, L14 | B32),
    "datacomp-nsfw": Published(PUNSAFE, L14, (64, 512, 256, 1)),
}


@dataclass(frozen=True, kw_only=True)
class Head(RowStage):
    """Score of the embedding at length 1: `aesthetic`, about 1 to 10, or `punsafe`, 0 to 1.

    Null without an embedding, or where it is zero or NaN.

    Source: LAION's aesthetic predictors v1 (one linear layer) and v2 (five without activation,
    hence one affine map), its CLIP-based NSFW detector (as ONNX: its layers are in its Keras file
    alone); DataComp's image-NSFW head (Gadre et al. 2023): batch norm, three ReLU layers, sigmoid.
    Error: 1e-6 against float64. Aesthetics are not bounded.
    Example: {after: [ingest.image_folder, annotate.onnx], preset: aesthetic-v2, file: v2.pth}
    """

    preset: Preset  # whose head: LAION's usual cuts are aesthetic >= 5 and punsafe <= 0.5
    file: NonEmpty  # its weights as published: .pth, .pt or .safetensors; or the head as .onnx

    version = 3
    determinism = "exact"
    reads = (IMAGE_EMBEDDING,)
    reasons = ("no_embedding", NO_VECTOR)

    @property
    def published(self) -> Published:
        return PRESETS[self.preset]

    @property
    def writes(self) -> tuple[Column, ...]:
        return (self.published.column,)

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        found = types[IMAGE_EMBEDDING.name]
        if pa.types.is_fixed_size_list(found) and found.list_size not in self.published.reads:
            models = " or ".join(f"{name}'s, {n} wide" for n, name in self.published.reads.items())
            do = "embed by that model, or bind its column by `read`"
            raise RecipeError(
                f"vectors {found.list_size} wide: {self.preset} reads {models}",
                "`image_embedding`",
                do,
            )

    def look(self) -> None:
        look_at(self.file)

    def open(self, worker: Worker) -> RowFunction:
        score = self.score(worker)
        return lambda batch: scored(batch, score, self.published.column.name)

    def score(self, worker: Worker) -> Score:
        """Opens the file; raises StageError where it is another head's."""
        if self.file.endswith(".onnx"):
            network = open_network(self.file, worker)
            self.fit("an input", (network.input.shape[-1] or 0,), ())
        else:
            weights, sha256 = named_weights(self.file)
            worker.pin(redacted(self.file), sha256)
            if not self.published.widths:
                raise StageError(f"{self.preset} comes as Keras, or as ONNX", self.file, TO_ONNX)
            stack = layers(weights, self.file)
            widths = (stack[0][0].shape[1], *(len(bias_D) for _, bias_D in stack))
            self.fit("layers", widths, self.published.widths)
            if self.published.is_affine:
                return affine(stack)
            network = from_bytes(rectified(stack), self.file, worker)
            network.rows = ROWS
        output = network.outputs[0].name
        return lambda unit_ND: network(unit_ND, [output])[0].reshape(-1)

    def fit(self, what: str, found: tuple[int, ...], after: tuple[int, ...]) -> None:
        """Raises StageError where widths are not the preset's: the embedding's, and those after."""
        options = [(width, *after) for width in self.published.reads]
        if found not in options:
            said, *wanted = ("-".join(map(str, widths)) for widths in (found, *options))
            raise StageError(
                found=f"{what} of {said}: {self.preset} has {' or '.join(wanted)}",
                where=redacted(self.file),
                do=f"give the file that was published as {self.preset}, or name its own preset",
            )


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


def affine(stack: list[Layer]) -> Score:
    """Returns layers without activation as one product: W2 (W1 x + b1) + b2 = (W2 W1) x + …"""
    weight_DD, bias_D = stack[0]
    for next_DD, next_D in stack[1:]:
        weight_DD, bias_D = next_DD @ weight_DD, next_DD @ bias_D + next_D

    def score(unit_ND: NDArray[np.float32]) -> NDArray[np.floating]:
        if len(unit_ND) and unit_ND.shape[1] != weight_DD.shape[1]:
            found = f"vectors {unit_ND.shape[1]} wide: the head reads {weight_DD.shape[1]}"
            do = "embed by the head's own model, or bind its column by `read`"
            raise StageError(found, "`image_embedding`", do)
        dot_N = np.empty(len(unit_ND))
        for part in blocks(len(unit_ND)):
            dot_N[part] = np.vecdot(unit_ND[part].astype(np.float64), weight_DD[0])
        return dot_N + bias_D[0]

    return score


def rectified(stack: list[Layer]) -> bytes:
    """Returns layers with ReLU between them, and a sigmoid at the end, as an ONNX file."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, values, last = [], [], "x0"
    for n, (weight_DD, bias_D) in enumerate(stack):
        names = f"weight{n}", f"bias{n}"
        values.append(numpy_helper.from_array(weight_DD.astype(np.float32), names[0]))
        values.append(numpy_helper.from_array(bias_D.astype(np.float32), names[1]))
        kind = "Relu" if n + 1 < len(stack) else "Sigmoid"
        nodes.append(helper.make_node("Gemm", [last, *names], [f"y{n}"], transB=1))
        nodes.append(helper.make_node(kind, [f"y{n}"], [last := f"x{n + 1}"]))
    width = stack[0][0].shape[1]
    vector = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["rows", width])
    chance = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["rows", 1])
    graph = helper.make_graph(nodes, "head", [vector], [chance], values)
    opsets = [helper.make_opsetid("", OPSET)]
    body: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR).SerializeToString()
    return body


def scored(batch: pa.Table, score: Score, name: str) -> pa.Table:
    """Returns the score of every row, or a reason."""
    given = batch[IMAGE_EMBEDDING.name]
    unit_ND = unit_rows(as_matrix(given))
    usable_N = np.isfinite(unit_ND[:, :1]).any(axis=1)  # a row is NaN whole
    score_N = np.full(len(batch), np.nan, np.float32)
    score_N[usable_N] = score(unit_ND if usable_N.all() else unit_ND[usable_N])
    known = pa.array(score_N, mask=np.isnan(score_N))
    lost = pc.if_else(given.is_null(), *Head.reasons)
    reason = pc.if_else(known.is_null(), lost, pa.scalar(None, pa.string()))
    return pa.table({name: known, REASON.name: reason.cast(REASON_TYPE)})
