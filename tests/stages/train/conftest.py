"""The smallest model there is under the name `nano`."""

import pytest
import torch

from clipmill.stages.clip.nano import ARCHITECTURES
from tests.stages.clip.exported import TINY


@pytest.fixture(autouse=True, scope="package")
def optimiser():
    torch.optim.SGD([torch.zeros(1)])  # the first imports for seconds: those of no test


@pytest.fixture(autouse=True)
def tiny_nano(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setitem(ARCHITECTURES, "nano", TINY)


@pytest.fixture
def launching_context(memory_context):
    """A new context, by seed."""
    return memory_context
