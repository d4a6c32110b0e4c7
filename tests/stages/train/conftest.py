"""A context whose launch runs here, and the smallest model there is under the name `nano`."""

from types import SimpleNamespace

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
    """As `memory_context`, with `launch` for one rank."""

    def make(seed: int = 0):
        ctx = memory_context(seed)
        task = SimpleNamespace(worker=ctx.worker, put_file=ctx.put_file)
        ctx.launch = lambda fn, workers: fn(0, workers, task)
        return ctx

    return make
