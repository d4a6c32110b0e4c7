"""open_clip by name: weights from a file, and errors that say what is missing. No hub is asked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import clipmill.stages.models.open_clip
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.clip import open_clip_config
from clipmill.stages.models.image_text import load, width_of
from clipmill.stages.models.open_clip import parts
from clipmill.stages.towers._open_clip import is_causal
from tests.stages.clip.exported import TINY_OPEN_CLIP

TINY, WIDER = "tiny", "wider"


@pytest.fixture(scope="module", autouse=True)
def known(open_clip, tmp_path_factory):
    """Two tiny networks, as if open_clip came with them, beside its own."""
    folder = tmp_path_factory.mktemp("configs")
    config = json.loads(Path(TINY_OPEN_CLIP).read_text())
    for path in open_clip_config.installed().glob("ViT-*.json"):
        (folder / path.name).symlink_to(path)
    for name, width in ((TINY, 16), (WIDER, 24)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**config, "embed_dim": width}))
        open_clip.add_model_config(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip_config, "installed", lambda where="": folder)
        yield


@pytest.fixture(
    scope="module", params=[TINY, pytest.param("ViT-S-32-alt", marks=pytest.mark.soak(cpu_s=2))]
)
def network(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def file(network, open_clip, tmp_path_factory) -> Path:
    """Random weights of the network, as open_clip's trainer leaves them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(open_clip.create_model(network).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def model(network, file):
    return load(f"open_clip:{network}@{file}")


def test_the_width_is_known_from_the_packages_configuration_and_is_the_models(network, model):
    width = {TINY: 16, "ViT-S-32-alt": 256}[network]
    assert width_of(f"open_clip:{network}@anywhere.pt") == width == model.width
    assert width_of("open_clip:ViT-L-14/openai") == 768
    assert model.embed_texts(["a"]).shape == (1, width)


def test_the_digest_is_that_of_the_values_whatever_the_file(model, network, file, tmp_path):
    weights = torch.load(file, weights_only=True)
    torch.save(dict(reversed(weights.items())), tmp_path / "again@home.pt")
    assert load(f"open_clip:{network}@{tmp_path}/again@home.pt").sha256 == model.sha256
    weights["logit_scale"] += 1
    torch.save(weights, tmp_path / "other.pt")
    assert load(f"open_clip:{network}@{tmp_path}/other.pt").sha256 != model.sha256


def test_embeddings_are_open_clips_own(model, network, file, open_clip):
    from PIL import Image

    rgb = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    theirs, _, preprocess = open_clip.create_model_and_transforms(network, pretrained=str(file))
    theirs.eval()
    with torch.inference_mode():
        image = theirs.encode_image(preprocess(Image.fromarray(rgb))[None], normalize=True)
        tokens = open_clip.get_tokenizer(network)(["a red circle"])
        text = theirs.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(model.embed_images([rgb]), image.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.embed_texts(["a red circle"]), text.numpy(), atol=1e-5)


def test_a_vector_does_not_depend_on_what_else_is_in_the_call(model, monkeypatch):
    monkeypatch.setattr(clipmill.stages.models.open_clip, "ROWS", 4)
    texts = [f"number {i}" for i in range(5)]
    whole_ND = model.embed_texts(texts)
    np.testing.assert_array_equal(model.embed_texts(texts[3:4])[0], whole_ND[3])
    np.testing.assert_array_equal(model.embed_texts(texts[::-1]), whole_ND[::-1])
    rgb = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    both_2D = model.embed_images(list(rgb))
    np.testing.assert_array_equal(model.embed_images([rgb[1]])[0], both_2D[1])
    assert model.embed_images([]).shape == model.embed_texts([]).shape == (0, model.width)


