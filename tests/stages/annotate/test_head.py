"""annotate.head: each published head as NumPy computes it, files of other heads by name."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.annotate.head import PRESETS, Head
from tests.stages.networks import linear, worker, written

V2 = (768, 1024, 128, 64, 16, 1)
DATACOMP = (768, 64, 512, 256, 1)


def published(preset: str, width: int = 768) -> dict[str, torch.Tensor]:
    """Random weights with the names and shapes of the published file."""
    torch.manual_seed(0)
    if preset == "aesthetic-v1":
        return nn.Linear(width, 1).state_dict()
    if preset == "aesthetic-v2":  # dropout between them
        layers = {n: nn.Linear(*V2[i : i + 2]) for i, n in enumerate(("0", "2", "4", "6", "7"))}
        return nn.ModuleDict({"layers": nn.ModuleDict(layers)}).state_dict()
    norm = nn.BatchNorm1d(768, eps=0.0)
    nn.init.uniform_(norm.weight), nn.init.normal_(norm.bias)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    names = ("dense", "dense1", "dense2", "dense3")
    dense = {n: nn.Linear(*DATACOMP[i : i + 2]) for i, n in enumerate(names)}
    for layer in dense.values():
        layer.weight.data *= 3  # as large as learnt ones: answers from 0.2 to 0.8
    return nn.ModuleDict({"norm": norm, **dense}).state_dict()


def by_numpy(preset: str, weights: dict, unit_ND: np.ndarray) -> np.ndarray:
    """Every layer in float64, as its authors' code calls them."""
    value = {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}
    row_ND = unit_ND.astype(np.float64)
    if "norm.weight" in value:
        row_ND = (row_ND - value["norm.running_mean"]) / np.sqrt(value["norm.running_var"])
        row_ND = row_ND * value["norm.weight"] + value["norm.bias"]
    names = [n[: -len("weight")] for n, it in value.items() if it.ndim == 2]
    for name in names:
        row_ND = row_ND @ value[f"{name}weight"].T + value[f"{name}bias"]
        if preset == "datacomp-nsfw" and name != names[-1]:
            row_ND = np.maximum(row_ND, 0)
    return 1 / (1 + np.exp(-row_ND[:, 0])) if preset == "datacomp-nsfw" else row_ND[:, 0]


def vectors(rows: int, width: int = 768) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, width), np.float32)


def batch(rows: list, width: int = 768) -> pa.Table:
    return pa.table({"image_embedding": pa.array(rows, pa.list_(pa.float32(), width))})


def scores(preset, file, tmp_path, row_ND):
    answer = Head(preset=preset, file=str(file)).open(worker(tmp_path))
    return answer(batch([*row_ND], row_ND.shape[1]))[PRESETS[preset].column.name].to_numpy()


@pytest.mark.parametrize(
    ("preset", "width"),
    [("aesthetic-v1", 768), ("aesthetic-v1", 512), ("aesthetic-v2", 768), ("datacomp-nsfw", 768)],
)
def test_a_published_head_is_numpys_to_a_millionth(preset, width, tmp_path):
    weights, row_ND = published(preset, width), 3 * vectors(130, width)
    unit_ND = row_ND / np.linalg.norm(row_ND, axis=1, keepdims=True)
    torch.save(weights, tmp_path / "head.pth")
    save_file({n: it.numpy() for n, it in weights.items()}, tmp_path / "head.safetensors")
    expected_N = by_numpy(preset, weights, unit_ND)
    assert expected_N.std() > 1e-3
    for name in ("head.pth", "head.safetensors"):
        found_N = scores(preset, tmp_path / name, tmp_path, row_ND)
        np.testing.assert_allclose(found_N, expected_N, atol=1e-6)


