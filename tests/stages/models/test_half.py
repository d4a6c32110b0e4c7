"""half: bfloat16 where the device multiplies it; what a network and a trainer compute in."""

import types

import pytest
import torch

from clipmill.stages.models.saved import half
from clipmill.stages.models.text_features import dtype_of
from tests.stages.clip.test_loop import trainer


@pytest.fixture(params=[True, False], ids=["with bf16", "without"])
def has_it(request, monkeypatch):
    """Whether the processor, as it is told here, has bfloat16."""
    said = types.SimpleNamespace(_is_mkldnn_bf16_supported=lambda: request.param)
    monkeypatch.setattr(torch.ops, "mkldnn", said)
    return request.param


def test_a_processor_without_it_computes_in_float32(has_it):
    wanted = torch.bfloat16 if has_it else torch.float32
    assert half("cpu") == wanted
    assert half("cuda:1") == torch.bfloat16
    assert dtype_of("bfloat16", "cpu") == wanted
    assert dtype_of("float32", "cpu") == torch.float32
    assert trainer("bf16").dtype == wanted
    assert [trainer(it).dtype for it in ("float32", "float64")] == [torch.float32, torch.float64]


def test_without_onednn_too(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert half("cpu") == torch.float32
