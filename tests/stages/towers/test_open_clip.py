"""open_clip's networks in training: its weights, tokens, pictures and values; what is refused."""

import json
import pickle
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipmill.pipeline.errors import RecipeError
from clipmill.stages.clip import open_clip_config
from clipmill.stages.clip.named import new_model, reads, rebuilt
from clipmill.stages.clip.towers import matrices_first
from tests.stages.clip.exported import TINY_OPEN_CLIP

NAME = TINY_OPEN_CLIP
TEXTS = ["", "a red ox", "a long text of many words " * 40, "Ångström, <!-- naïve --> 3 cats!"]


@pytest.fixture(scope="module")
def model(open_clip):
    return new_model(NAME, 0).eval()


@pytest.fixture(scope="module", autouse=True)
def known(open_clip):
    """The tiny network under a name that open_clip's own functions take."""
    open_clip.add_model_config(NAME)


def test_weights_at_the_start_are_open_clips_under_the_same_seed(open_clip):
    bits = int.from_bytes(blake2b(b"5 weights", digest_size=8).digest(), "big")
    ours = new_model(NAME, 5).network.state_dict()
    before = torch.random.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits)
        theirs = open_clip.create_model("tiny_open_clip").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert ours["logit_scale"].item() == pytest.approx(np.log(1 / 0.07))


def test_a_tower_that_reads_its_last_token_is_given_the_whole_context(tmp_path, open_clip):
    config = json.loads(Path(NAME).read_text())
    config["text_cfg"] |= {"embed_cls": True, "pad_id": 0}
    (tmp_path / "last.json").write_text(json.dumps({**config, "custom_text": True}))
    model = new_model(str(tmp_path / "last.json"), 0).eval()
    token_T, starts = model.tokenize(["a red ox", "a dog"])
    with torch.no_grad():
        ours_ND = model.embed_texts(torch.from_numpy(token_T), torch.from_numpy(starts[:-1]))
        whole_NL = open_clip.get_tokenizer("tiny_open_clip")(["a red ox", "a dog"])
        theirs_ND = model.network.encode_text(whole_NL, normalize=True)
    torch.testing.assert_close(ours_ND, theirs_ND, atol=1e-6, rtol=0)


def test_texts_padded_to_the_longest_have_the_values_of_those_padded_to_the_context(
    model, open_clip
):
    token_T, starts = model.tokenize(TEXTS[:2] + TEXTS[3:])
    assert (token_T.dtype, len(token_T)) == (np.int32, starts[-1])
    assert np.diff(starts).max() < 30
    tokens, first_N = torch.from_numpy(token_T), torch.from_numpy(starts[:-1])
    whole_NL = open_clip.get_tokenizer("tiny_open_clip")(TEXTS[:2] + TEXTS[3:])
    with torch.no_grad():
        ours_ND = model.embed_texts(tokens, first_N)
        theirs_ND = model.network.encode_text(whole_NL, normalize=True)
    torch.testing.assert_close(ours_ND, theirs_ND, atol=1e-6, rtol=0)


@pytest.mark.parametrize("context", [77, 20])
def test_tokens_are_open_clips_without_the_padding_and_a_longer_text_is_cut(context, open_clip):
    ragged = pickle.loads(pickle.dumps(reads(NAME, context))).tokenize
    token_T, starts = ragged(TEXTS)
    whole_NL = open_clip.get_tokenizer("tiny_open_clip", context_length=context)(TEXTS).numpy()
    assert np.diff(starts).max() == context
    for n, own_L in enumerate(whole_NL):
        own = token_T[starts[n] : starts[n + 1]]
        np.testing.assert_array_equal(np.pad(own, (0, context - len(own))), own_L)
    assert [array.tolist() for array in ragged([])] == [[], [0]]


def test_pictures_are_open_clips(model, open_clip):
    transform = open_clip.image_transform(32, is_train=False)
    rng = np.random.default_rng(0)
    for side in ((40, 70), (32, 32), (9, 33)):
        image_HW3 = rng.integers(0, 256, (*side, 3), np.uint8)
        pixels = torch.from_numpy(model.reads.prepare(image_HW3)).permute(2, 0, 1)[None]
        with torch.no_grad():
            theirs = model.network.encode_image(
                transform(Image.fromarray(image_HW3))[None], normalize=True
            )
            torch.testing.assert_close(model.embed_images(pixels), theirs, atol=1e-6, rtol=0)


def test_bfloat16_is_near_float32_and_its_gradients_reach_float32_weights():
    model = new_model(NAME, 0)
    pixels = torch.arange(4 * 3 * 1024).reshape(4, 3, 32, 32).byte()
    half, full = (model.embed_images(pixels, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.05
    half[:, 0].sum().backward()
    assert model.network.visual.conv1.weight.grad.dtype == torch.float32


def test_a_loss_sets_scale_and_bias():
    model = new_model(NAME, 0, scale=10.0, bias=-10.0)
    assert (model.bias.item(), model.scale.item()) == (-10, pytest.approx(10))
    assert new_model(NAME, 0).bias is None


def test_decay_is_that_of_open_clips_trainer(model):
    decayed = {id(weight) for weight in matrices_first(model.network)[0]}
    for name, weight in model.network.named_parameters():
        expected = weight.ndim >= 2 and not any(
            part in name for part in ("bn", "ln", "bias", "logit_scale")
        )
        assert (id(weight) in decayed) == expected, name
    assert id(model.network.positional_embedding) in decayed
    assert id(model.network.visual.class_embedding) not in decayed


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ViT-B-23", r"no network 'ViT-B-23'(.|\n)*ViT-B-32"),
        ("none.json", "no such file"),
        ("coca_ViT-B-32", "captioning decoder"),
        ("roberta-ViT-B-32", "text tower comes from a hub"),
        ("ViT-B-16-SigLIP", "tokenizer comes from a hub"),
        ("convnext_base", r"by chance \(timm_drop_path is 0\.1\)(.|\n)*a JSON file"),
    ],
)
def test_what_cannot_be_trained_is_refused(name, found):
    with pytest.raises(RecipeError, match=found):
        reads(name)


def test_a_file_without_the_sections_is_refused(tmp_path):
    for text, found in (
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"embed_dim": 3}', "text_cfg, vision_cfg missing"),
        ('{"embed_dim": 3, "text_cfg": {}, "vision_cfg": null}', "vision_cfg missing"),
        ('{"model_cfg": "ViT-B-32"}', "embed_dim, text_cfg, vision_cfg missing"),
        ("[]", "embed_dim, text_cfg, vision_cfg missing"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(RecipeError, match=found):
            reads(str(tmp_path / "a.json"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(RecipeError, match=r"no such file: .*/folder\.json"):
        reads(str(tmp_path / "folder.json"))


def test_the_scales_networks_are_known():
    assert reads("ViT-B-32").image_size == reads("ViT-L-14").image_size == 224


def test_without_open_clip_the_extra_to_install_is_named(model, monkeypatch):
    facts = model.facts
    monkeypatch.setattr(open_clip_config, "find_spec", lambda _: None)
    for make in (lambda: reads("ViT-B-32"), lambda: new_model("ViT-B-32", 0)):
        with pytest.raises(RecipeError, match=r"not installed(.|\n)*clipmill\[gpu\]"):
            make()
    with pytest.raises(RecipeError, match="not installed"):
        rebuilt(facts)