def test_aesthetic_v2_is_an_affine_map(tmp_path):
    """Equal steps along any line change the score by equal amounts."""
    stack = [tensor.numpy().astype(np.float64) for tensor in published("aesthetic-v2").values()]
    a_D, b_D = vectors(2).astype(np.float64)

    def score(row_D):
        for weight_DD, bias_D in zip(stack[::2], stack[1::2], strict=True):
            row_D = weight_DD @ row_D + bias_D
        return row_D[0]

    steps = np.diff([score(a_D + t * (b_D - a_D)) for t in range(-3, 4)])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


def test_heads_as_onnx_give_the_files_numbers(tmp_path):
    for width in (768, 512):
        weight_D1 = vectors(1, width).T / 30
        file = written(linear(weight_D1), tmp_path / f"nsfw{width}.onnx")
        row_ND = vectors(70, width)
        unit_ND = row_ND / np.linalg.norm(row_ND, axis=1, keepdims=True)
        found_N = scores("laion-nsfw", file, tmp_path, row_ND)
        np.testing.assert_allclose(found_N, (unit_ND @ weight_D1)[:, 0], atol=1e-6)


def test_rows_without_a_direction_say_so_and_spare_their_neighbours(tmp_path):
    torch.save(published("aesthetic-v1"), tmp_path / "v1.pth")
    answer = Head(preset="aesthetic-v1", file=str(tmp_path / "v1.pth")).open(worker(tmp_path))
    good = vectors(1)[0]
    out = answer(batch([None, [0] * 768, [np.nan] * 768, good, 1e30 * good])).to_pydict()
    lost = "zero_or_nan_embedding"
    assert out["reason"] == ["no_embedding", lost, lost, None, None]
    assert out["aesthetic"][:3] == [None] * 3
    assert out["aesthetic"][3] == pytest.approx(out["aesthetic"][4])
    short = pa.table({"image_embedding": pa.array([None, [1.0] * 512], pa.list_(pa.float32()))})
    assert answer(short[:1])["reason"].to_pylist() == ["no_embedding"]
    with pytest.raises(StageError, match="vectors 512 wide: the head reads 768"):
        answer(short)


def test_a_file_of_another_head_is_refused_by_name(tmp_path):
    files = {}
    for preset in ("aesthetic-v1", "aesthetic-v2", "datacomp-nsfw"):
        files[preset] = tmp_path / f"{preset}.pth"
        torch.save(published(preset), files[preset])
    (tmp_path / "head.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "code.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    torch.save(published("aesthetic-v1") | {"bias": torch.tensor([np.nan])}, tmp_path / "nan.pth")
    onnx = written(linear(vectors(1, 64).T), tmp_path / "head.onnx")
    for preset, file, said in (
        ("aesthetic-v2", files["aesthetic-v1"], "768-1: aesthetic-v2 has 768-1024-128-64-16-1"),
        ("aesthetic-v1", files["datacomp-nsfw"], "aesthetic-v1 has 768-1 or 512-1"),
        ("laion-nsfw", files["aesthetic-v1"], "laion-nsfw comes as Keras, or as ONNX"),
        ("laion-nsfw", tmp_path / "head.h5", "python -m tf2onnx.convert"),
        ("laion-nsfw", onnx, "an input of 64: laion-nsfw has 768 or 512"),
        ("aesthetic-v1", tmp_path / "code.pth", "no file of weights"),
        ("aesthetic-v1", tmp_path / "nan.pth", "'bias' is not finite"),
    ):
        with pytest.raises(StageError) as error:
            Head(preset=preset, file=str(file)).open(worker(tmp_path))
        assert said in str(error.value)


def test_vectors_of_another_width_stop_the_plan():
    head = Head(preset="datacomp-nsfw", file="head.pth")
    head.check({"image_embedding": pa.list_(pa.float32(), 768)})
    with pytest.raises(RecipeError, match="512 wide: datacomp-nsfw reads CLIP ViT-L/14's, 768"):
        head.check({"image_embedding": pa.list_(pa.float32(), 512)})
