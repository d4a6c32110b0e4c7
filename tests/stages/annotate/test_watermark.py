"""annotate.watermark: LAION's own steps, by timm and by ONNX; files of other networks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clipmill.pipeline.errors import StageError
from clipmill.stages.annotate.watermark import MEAN, SIDE, STD, Watermark
from tests.stages.networks import colours, drawn, marks, pictures, worker, written

RGB = [*drawn((40, 60), (300, 90)), None]


@pytest.fixture(scope="module")
def theirs():
    """The network of example_use.py with random weights, and what it says of RGB."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("efficientnet_b3", num_classes=2)
    network.classifier = nn.Sequential(
        *(nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(p=0.3)),
        *(nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)),
    )
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):  # as learnt ones do, so that pictures differ
            part.momentum = 1.0
    network(torch.from_numpy(prepared(drawn((99, 40), (20, 30)) + RGB[:2])))
    network.classifier[5].weight.data *= 10
    network.eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(prepared(RGB[:2])))
        middle = (logits[:, 0] - logits[:, 1]).mean()  # else both chances are 1
        network.classifier[5].bias[0] -= middle
        logits[:, 0] -= middle
    return network.state_dict(), torch.softmax(logits, dim=1)[:, 0].tolist()


def prepared(rgb: list) -> np.ndarray:
    """T.Resize((256, 256)), ToTensor and Normalize, on PIL pictures."""
    small = [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for one in rgb]
    x_NSS3 = (np.stack([np.asarray(one) / 255 for one in small]) - MEAN) / STD
    return x_NSS3.transpose(0, 3, 1, 2).astype(np.float32)


@pytest.mark.slow("a network of 12 million weights")
def test_published_weights_say_what_laions_example_says(theirs, tmp_path):
    weights, chances = theirs
    torch.save(weights, tmp_path / "watermark.pt")
    answer = Watermark(file=str(tmp_path / "watermark.pt")).open(worker(tmp_path))
    out = answer(pictures(RGB)).to_pydict()
    assert out["pwatermark"][:2] == pytest.approx(chances, abs=1e-5)
    assert abs(chances[0] - chances[1]) > 1e-3, chances
    assert out["reason"] == [None, None, "no_image"]


@pytest.mark.slow("a network of 12 million weights")
def test_weights_of_another_network_are_refused(theirs, tmp_path):
    weights = dict(theirs[0]) | {"classifier.5.weight": torch.zeros(3, 256)}
    torch.save(weights, tmp_path / "watermark.pt")
    with pytest.raises(StageError, match=r"size mismatch for classifier.5.weight"):
        Watermark(file=str(tmp_path / "watermark.pt")).open(worker(tmp_path))


def test_as_onnx_its_two_outputs_become_a_chance(tmp_path):
    """Means of red and green stand for marked and clear."""
    file = written(marks(), tmp_path / "watermark.onnx")
    out = Watermark(file=file).open(worker(tmp_path))(pictures(RGB)).to_pydict()
    mean_N3 = prepared(RGB[:2]).mean((2, 3))
    expected = 1 / (1 + np.exp(mean_N3[:, 1] - mean_N3[:, 0]))
    assert out["pwatermark"][:2] == pytest.approx(expected.tolist(), abs=1e-5)
    other = written(colours(SIDE), tmp_path / "other.onnx")
    with pytest.raises(StageError, match=r"to \(3,\), not \(3, 256, 256\) to \(2,\)"):
        Watermark(file=other).open(worker(tmp_path))
