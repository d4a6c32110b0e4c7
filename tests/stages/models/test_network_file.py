"""ONNX files: what is refused, with what to do; batches of one shape."""

import numpy as np
import onnx
import pytest
from onnx import helper

from clipmill.pipeline.errors import StageError
from clipmill.stages.models import network_file
from clipmill.stages.models.network_file import open_network
from tests.stages.networks import linear, model_of, worker, written

W = np.arange(6).reshape(3, 2)


def test_rows_are_padded_to_one_shape_and_come_out_alone(tmp_path, monkeypatch):
    network = open_network(written(linear(W), tmp_path / "w.onnx"), worker(tmp_path))
    monkeypatch.setattr(network, "rows", 4)
    shapes = []
    run = network._run
    monkeypatch.setattr(network, "_run", lambda x, names: shapes.append(x.shape) or run(x, names))
    row_N3 = np.random.default_rng(0).random((6, 3), np.float32)
    np.testing.assert_allclose(network(row_N3, ["y"])[0], row_N3 @ W, rtol=1e-6)
    assert shapes == [(4, 3), (4, 3)]
    assert len(network(row_N3[:0], ["y"])[0]) == 0


def test_a_file_of_a_fixed_batch_is_called_with_that_many(tmp_path):
    network = open_network(written(linear(W, rows=5), tmp_path / "w.onnx"), worker(tmp_path))
    row_N3 = np.random.default_rng(0).random((7, 3), np.float32)
    np.testing.assert_allclose(network(row_N3, ["y"])[0], row_N3 @ W, rtol=1e-6)


def test_the_digest_is_of_the_bytes_that_run(tmp_path):
    pinned = []
    file = written(linear(W), tmp_path / "w.onnx")
    at_work = worker(tmp_path, pin=lambda *it: pinned.append(it))
    assert pinned == [(file, open_network(file, at_work).sha256)] or len(pinned) == 1
    other = open_network(written(linear(W + 1), tmp_path / "w.onnx"), at_work)
    assert [what for what, _ in pinned] == [file, file]
    assert pinned[0][1] != pinned[1][1] == other.sha256


def test_what_cannot_run_is_refused_with_what_to_do(tmp_path):
    def of(model) -> bytes:
        return model.SerializeToString()

    own = helper.make_node("Foo", ["x"], ["y"], domain="my.ops")
    two = helper.make_node("Add", ["x", "z"], ["y"])
    shapes = {"x": ["n", 3]}, {"y": ["n", 3]}
    external = tmp_path / "apart.onnx"
    onnx.save_model(
        linear(W), external, save_as_external_data=True, size_threshold=0, location="apart.bin"
    )
    cases = {
        "lower opset_version": of(linear(W, opset=99)),
        "without custom operators": of(model_of([own], *shapes)),
        "save it as one file": external.read_bytes(),
        "a network of one input": of(model_of([two], shapes[0] | {"z": ["n", 3]}, shapes[1])),
        "python -m tf2onnx.convert": b"\x89HDF\r\n\x1a\n" + bytes(99),
        "copy it again": of(linear(W))[:-9],
    }
    for do, body in cases.items():
        file = tmp_path / "net.onnx"
        file.write_bytes(body)
        with pytest.raises(StageError) as error:
            open_network(str(file), worker(tmp_path))
        assert do in error.value.args[2], error.value
        assert "net.onnx" in str(error.value)
        assert "onnxruntime_src" not in str(error.value)


def test_a_file_past_what_a_protobuf_holds_is_refused_unread(tmp_path):
    file = tmp_path / "large.onnx"
    with file.open("wb") as sparse:
        sparse.truncate(4 * 2**30)
    with pytest.raises(StageError, match=r"4.0 GiB, an ONNX file less than 2"):
        network_file.look_at(str(file))


def test_rows_of_another_width_name_the_file(tmp_path):
    network = open_network(written(linear(W), tmp_path / "w.onnx"), worker(tmp_path))
    with pytest.raises(StageError, match=r"rows of \(4\).*[\s\S]*w.onnx[\s\S]*doctor --onnx"):
        network(np.zeros((2, 4), np.float32), ["y"])


def test_an_output_that_is_not_of_the_rows_is_refused_by_name(tmp_path):
    whole = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    file = written(model_of([whole], {"x": ["n", 3]}, {"y": []}), tmp_path / "sum.onnx")
    with pytest.raises(StageError, match=r"'y' that is not numbers for each of 64 rows"):
        open_network(file, worker(tmp_path))(np.ones((2, 3), np.float32), ["y"])


def test_a_gpu_needs_an_onnxruntime_for_it(tmp_path):
    with pytest.raises(StageError, match="onnxruntime-gpu"):
        open_network(written(linear(W), tmp_path / "w.onnx"), worker(tmp_path, device="cuda:0"))
