"""A start, locked towers, dropped patches, SigLIP, pieces: 20 losses of open_clip's own loop."""

import numpy as np
import pytest
import torch

from clipmill.stages.clip.loop import Execution, Schedule, Trainer
from clipmill.stages.clip.losses import find_loss
from clipmill.stages.clip.named import new_model
from clipmill.stages.clip.patches import drop_patches
from clipmill.stages.clip.start import load_start, lock, start_of
from tests.stages.clip.exported import TINY_OPEN_CLIP, known_to_open_clip

STEPS, ROWS = 20, 8


@pytest.mark.drawn(cpu_s=2)
@pytest.mark.parametrize(
    ("tower", "groups"),
    [("none", 0), ("image", 0), ("image", 2), ("text", 1), ("siglip", 0), ("pieces", 0)],
)
def test_losses_are_those_of_open_clips_loop(tower, groups, open_clip, tmp_path, monkeypatch):
    from tests.benchmarks import train_step as loop  # open_clip's trainer: seconds

    file = tmp_path / "weights.pt"
    torch.save(new_model(TINY_OPEN_CLIP, 5).network.state_dict(), file)
    model, theirs = new_model(TINY_OPEN_CLIP, 0), new_model(TINY_OPEN_CLIP, 1)
    load_start(model, start_of(f"open_clip:{TINY_OPEN_CLIP}@{file}"))
    with known_to_open_clip() as name:  # --pretrained
        theirs.clip = open_clip.create_model(name, pretrained=str(file))
    way: dict = {}
    if tower == "siglip":  # --siglip
        for one in (model, theirs):
            one.network.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
        way = {"loss": "siglip"}
    if tower == "pieces":  # --accum-freq 2
        way = {"pieces": 2}
    if tower == "image":  # --lock-image --lock-image-unlocked-groups
        theirs.network.lock_image_tower(unlocked_groups=groups, freeze_bn_stats=True)
    if tower == "text":
        theirs.network.lock_text_tower(unlocked_layers=groups)
    if tower in ("image", "text"):
        lock(model, tower, groups)
    noises = []
    if tower == "none":  # --force-patch-dropout, with our noise
        drop_patches(model.network, 0.5, STEPS, 3)
        theirs.network.visual.patch_dropout = open_clip.transformer.PatchDropout(0.5)
        monkeypatch.setattr(torch, "randn", lambda *shape: noises.pop(0))
    batches = [loop.drawn(n, model, ROWS) for n in range(STEPS)]
    loop.PREPARED.clear()  # by the batches' ids, of which some were other tests'
    schedule = Schedule(
        steps=loop.ALL_STEPS,
        learning_rate=loop.PEAK,
        warmup_steps=loop.WARMUP,
        weight_decay=loop.DECAY,
        precision="float32",
        max_norm=None,
    )
    execution = Execution(accumulate=way.get("pieces", 1))
    trainer = Trainer(model, schedule, find_loss(way.get("loss", "clip")), execution)
    for batch in batches:
        trainer.learn(batch)
        noises += [patches.noise_NP for patches in trainer.patches]
    expected = loop.Theirs(theirs, "fp32", **way).learn(batches)
    np.testing.assert_allclose(trainer.losses, expected, rtol=1e-5)
