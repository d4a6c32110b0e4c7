"""Small networks as ONNX files, and pictures as a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

from clipmill.pipeline.stage import Worker
from clipmill.stages.ops.images.pixels import PIXELS


def model_of(
    nodes: list,
    inputs: dict[str, list],
    outputs: dict[str, list],
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
    **constants: Any,
) -> onnx.ModelProto:
    """A network of these nodes; a size is a number, or the name of one that varies."""
    values = [
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in it.items()]
        for it, kind in ((inputs, dtype), (outputs, TensorProto.FLOAT))
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    domains = {"", *(node.domain for node in nodes)}
    opsets = [helper.make_opsetid(domain, opset if not domain else 1) for domain in domains]
    graph = helper.make_graph(nodes, "small", *values, weights)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def linear(weight_DK: np.ndarray, opset: int = 17, rows: str | int = "rows") -> onnx.ModelProto:
    """x @ weight, as `y`."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    shapes = [rows, weight_DK.shape[0]], [rows, weight_DK.shape[1]]
    return model_of([node], {"x": shapes[0]}, {"y": shapes[1]}, opset, w=np.float32(weight_DK))


def colours(side: int | str = "side", layout: str = "NCHW") -> onnx.ModelProto:
    """The mean of each colour, as `mean`; the greatest of all values, as `most`; `mean` again and
    again, as wide as CLIP's embeddings, as `vector`."""
    axes = (2, 3) if layout == "NCHW" else (1, 2)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("ReduceMax", ["x"], ["most"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Tile", ["mean", "times"], ["vector"]),
    ]
    shape = ["rows", 3, side, side] if layout == "NCHW" else ["rows", side, side, 3]
    outputs = {"mean": ["rows", 3], "most": ["rows"], "vector": ["rows", 768]}
    return model_of(nodes, {"x": shape}, outputs, times=np.array([1, 256]))


def marks() -> onnx.ModelProto:
    """The means of red and green, in the place of a watermark detector's two outputs."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=(2, 3), keepdims=0),
        helper.make_node("Slice", ["mean", "start", "end", "axis"], ["y"]),
    ]
    places = {name: np.array([n]) for name, n in (("start", 0), ("end", 2), ("axis", 1))}
    return model_of(nodes, {"x": ["rows", 3, 256, 256]}, {"y": ["rows", 2]}, **places)


def written(model: onnx.ModelProto, path: Path) -> str:
    path.write_bytes(model.SerializeToString())
    return str(path)


def worker(tmp_path: Path, **more: Any) -> Worker:
    given = {"seed": 0, "stage": "look", "device": "cpu", "threads": 1, "scratch": tmp_path}
    return Worker(**given | more)


def pictures(rgb: list[np.ndarray | None]) -> pa.Table:
    """A batch of decoded pictures."""
    rows = [
        None
        if one is None
        else {"height": one.shape[0], "width": one.shape[1], "rgb": one.tobytes()}
        for one in rgb
    ]
    uid = [bytes([n % 256]) * 16 for n in range(len(rgb))]
    return pa.table({"uid": uid, PIXELS.name: pa.array(rows, PIXELS.dtype)})


def drawn(*shapes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
