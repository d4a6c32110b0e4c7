"""A model that has learnt nothing, and one thread."""

from pathlib import Path

import pytest
import torch

from tests.stages.clip.exported import write_model


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def trained_model(tmp_path) -> Path:
    """The folder of a model that has learnt nothing."""
    return write_model(tmp_path / "model", "tiny", seed=0)
