"""annotate.onnx: values as NumPy has them, preprocessing, columns, what a recipe may not say."""

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from PIL import Image

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.verbs.doctor import examine
from clipmill.stages.annotate.onnx import Onnx
from tests.stages.networks import colours, drawn, linear, model_of, pictures, worker, written

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
W = np.arange(12).reshape(4, 3) / 7


def opened(tmp_path, model, **settings):
    file = written(model, tmp_path / "net.onnx")
    return Onnx(file=file, **settings).open(worker(tmp_path))


def test_heads_over_a_stored_embedding_are_numpys(tmp_path):
    row_N4 = np.random.default_rng(0).standard_normal((130, 4), np.float32)
    rows = [None, *row_N4.tolist(), [np.nan] * 4]
    batch = pa.table({"emb": pa.array(rows, pa.list_(pa.float32(), 4))})
    out = opened(tmp_path, linear(W), input="emb", outputs={"y": ("a", "b", "c")})(batch)
    assert out["reason"].to_pylist() == ["no_embedding", *[None] * 130, "not_finite"]
    found_N3 = np.stack([out[name].to_numpy() for name in "abc"], 1)[1:-1]
    np.testing.assert_allclose(found_N3, row_N4 @ W, atol=1e-6)
    assert out["a"].null_count == 2


def test_a_number_past_the_range_of_float32_is_not_finite(tmp_path):
    wide = helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE)
    times = helper.make_node("Mul", ["wide", "large"], ["y"])
    network = model_of([wide, times], {"x": ["n", 1]}, {"y": ["n", 1]}, large=np.array([1e300]))
    network.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    batch = pa.table({"emb": pa.array([[1.0], [0.0]], pa.list_(pa.float32(), 1))})
    out = opened(tmp_path, network, input="emb", outputs={"y": "a"})(batch)
    assert out["reason"].to_pylist() == ["not_finite", None]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_pictures_are_scaled_and_shifted_as_said(tmp_path, layout, fit):
    rgb = [*drawn((40, 60), (60, 40), (9, 9)), None]
    settings = {"side": 12, "fit": fit, "mean": MEAN, "std": STD, "layout": layout}
    outputs = {"mean": {"means": 3}, "most": "most"}
    answer = opened(tmp_path, colours(12, layout), outputs=outputs, **settings)
    out = answer(pictures(rgb)).to_pydict()
    for row, picture in enumerate(rgb[:3]):
        height, width = (12 * n // min(picture.shape[:2]) for n in picture.shape[:2])
        size = (width, height) if fit == "crop" else (12, 12)
        small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
        top, left = ((n - 12) // 2 for n in small.shape[:2])
        x_SS3 = (small[top:, left:][:12, :12] / 255 - MEAN) / STD
        np.testing.assert_allclose(out["means"][row], x_SS3.mean((0, 1)), atol=1e-5)
        np.testing.assert_allclose(out["most"][row], x_SS3.max(), atol=1e-5)
    assert out["reason"] == [None, None, None, "no_image"]
    assert out["means"][3] is out["most"][3] is None


def test_a_network_of_8_bits_reads_the_pixels_as_they_are(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide"], ["y"], axes=(1, 2), keepdims=0),
    ]
    shapes = {"x": ["n", 8, 8, 3]}, {"y": ["n", 3]}
    model = model_of(nodes, *shapes, dtype=TensorProto.UINT8)
    settings = {"side": 8, "layout": "NHWC", "outputs": {"y": ("red", "green", "blue")}}
    out = opened(tmp_path, model, **settings)(pictures([np.full((9, 9, 3), (200, 7, 0), np.uint8)]))
    assert [out[name][0].as_py() for name in ("red", "green", "blue")] == [200, 7, 0]


def test_pictures_of_one_pixel_and_of_one_line_have_values(tmp_path):
    shapes = (1, 1), (1, 20_000), (20_000, 1)
    for fit in ("squash", "crop"):
        answer = opened(tmp_path, colours(8), side=8, fit=fit, outputs={"most": "m"})
        assert answer(pictures(drawn(*shapes)))["m"].null_count == 0


def test_settings_that_do_not_fit_stop_the_plan():
    good = {"file": "net.onnx", "outputs": {"y": "a"}, "side": 8}
    for wrong, do in (
        ({"side": None}, "write side"),
        ({"mean": (0.5,)}, "write mean"),
        ({"std": (1.0, 1.0)}, "write std"),
        ({"outputs": {}}, "write outputs"),
        ({"outputs": {"y": "a", "z": ("b", "a")}}, "each column once"),
    ):
        with pytest.raises(RecipeError, match=do):
            Onnx(**good | wrong)
    with pytest.raises(RecipeError, match="column 'text' is string"):
        Onnx(**good | {"input": "text"}).check({"text": pa.string()})
    with pytest.raises(StageError, match=r"no file 'net.onnx'"):
        Onnx(**good).look()


def test_a_file_of_other_shapes_or_outputs_is_refused_before_any_row(tmp_path):
    with pytest.raises(StageError, match=r"without an output 'z'[\s\S]*it has y"):
        opened(tmp_path, linear(W), input="emb", outputs={"z": "a"})
    with pytest.raises(StageError, match="3 numbers a row, where 1 are named"):
        opened(tmp_path, linear(W), input="emb", outputs={"y": "a"})
    with pytest.raises(StageError, match=r"rows of \(3, 8, 8\)[\s\S]*net.onnx[\s\S]*--onnx FILE"):
        opened(tmp_path, colours(16), side=8, outputs={"most": "a"})
    answer = opened(tmp_path, linear(W), input="emb", outputs={"y": {"a": 3}})
    batch = pa.table({"emb": pa.array([[0.0] * 5], pa.list_(pa.float32(), 5))})
    with pytest.raises(StageError, match=r"rows of \(5\)[\s\S]*net.onnx"):
        answer(batch)


def test_doctor_says_what_a_file_reads_and_writes_the_stages_lines(tmp_path, clipmill):
    head = written(linear(W), tmp_path / "head.onnx")
    net = written(colours(16, "NHWC"), tmp_path / "net.onnx")
    findings = {it.name: it for it in examine([], None, [head, net, "missing.onnx"])}
    assert "reads 'x': 4, writes 'y': 3; " in findings[f"onnx {head}"].found
    assert "rows/s on one thread" in findings[f"onnx {head}"].found
    assert f"file: {head}, input: COLUMN, outputs: {{y: {{y: 3}}}}" in findings[f"onnx {head}"].do
    assert (
        "reads 'x': 16 x 16 x 3, writes 'mean': 3, 'most': 1, 'vector': 768;"
        in findings[f"onnx {net}"].found
    )
    assert "side: 16, layout: NHWC, outputs: {mean: {mean: 3}, most: most, " in (
        findings[f"onnx {net}"].do
    )
    assert findings["onnx missing.onnx"].verdict == "bad"
    assert clipmill("doctor", "--onnx", "missing.onnx").code == 1
