"""A-CLIP: its parts, the blocks it keeps, and whose attention decides."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from clipmill.stages.clip.loop import Schedule, Trainer
from clipmill.stages.clip.losses import find_loss
from clipmill.stages.clip.patches import drop_patches
from clipmill.stages.losses import a_clip
from tests.stages.clip.tiny_vit import TinyViT, drawn
from tests.stages.losses.batches import of_pairs, random, twice

SCHEDULE = Schedule(
    steps=8, learning_rate=1e-2, warmup_steps=0, weight_decay=0.1, precision="float64"
)


def of_views(views, target_VD, text_ND, scale: float = 1.0):
    own = a_clip.Attention()
    own.target_VD = target_VD
    return of_pairs(views[0], text_ND, scale, image_views=[twice(views[1])], own=own)


@pytest.mark.parametrize(("target", "nats"), [([[1.0, 0], [0, 1.0]], 0), ([[0, 1.0], [1.0, 0]], 4)])
def test_a_target_that_is_the_view_costs_nothing_and_one_at_right_angles_4(target, nats):
    axes, target = torch.eye(2, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    batch = of_views((axes, axes), torch.cat([target, target]), axes)
    part_N = a_clip.loss(batch) - a_clip.loss(batch, w_average=0.0)
    assert part_N.tolist() == pytest.approx([nats] * 2)


def test_it_is_the_papers_sum():
    first, second, text = (random(5, 6, seed=n) for n in range(3))
    target = random(10, 6, seed=3).detach()
    ours = a_clip.loss(of_views((first, second), target, text, 14.0))
    rows = torch.arange(5)
    clips = [
        (cross_entropy(14 * v @ text.T, rows) + cross_entropy(14 * text @ v.T, rows)) / 2
        for v in (first, second)
    ]
    both = torch.cat([first, second])
    others = (both @ both.T / 0.1).masked_fill(torch.eye(10, dtype=torch.bool), -torch.inf)
    simclr = cross_entropy(others, torch.arange(10).roll(5))
    byol = (2 - 2 * (both * target).sum(1)).mean()
    plain = 0.5 * clips[0] + 0.5 * clips[1] + simclr + 2 * byol
    torch.testing.assert_close(ours.mean(), plain)
    slopes = [torch.autograd.grad(value, (first, second, text)) for value in (ours.mean(), plain)]
    torch.testing.assert_close(*slopes)


def test_25_of_49_blocks_stay_whole():
    attention_NP = torch.rand(3, 196, generator=torch.Generator().manual_seed(0))
    kept_NK = a_clip.attended(attention_NP, 0.5)
    assert kept_NK.shape == (3, 100)
    for kept, attention in zip(kept_NK.tolist(), attention_NP.view(3, 14, 14), strict=True):
        blocks = attention.view(7, 2, 7, 2).sum((1, 3)).flatten().topk(25).indices.tolist()
        assert {(p // 28) * 7 + p % 14 // 2 for p in kept} == set(blocks)
    assert len(a_clip.attended(torch.rand(1, 49), 0.5)[0]) == 25


def test_the_averages_decay_rises_to_1_by_half_a_cosine():
    decays = [a_clip.rising(0.996, done) for done in (0, 0.5, 1)]
    assert decays == pytest.approx([0.996, 0.998, 1])


def test_the_average_of_the_weights_says_which_patches_stay_and_where_views_go(open_clip):
    trainer = trainer_of()
    for n in range(3):
        trainer.learn(drawn(n, views=2))
    before = trainer.average.module.clip.visual.conv1.weight.clone()
    batch = drawn(3, views=2)
    trainer.learn(batch)
    weight, decay = trainer.model.clip.visual.conv1.weight, a_clip.rising(0.5, 3 / 8)
    average = trainer.average.module.clip.visual.conv1.weight
    torch.testing.assert_close(average, decay * before + (1 - decay) * weight)
    pixels = torch.from_numpy(batch.pixels)
    trainer.own.begin(trainer, pixels)
    model = trainer.average.module
    torch.testing.assert_close(trainer.own.target_VD, model.embed_images(pixels, torch.float64))
    score_NP = plain_attention(model.clip.visual, pixels.double() / 127.5 - 1)
    kept_NK = score_NP.topk(3).indices
    (patches,) = trainer.patches
    assert torch.equal(patches.kept_NK.sort().values, kept_NK.sort().values)


def trainer_of() -> Trainer:
    model = TinyViT()
    drop_patches(model.clip, 0.5, 8, 0)
    own = a_clip.state(samples=12, width=8, seed=0, settings={})
    return Trainer(model, SCHEDULE, find_loss("a_clip"), average=0.5, own=own)


def plain_attention(visual, pixels_N3HW: torch.Tensor) -> torch.Tensor:
    """(N, P): the class token's attention to each patch, the mean over layers and heads."""
    x = visual._embeds(pixels_N3HW)
    maps = []
    for block in visual.transformer.resblocks:
        y, attn = block.ln_1(x), block.attn
        parts = (y @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, dim=2)
        query, key, value = (p.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for p in parts)
        share = (query @ key.mT / query.shape[-1] ** 0.5).softmax(3)
        maps.append(share[:, :, 0, 1:].mean(1))
        x = x + attn.out_proj((share @ value).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    return torch.stack(maps).mean(0)
