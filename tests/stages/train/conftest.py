"""The smallest model there is under the name `nano`."""

from pathlib import Path

import pytest
import torch

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.engine.checkpoints import StoredCheckpoints
from clipmill.stages.towers.nano import ARCHITECTURES
from clipmill.stages.train.clip import ClipTraining
from tests.stages.clip.exported import SMALL, TINY, row, write_export


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


@pytest.fixture
def data(tmp_path) -> str:
    return write_export(tmp_path / "export", [row(i) for i in range(9)], [row(i) for i in (9, 10)])


@pytest.fixture
def trained(launching_context, data):
    """The folder of a training with these settings; `start_at` is that of `start: stage:…`."""

    def make(seed=0, data=data, start_at=None, mask=None, **settings):
        ctx = launching_context(seed)
        inputs = Inputs(rows=[], data=data, mask=mask, start=start_at and str(start_at))
        ClipTraining(**{**SMALL, **settings}).run(inputs, ctx)
        return Path(ctx.folder)

    return make


@pytest.fixture
def resumed(launching_context, data, monkeypatch):
    """The folder of a training that is stopped and goes on, and the steps of its checkpoints."""

    def make(data=data, stops=(1,), masks=(None,), **settings):
        """It stops after its first checkpoint, or those of `stops`; the last mask is where it goes
        on."""
        ctx, stored, stage = launching_context(), [], ClipTraining(**{**SMALL, **settings})

        def put(self, step, path, plain=StoredCheckpoints.put):
            plain(self, step, path)
            stored.append(step)
            if len(stored) in stops:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(StoredCheckpoints, "put", put)
            for _ in stops:
                with pytest.raises(KeyboardInterrupt):
                    stage.run(Inputs(rows=[], data=data, mask=masks[0]), ctx)
            stage.run(Inputs(rows=[], data=data, mask=masks[-1]), ctx)
        return Path(ctx.folder), stored

    return make
