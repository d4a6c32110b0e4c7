"""Models at rest: read back as they were, and refused where they are not."""

import json

import pytest
import torch

from clipmill.pipeline.errors import StageError
from clipmill.stages.models.saved import matching, put_model, read_model

WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3).T, "bias": torch.ones(3)}


@pytest.fixture
def stored(tmp_path):
    """The folder of a stage that has put a model."""
    scratch, folder = tmp_path / "scratch", tmp_path / "stage"
    scratch.mkdir()
    (folder / "out").mkdir(parents=True)

    def put(name, path):
        path.rename(folder / "out" / name)

    put_model(put, scratch, "toy", {"inputs": 2}, WEIGHTS)
    return folder


@pytest.mark.parametrize("below", ["", "out"])
def test_a_model_is_read_from_the_stages_folder_and_from_out_itself(stored, below):
    card, weights = read_model(str(stored / below), "toy")
    assert {"kind": "toy", "version": 1, "inputs": 2}.items() <= card.items()
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in weights)


def test_a_copy_elsewhere_is_the_same_model(stored, tmp_path):
    (stored / "out").rename(tmp_path / "copy")
    assert read_model(f"file://{tmp_path}/copy", "toy")[0]["inputs"] == 2


def refusal(folder, kind="toy") -> str:
    with pytest.raises(StageError) as raised:
        read_model(str(folder), kind)
    return str(raised.value)


def test_a_folder_without_a_model_says_so(tmp_path):
    assert "no model.json" in refusal(tmp_path)


def test_another_kind_is_refused_by_name(stored):
    text = refusal(stored, "clip")
    assert "kind 'toy'" in text
    assert "kind 'clip'" in text


def test_weights_of_another_digest_are_refused(stored):
    path = stored / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    text = refusal(stored)
    assert "weights of digest" in text
    assert str(path) in text


def test_a_card_without_weights_and_one_of_the_future_are_refused(stored):
    card = stored / "out" / "model.json"
    told = json.loads(card.read_text())
    card.write_text(json.dumps(told | {"version": 2}))
    assert "version 2" in refusal(stored)
    card.write_text(json.dumps(told))
    (stored / "out" / "model.safetensors").unlink()
    assert "no weights" in refusal(stored)


def test_weights_of_another_architecture_are_refused():
    fits = matching(torch.nn.Linear(2, 3), {k: v.contiguous() for k, v in WEIGHTS.items()}, "here")
    assert not fits.training
    with pytest.raises(
        StageError, match=r"another architecture: size mismatch for weight(.|\n)*here"
    ):
        matching(torch.nn.Linear(4, 3), WEIGHTS, "here")
    with pytest.raises(StageError, match="another architecture: Missing key"):
        matching(torch.nn.Linear(2, 3), {"bias": WEIGHTS["bias"]}, "here")
