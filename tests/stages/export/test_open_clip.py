"""A subset exported as WebDataset trains in open_clip, by its own command."""

import math
import re
import subprocess
import sys

import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.export.webdataset import WebDataset
from tests.stages.clip.exported import TINY_OPEN_CLIP

COMMAND = f"""
import open_clip, sys
from open_clip_train.main import main
open_clip.add_model_config({TINY_OPEN_CLIP!r})
main(sys.argv[1:])
"""


@pytest.mark.chaos  # importing open_clip takes seconds
def test_a_subset_trains_in_open_clip_itself(pool, memory_shards, memory_context, tmp_path):
    ctx = memory_context()
    WebDataset().run(Inputs(rows=memory_shards(pool)), ctx)
    (tar,) = ctx.out.glob("*.tar")
    seen = ["--train-data", tar, "--dataset-type", "webdataset", "--train-num-samples", 152]
    how = ["--batch-size", 32, "--epochs", 2, "--workers", 1, "--warmup", 1, "--lr", 1e-3]
    where = ["--logs", tmp_path, "--name", "run", "--device", "cpu", "--precision", "fp32"]
    arguments = [*seen, *how, *where, "--model", "tiny_open_clip", "--log-every-n-steps", 1]
    subprocess.run([sys.executable, "-c", COMMAND, *map(str, arguments)], check=True)
    log = (tmp_path / "run" / "out.log").read_text()
    losses = [float(loss) for loss in re.findall(r"Contrastive_loss: ([\d.]+)", log)]
    assert losses[0] == pytest.approx(math.log(32), abs=1.5)  # untrained: near chance
    assert losses[-1] < losses[0]
    assert (tmp_path / "run" / "checkpoints" / "epoch_2.pt").exists()