def test_prompts_without_padding_are_the_same_texts(model, monkeypatch):
    """Of 1 to 90 words, the last past the context; and none depends on its neighbours."""
    assert is_causal(model.inside.model)
    texts = [" ".join(["a red circle"] * n) for n in (1, 2, 3, 9, 30)] + ["", "dog"]
    found_ND = model.embed_prompts(texts)
    np.testing.assert_allclose(found_ND, model.embed_texts(texts), atol=5e-7)
    monkeypatch.setattr(clipmill.stages.models.open_clip, "ROWS", 4)
    whole_ND = model.embed_prompts(texts)
    np.testing.assert_array_equal(model.embed_prompts(texts[2:4]), whole_ND[2:4])
    assert model.embed_prompts([]).shape == (0, model.width)


def test_a_line_is_embedded_by_its_middle_and_fills_no_memory(model):
    line = np.full((1, 10_000_000, 3), 255, np.uint8)  # 32 pixels high, 40 GB
    line[:, 4_999_000:5_001_000] = 0
    upright = line.transpose(1, 0, 2)
    black, *found = model.embed_images([np.zeros((9, 9, 3), np.uint8), line, upright])
    np.testing.assert_allclose(found, [black, black], atol=1e-5)


def test_safetensors_are_read_too(model, network, file, tmp_path):
    from safetensors.torch import save_file

    weights = torch.load(file, weights_only=True)
    save_file(
        {name: tensor.clone() for name, tensor in weights.items()}, tmp_path / "w.safetensors"
    )
    other = load(f"open_clip:{network}@{tmp_path / 'w.safetensors'}")
    np.testing.assert_array_equal(other.embed_texts(["a"]), model.embed_texts(["a"]))


def test_a_name_holds_a_network_and_its_weights():
    assert parts("ViT-B-32/openai") == ("ViT-B-32", "openai", None)
    assert parts("ViT-B-32@a/b@c.pt") == ("ViT-B-32", None, Path("a/b@c.pt"))
    for name in ("", "ViT-B-32", "ViT-B-32/", "ViT-B-32@", "@a.pt", "/openai"):
        with pytest.raises(RecipeError, match=r"open_clip:NAME/TAG"):
            parts(name)


def test_an_unknown_network_is_refused_with_those_of_its_family():
    with pytest.raises(RecipeError, match=r"(?s)no network 'ViT-B-23'.*did you mean 'ViT-B-32'"):
        width_of("open_clip:ViT-B-23/openai")


def test_an_unknown_tag_is_refused_with_the_known_ones():
    with pytest.raises(StageError, match=r"no weights 'opnai' of ViT-B-32(.|\n)*openai"):
        load("open_clip:ViT-B-32/opnai")


def test_a_missing_file_another_networks_and_no_weights_at_all_are_refused(open_clip, tmp_path):
    with pytest.raises(StageError, match="no such file"):
        load(f"open_clip:{TINY}@{tmp_path / 'none.pt'}")
    torch.save(open_clip.create_model(TINY).state_dict(), tmp_path / "tiny.pt")
    with pytest.raises(StageError, match="weights that wider cannot take"):
        load(f"open_clip:{WIDER}@{tmp_path / 'tiny.pt'}")
    (tmp_path / "page.pt").write_text("<!doctype html>")
    with pytest.raises(StageError, match="weights that tiny cannot take"):
        load(f"open_clip:{TINY}@{tmp_path / 'page.pt'}")


class Trap:
    """Runs code when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused_unrun(tmp_path):
    torch.save({"weight": Trap(tmp_path / "ran")}, tmp_path / "trap.pt")
    with pytest.raises(StageError, match="cannot take"):
        load(f"open_clip:{TINY}@{tmp_path / 'trap.pt'}")
    assert not (tmp_path / "ran").exists()


def test_doctor_says_what_a_machine_without_hub_misses(tmp_path, clipmill, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    said = clipmill("doctor", "--model", "open_clip:ViT-B-32/openai")
    assert said.code == 1
    assert (
        "BAD   model open_clip:ViT-B-32/openai no weights of open_clip:ViT-B-32/openai" in said.out
    )
    assert "open_clip:ViT-B-32@FILE" in said.out
    assert "Traceback" not in said.out + said.err
