"""The smallest model there is under the name `nano`."""

import pytest
import torch

from stages.clip.towers import SCALES
from tests.stages.clip.exported import TINY


@pytest.fixture(autouse=True)
def tiny_nano(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setitem(SCALES, "nano", TINY)


@pytest.fixture
def launching_context(memory_context):
    """A new context, by seed."""
    return memory_context
