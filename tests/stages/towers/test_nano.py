"""The towers: what MEASURED.md says of nano, and what a start must not depend on."""

import math

import pytest
import torch

from clipmill.stages.clip.named import new_model, rebuilt
from clipmill.stages.clip.towers import Towers, matrices_first
from clipmill.stages.towers.nano import Nano


@pytest.fixture(scope="module")
def nano() -> Nano:
    return new_model("nano", 0)


def test_nano_is_the_scale_that_was_measured(nano):
    shapes = {name: tuple(weight.shape) for name, weight in nano.named_parameters()}
    assert shapes["image.stem.weight"] == (24, 3, 4, 4)
    assert [shapes[f"image.blocks.{i}.conv2.weight"][0] for i in range(4)] == [24, 48, 96, 192]
    assert shapes["text.bag.weight"] == (32_768, 256)
    assert shapes["text.layers.2.weight"][0] == shapes["image.head.weight"][0] == 128
    assert nano.scale.item() == pytest.approx(1 / 0.07)


def test_towers_that_lack_one_cannot_be_made():
    class Half(Towers):
        def embed_images(self, pixels_N3HW, dtype=torch.float32): ...

    with pytest.raises(TypeError, match=r"abstract method '?embed_texts"):
        Half()


def test_pictures_shrink_by_the_strides(nano):
    sizes = []
    hooks = [
        module.register_forward_hook(lambda *call: sizes.append(call[-1].shape[-1]))
        for module in (nano.image.stem, *nano.image.blocks)
    ]
    nano.embed_images(torch.zeros(2, 3, 48, 48, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    assert sizes == [24, 24, 12, 6, 3]


def test_a_block_starts_as_its_shortcut_alone():
    block = new_model("tiny", 0).image.blocks[0].eval()
    x_NCHW = torch.rand(1, block.conv1.in_channels, 5, 5)
    assert torch.equal(block(x_NCHW), x_NCHW)


def test_embeddings_are_unit_vectors_and_an_empty_caption_has_one():
    model = new_model("tiny", 0)
    image_ND = model.embed_images(torch.arange(3 * 3 * 256).reshape(3, 3, 16, 16).byte())
    text_ND = model.embed_texts(torch.tensor([1, 2, 3]), torch.tensor([0, 0, 2]))
    assert image_ND.shape == text_ND.shape == (3, 8)
    torch.testing.assert_close(torch.cat([image_ND, text_ND]).norm(dim=1), torch.ones(6))


def test_a_bag_is_summed_over_the_root_of_its_tokens():
    tower = new_model("tiny", 0).text
    seen = []
    tower.norm.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    tower(torch.tensor([5, 6, 6, 7]), torch.tensor([0, 1]), torch.float32)
    weight = tower.bag.weight
    expected = torch.stack([weight[5], (2 * weight[6] + weight[7]) / math.sqrt(3)])
    torch.testing.assert_close(seen[0], expected)


def test_bfloat16_computes_near_float32_and_its_gradients_reach_float32_weights():
    model = new_model("tiny", 0)
    pixels = torch.arange(4 * 3 * 256).reshape(4, 3, 16, 16).byte()
    half, full = (model.embed_images(pixels, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert 0 < (half - full).abs().max() < 0.05
    half.sum().backward()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.image.stem.weight.grad.dtype == torch.float32


def test_the_start_depends_on_the_seed_and_not_on_torchs_generator():
    torch.manual_seed(1)
    first = new_model("tiny", 5).state_dict()
    before = torch.random.get_rng_state()
    second = new_model("tiny", 5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["image.stem.weight"], new_model("tiny", 6).image.stem.weight)


def test_the_scale_is_held_between_1_and_100():
    model = new_model("tiny", 0)
    for log_scale, scale in ((9.0, 100.0), (-9.0, 1.0)):
        model.log_scale.data.fill_(log_scale)
        assert model.scale.item() == pytest.approx(scale, rel=1e-7)  # of float32's exp


def test_matrices_decay_and_the_rest_does_not():
    model = new_model("tiny", 0)
    names = {id(weight): name for name, weight in model.named_parameters()}
    matrices, others = ([names[id(w)] for w in group] for group in matrices_first(model))
    assert {"text.bag.weight", "image.stem.weight", "image.head.weight"} <= set(matrices)
    assert {"log_scale", "image.head.bias", "text.norm.weight"} <= set(others)
    assert len(matrices) + len(others) == len(names)


def test_a_loss_sets_scale_and_bias_and_the_towers_are_the_same():
    plain, biased = new_model("tiny", 0), new_model("tiny", 0, scale=10.0, bias=-10.0)
    assert plain.bias is None
    assert (biased.bias.item(), biased.scale.item()) == (-10.0, pytest.approx(10))
    assert torch.equal(plain.image.stem.weight, biased.image.stem.weight)
    assert biased.bias in set(matrices_first(biased)[1])
    assert rebuilt(biased.facts).state_dict().keys() == biased.state_dict().keys()
    assert rebuilt(plain.facts).state_dict().keys() == plain.state_dict().keys()
